//! The customers: they order at random, from a seed, and remember what they were told.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::now;
use crate::order::IDEMPOTENCY_KEY;

/// Longer than the gateway may take, several times: whoever waits so long has been forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two requests about the same order: it doubles up to the latter, or a service that comes back after a pause would
/// find all that were refused meanwhile at its door, four times a second each.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

const CUSTOMERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const PRODUCTS: [&str; 4] = ["tea", "mug", "kettle", "honey"];

#[derive(Debug)]
pub(super) struct Customers {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    rng: fastrand::Rng,
    placed: u64,
    /// Makes the keys of this run its own: a data directory may have seen another one.
    run: Uuid,
}

impl Customers {
    pub(super) fn new(gateway: String, seed: u64) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: format!("{gateway}/v1/orders"),
            rng: fastrand::Rng::with_seed(seed),
            placed: 0,
            run: Uuid::now_v7(),
        }
    }

    /// The next order. A few cannot succeed even on a good day: Pip has no money, and there are no lamps.
    pub(super) fn order(&mut self) -> Order {
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
            body: json!({ "customer": customer, "items": items }),
        }
    }
}

/// One order, ready to be placed.
#[derive(Debug)]
pub(super) struct Order {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
    body: Value,
}

/// What a customer does when there is no answer, or one that decides nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Temper {
    /// Gives up.
    Polite,
    /// Asks again with the same key until it is decided: what a client does that must know.
    Stubborn,
}

/// What a customer has seen of an order.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) answer: Answer,
    pub(super) took: Duration,
    /// How often the same order was sent again.
    pub(super) repeats: usize,
}

#[derive(Debug)]
pub(super) enum Answer {
    /// 201, with the order's id.
    Confirmed(String),
    /// 202: not decided yet.
    Pending,
    /// An error about an order that exists, with its id: it will be undone.
    Cancelled(StatusCode, String),
    /// An error without an order: nothing was stored, or the gateway could not know.
    Refused(StatusCode),
    /// No answer at all.
    Lost,
}

impl Order {
    pub(super) async fn place(self, temper: Temper) -> Seen {
        let start = now();
        let mut repeats = 0;
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let answer = tokio::time::timeout(left, self.ask()).await.ok().flatten().unwrap_or(Answer::Lost);
            let again = match &answer {
                Answer::Pending => true,
                Answer::Lost => temper == Temper::Stubborn,
                Answer::Refused(status) => temper == Temper::Stubborn && status.is_server_error(),
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

    async fn ask(&self) -> Option<Answer> {
        let request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
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
            _ => id("order_id").map_or(Answer::Refused(status), |id| Answer::Cancelled(status, id)),
        })
    }
}
