//! Simulated customers, who repeat an order until it is decided.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use mesh::demo::books::Acknowledged;
use mesh::launch::Name;
use mesh::order::IDEMPOTENCY_KEY;
use mesh::stack::HttpChannel;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::faults::Times;
use crate::host::{Town, address};

/// Number of concurrent customers.
const CUSTOMERS: u64 = 4;
/// Number of orders per customer after that. Circuits that got no calls meanwhile probe with the
/// first of them; the last one must succeed.
const LAST: u64 = 4;

/// The customers' observations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diary(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    acknowledged: Acknowledged,
    /// Orders without a final answer so far.
    open: Vec<String>,
    lines: Vec<String>,
    longest: Duration,
    wrong: Vec<String>,
}

/// The answer to one request.
enum Answer {
    Confirmed(String),
    Cancelled(String, String),
    /// Not decided, or unknown: the request is repeated.
    Unknown(String),
    /// An answer that must not occur.
    Wrong(String),
}

pub(crate) async fn shop(town: Town, times: Times, diary: Diary) -> turmoil::Result {
    let channel = town.gateway.order.http();
    join_all((0..CUSTOMERS).map(|number| {
        let rng = fastrand::Rng::with_seed(town.seed.wrapping_mul(1000).wrapping_add(number));
        Customer { number, channel: channel.clone(), rng, diary: diary.clone() }.shop(times)
    }))
    .await;
    Ok(())
}

struct Customer {
    number: u64,
    channel: HttpChannel,
    rng: fastrand::Rng,
    diary: Diary,
}

impl Customer {
    async fn shop(mut self, times: Times) {
        let mut order = 0;
        self.pause(1000).await;
        while now() < times.busy {
            order += 1;
            self.order(order, false).await;
            self.pause(400).await;
        }
        tokio::time::sleep(times.well.saturating_sub(now())).await;
        for last in 1..=LAST {
            self.order(order + last, last == LAST).await;
            self.pause(500).await;
        }
    }

    async fn pause(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..most))).await;
    }

    /// Places an order and repeats it until it is decided. A few orders cannot succeed even without
    /// faults.
    async fn order(&mut self, order: u64, well: bool) {
        let (no_money, no_stock) = (self.rng.u32(..20) == 0, self.rng.u32(..20) == 0);
        let customer = if no_money { "pip" } else { ["alice", "bob", "carol", "dave"][self.rng.usize(..4)] };
        let sku = if no_stock { "lamp" } else { ["tea", "mug", "kettle"][self.rng.usize(..3)] };
        let items = json!([{ "sku": sku, "quantity": self.rng.u32(1..4) }, { "sku": "honey", "quantity": 1 }]);
        let body = json!({ "customer": customer, "items": items }).to_string();
        let key = format!("{}-{order}", self.number);
        self.diary.open(&key);
        loop {
            let request = Request::post(format!("{}/v1/orders", address(Name::Order).url()))
                .header(header::CONTENT_TYPE, "application/json")
                .header(IDEMPOTENCY_KEY, &key)
                .body(Full::new(Bytes::from(body.clone())))
                .unwrap();
            let asked = now();
            let answer = match self.channel.clone().oneshot(request).await {
                Ok(response) => read(response).await,
                Err(error) => Answer::Unknown(error.to_string()),
            };
            let ends = matches!(answer, Answer::Confirmed(_) | Answer::Cancelled(..));
            if let (true, Answer::Cancelled(_, why)) = (well && !no_money && !no_stock, &answer) {
                self.diary.wrong(format!("{key} was cancelled although no fault is active: {why}"));
            }
            self.diary.write(&key, asked, answer);
            if ends {
                return;
            }
            self.pause(700).await;
        }
    }
}

async fn read(response: Response<Body>) -> Answer {
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return Answer::Unknown("broken off".into()) };
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    match (status, text("id"), text("order_id")) {
        (StatusCode::CREATED, Some(id), _) => Answer::Confirmed(id),
        (StatusCode::ACCEPTED, Some(_), _) => Answer::Unknown("pending".into()),
        (_, _, Some(id)) => Answer::Cancelled(id, text("failure").unwrap_or_default()),
        (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, ..) => {
            Answer::Unknown(status.as_u16().to_string())
        }
        _ => Answer::Wrong(format!("{status}: {body}")),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Confirmed(_) => f.write_str("confirmed"),
            Self::Cancelled(_, why) => write!(f, "cancelled: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
            Self::Wrong(what) => write!(f, "wrong: {what}"),
        }
    }
}

/// Virtual time since the simulation began.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Diary {
    fn open(&self, key: &str) {
        self.pages(|pages| pages.open.push(key.to_owned()));
    }

    fn wrong(&self, what: String) {
        self.pages(|pages| pages.wrong.push(what));
    }

    fn write(&self, key: &str, asked: Duration, answer: Answer) {
        let took = now() - asked;
        self.pages(|pages| {
            pages.longest = pages.longest.max(took);
            pages.lines.push(format!("{:>6} ms {key}: {answer}, after {} ms", now().as_millis(), took.as_millis()));
            match answer {
                Answer::Confirmed(id) => pages.acknowledged.confirmed.push(id),
                Answer::Cancelled(id, _) => pages.acknowledged.cancelled.push(id),
                Answer::Unknown(_) => return,
                Answer::Wrong(what) => return pages.wrong.push(format!("{key} got {what}")),
            }
            pages.open.retain(|other| other != key);
        });
    }

    pub(crate) fn acknowledged(&self) -> Acknowledged {
        self.pages(|pages| pages.acknowledged.clone())
    }

    pub(crate) fn unanswered(&self) -> Vec<String> {
        self.pages(|pages| pages.open.clone())
    }

    /// All observations, in the order in which they happened.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.pages(|pages| pages.lines.clone())
    }

    /// The longest duration of a call.
    pub(crate) fn longest(&self) -> Duration {
        self.pages(|pages| pages.longest)
    }

    pub(crate) fn wrongs(&self) -> Vec<String> {
        self.pages(|pages| pages.wrong.clone())
    }

    fn pages<T>(&self, read: impl FnOnce(&mut Pages) -> T) -> T {
        read(&mut self.0.lock().unwrap())
    }
}
