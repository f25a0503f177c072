//! The customers of [`demo`](crate::demo) and [`load`](crate::load). They place random orders from
//! a seed and record the answers.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::{now, now_ms};
use crate::order::IDEMPOTENCY_KEY;
use crate::token::Tokens;

/// How long a customer tries to place one order: several times the gateway's own time limit.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shortest and longest pause between two requests for the same order. The pause doubles; with a
/// constant 250 ms, a service that returns after an outage would get every refused order four times
/// a second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// Orders per second of each customer in a mesh that is started for the demo, the load or the soak:
/// four customers place all orders there, as many as thousands do in a shop.
pub(crate) const MANY: u32 = 1_000_000;

const CUSTOMERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const PRODUCTS: [&str; 4] = ["tea", "mug", "kettle", "honey"];

#[derive(Debug)]
pub(crate) struct Customers {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    tokens: Tokens,
    rng: fastrand::Rng,
    placed: u64,
    /// Prefix of this run's idempotency keys.
    run: String,
}

impl Customers {
    pub(crate) fn new(gateway: &str, seed: u64, tokens: Tokens) -> Self {
        let mut connector = HttpConnector::new();
        // An order is one small write. Nagle's algorithm would delay it until an earlier write is
        // acknowledged.
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            url: format!("{gateway}/v1/orders"),
            tokens,
            rng: fastrand::Rng::with_seed(seed),
            placed: 0,
            // A data directory may hold the keys of an earlier run.
            run: Uuid::now_v7().to_string(),
        }
    }

    /// Sets the prefix of the idempotency keys. The same prefix and seed give the same orders.
    pub(crate) fn with_keys(self, run: String) -> Self {
        Self { run, ..self }
    }

    /// Returns the next order. A few cannot succeed even without faults: pip's balance is 1.00, and
    /// the lamp is out of stock.
    pub(crate) fn order(&mut self) -> Order {
        let rng = &mut self.rng;
        let fate = rng.f64();
        let customer = if fate < 0.03 { "pip" } else { CUSTOMERS[rng.usize(..CUSTOMERS.len())] };
        let mut products = PRODUCTS;
        rng.shuffle(&mut products);
        let mut items: Vec<_> = products
            .iter()
            .take(rng.usize(1..=3))
            .map(|sku| json!({ "sku": sku, "quantity": rng.i64(1..=5) }))
            .collect();
        if fate > 0.98 {
            items.push(json!({ "sku": "lamp", "quantity": 1 }));
        }
        self.placed += 1;
        Order {
            client: self.client.clone(),
            url: self.url.clone(),
            key: format!("{}-{}", self.run, self.placed),
            token: customer.parse().map(|customer| self.tokens.issue(&customer, now_ms())).unwrap_or_default(),
            body: json!({ "customer": customer, "items": items }),
        }
    }
}

/// One order, ready to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
    token: String,
    body: Value,
}

/// When a customer sends the same order again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Repeat {
    /// While the answer is 202.
    WhilePending,
    /// While the answer is 202, lost or a 5xx: until the order is decided.
    UntilDecided,
}

/// What a customer saw of one order.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) answer: Answer,
    pub(crate) took: Duration,
    /// How many times the same order was sent again.
    pub(crate) repeats: usize,
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// 201, with the order's id.
    Confirmed(String),
    /// 202: not yet decided.
    Pending,
    /// An error with an order id: the order exists and is compensated.
    Cancelled(String, Refusal),
    /// An error without an order id: nothing was stored, or the gateway could not determine it.
    Refused(Refusal),
    /// No answer at all.
    Lost,
}

/// Why an order failed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// A short reason for statistics: the failure or the problem type, and the dependency.
    pub(crate) reason: String,
}

impl Order {
    pub(crate) async fn place(self, repeat: Repeat) -> Seen {
        let start = now();
        let mut repeats = 0;
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let answer = tokio::time::timeout(left, self.ask()).await.ok().flatten().unwrap_or(Answer::Lost);
            let again = match &answer {
                Answer::Pending => true,
                Answer::Lost => repeat == Repeat::UntilDecided,
                Answer::Refused(why) => repeat == Repeat::UntilDecided && why.status.is_server_error(),
                Answer::Confirmed(_) | Answer::Cancelled(..) => false,
            };
            let pause = PAUSE.0.saturating_mul(1 << repeats.min(16)).min(PAUSE.1).mul_f64(0.5 + fastrand::f64() / 2.0);
            if !again || start.elapsed() + pause > PATIENCE {
                return Seen { answer, took: start.elapsed(), repeats };
            }
            tokio::time::sleep(pause).await;
            repeats += 1;
        }
    }

    /// Sends the order once. `None` if the connection broke or the answer cannot be parsed.
    pub(crate) async fn ask(&self) -> Option<Answer> {
        let request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(IDEMPOTENCY_KEY, &self.key)
            .body(Full::from(self.body.to_string()))
            .ok()?;
        let response = self.client.request(request).await.ok()?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 64 * 1024).collect().await.ok()?.to_bytes();
        let body: Value = serde_json::from_slice(&body).ok()?;
        let id = |member: &str| body.get(member).and_then(Value::as_str).map(str::to_owned);
        Some(match status {
            StatusCode::CREATED => Answer::Confirmed(id("id")?),
            StatusCode::ACCEPTED => Answer::Pending,
            _ => {
                let refusal = Refusal::read(status, &body);
                match id("order_id") {
                    Some(id) => Answer::Cancelled(id, refusal),
                    None => Answer::Refused(refusal),
                }
            }
        })
    }
}

impl Refusal {
    /// Reads a problem+json body.
    fn read(status: StatusCode, problem: &Value) -> Self {
        let text = |member: &str| problem.get(member).and_then(Value::as_str);
        let kind = text("type").and_then(|uri| uri.rsplit('/').next()).filter(|kind| *kind != "about:blank");
        let what = text("failure").or(kind).unwrap_or_else(|| status.canonical_reason().unwrap_or("refused"));
        let reason = match text("dependency").filter(|dependency| !what.contains(dependency)) {
            Some(dependency) => format!("{what}: {dependency}"),
            None => what.to_owned(),
        };
        // The text comes from whatever server `--url` names, so its length is limited.
        Self { status, reason: reason.chars().take(60).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_few_words() {
        let reason = |problem| Refusal::read(StatusCode::SERVICE_UNAVAILABLE, &problem).reason;
        let kind = "https://buttress.example/problems/dependency-unavailable";
        assert_eq!(reason(json!({ "type": kind, "dependency": "order" })), "dependency-unavailable: order");
        assert_eq!(
            reason(json!({ "type": kind, "failure": "payment_timed_out", "dependency": "payment" })),
            "payment_timed_out"
        );
        assert_eq!(reason(json!({ "type": "about:blank" })), "Service Unavailable");
        assert_eq!(reason(json!(["not a problem"])), "Service Unavailable");
        assert_eq!(reason(json!({ "failure": "x".repeat(100_000) })).len(), 60);
    }

    #[test]
    fn the_same_seed_and_keys_are_the_same_orders() {
        let orders = |seed| {
            let mut customers = Customers::new("http://gateway", seed, Tokens::ephemeral()).with_keys("k".to_owned());
            std::array::from_fn::<_, 20, _>(|_| customers.order()).map(|order| (order.key, order.body.to_string()))
        };
        assert_eq!(orders(1), orders(1));
        assert_ne!(orders(1), orders(2));
    }
}
