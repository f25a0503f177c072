//! The REST API of the order service.
//!
//! | | |
//! |---|---|
//! | `POST /v1/orders` | places an order; `Idempotency-Key` makes it safe to repeat |
//! | `GET /v1/orders/{id}` | one order |

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as AxumState};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use buttress_durable::Database;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use super::domain::{Draft, Failure, NewOrder, Order};
use super::place::{Desk, Placed, Refused};
use crate::problem::{Json, Problem};
use crate::upstream::DEFAULT_PAUSE;

/// Maximum length of an idempotency key, in characters. Keys are stored, so unlimited keys could
/// fill the database.
const MAX_KEY: usize = 200;

/// The `Idempotency-Key` header, as in
/// <https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) fn routes<D: Database>(desk: Arc<Desk<D>>) -> Router {
    Router::new().route("/v1/orders", post(place::<D>)).route("/v1/orders/{id}", get(show::<D>)).with_state(desk)
}

async fn place<D: Database>(
    AxumState(desk): AxumState<Arc<Desk<D>>>,
    headers: HeaderMap,
    Json(draft): Json<Draft>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?;
    let new = NewOrder::parse(draft).map_err(|errors| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-order",
            "The order is not valid",
            "see errors for what to change",
        )
        .with("errors", json!(errors))
    })?;
    answer(desk.place(new, key.as_deref()).await?)
}

async fn show<D: Database>(
    AxumState(desk): AxumState<Arc<Desk<D>>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let order = desk.store.order(&id).await.map_err(|error| internal(&error))?;
    Ok(Json(view(&order.ok_or_else(|| unknown_order(&id))?)).into_response())
}

/// Problem for an unknown order. The gateway also uses it, for ids that are not UUIDs.
pub fn unknown_order(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-order", "There is no such order", format!("no order has the id {id}"))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::from_status(
            StatusCode::BAD_REQUEST,
            format!("Idempotency-Key must be 1 to {MAX_KEY} printable ASCII characters"),
        )),
    }
}

fn view(order: &Order) -> serde_json::Value {
    json!({
        "id": order.id,
        "customer": order.customer,
        "total_cents": order.total_cents,
        "state": order.state.as_str(),
        "failure": order.failure.map(Failure::as_str),
    })
}

fn answer(placed: Placed) -> Result<Response, Problem> {
    match placed {
        Placed::Confirmed(order) => Ok(located(StatusCode::CREATED, &order)),
        Placed::Failed(order, failure) => Err(failed(&order.id, failure)),
        // Not a failure: the order is stored and will be decided. `Location` has the URL to poll;
        // repeating the request waits again.
        Placed::Pending(order) => {
            let mut response = located(StatusCode::ACCEPTED, &order);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(DEFAULT_PAUSE.as_secs()));
            Ok(response)
        }
    }
}

fn located(status: StatusCode, order: &Order) -> Response {
    let mut response = (status, Json(view(order))).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/orders/{}", order.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The customer's answer for a failed order. It depends only on stored data, so that a repeated
/// request gets the same answer.
fn failed(order_id: &str, failure: Failure) -> Problem {
    let (status, kind, title, detail) = match failure {
        Failure::OutOfStock => (
            StatusCode::CONFLICT,
            "out-of-stock",
            "Not enough in stock",
            "at least one line cannot be met; nothing was charged",
        ),
        Failure::Declined => (
            StatusCode::PAYMENT_REQUIRED,
            "payment-declined",
            "The payment was declined",
            "the account does not cover the total; nothing was charged",
        ),
        Failure::PaymentTimedOut | Failure::InventoryTimedOut => (
            StatusCode::GATEWAY_TIMEOUT,
            "dependency-timeout",
            "A backend service did not answer in time",
            "the order is cancelled, and its effects are undone. To try again, use a new idempotency key",
        ),
        Failure::PaymentUnavailable | Failure::InventoryUnavailable | Failure::Interrupted => (
            StatusCode::SERVICE_UNAVAILABLE,
            "dependency-unavailable",
            "A backend service is unavailable",
            "the order is cancelled, and its effects are undone. To try again, use a new idempotency key",
        ),
    };
    let problem =
        Problem::new(status, kind, title, detail).with("order_id", order_id).with("failure", failure.as_str());
    let problem = match failure.dependency() {
        Some(service) => problem.caused_by(service),
        None => problem,
    };
    if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(DEFAULT_PAUSE) } else { problem }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::UnknownProducts(skus) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unknown-product",
                "There is no such product",
                format!("not in our catalogue: {}", skus.join(", ")),
            )
            .with("skus", skus),
            Refused::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The idempotency key belongs to another order",
                "use a new key for a new order, and the same body for the same key",
            ),
            Refused::Unpriced(upstream) => upstream.into(),
            Refused::Store(_) | Refused::Saga(_) | Refused::Lost => internal(&refused),
        }
    }
}

fn internal(error: &(dyn Error + 'static)) -> Problem {
    Problem::failed("order", error)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::order::State;
    use crate::problem::FAILED_DEPENDENCY;
    use crate::upstream::Upstream;

    async fn told(problem: Problem) -> (Response<()>, Value) {
        let (parts, body) = problem.into_response().into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        (Response::from_parts(parts, ()), body)
    }

    /// Status, last segment of the type, dependency, pause.
    fn facts(response: &Response<()>, body: &Value) -> (u16, String, Option<String>, Option<String>) {
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let kind = body["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        (response.status().as_u16(), kind, header(FAILED_DEPENDENCY), header(header::RETRY_AFTER))
    }

    #[tokio::test]
    async fn every_failure_has_an_answer_of_its_own() {
        let pause = Some("1");
        let cases = [
            (Failure::OutOfStock, 409, "out-of-stock", None, None),
            (Failure::Declined, 402, "payment-declined", None, None),
            (Failure::PaymentTimedOut, 504, "dependency-timeout", Some("payment"), None),
            (Failure::InventoryTimedOut, 504, "dependency-timeout", Some("inventory"), None),
            (Failure::PaymentUnavailable, 503, "dependency-unavailable", Some("payment"), pause),
            (Failure::InventoryUnavailable, 503, "dependency-unavailable", Some("inventory"), pause),
            (Failure::Interrupted, 503, "dependency-unavailable", None, pause),
        ];
        for (failure, status, kind, dependency, pause) in cases {
            let (response, body) = told(super::failed("o1", failure)).await;
            let expected = (status, kind.to_owned(), dependency.map(str::to_owned), pause.map(str::to_owned));
            assert_eq!(facts(&response, &body), expected, "{failure}");
            assert_eq!((&body["order_id"], &body["failure"]), (&json!("o1"), &json!(failure.as_str())));
        }
    }

    #[tokio::test]
    async fn what_was_not_stored_is_refused_without_an_order() {
        let unpriced = Upstream { retry_after: Some(DEFAULT_PAUSE * 3), ..Upstream::broken("inventory", "") };
        let unpriced = Upstream { kind: crate::upstream::Kind::Unavailable, ..unpriced };
        let cases = [
            (Refused::UnknownProducts(vec!["a".into(), "b".into()]), 422, "unknown-product", None, None),
            (Refused::KeyReused, 422, "idempotency-key-reused", None, None),
            (Refused::Unpriced(unpriced), 503, "dependency-unavailable", Some("inventory"), Some("3")),
            (Refused::Lost, 500, "about:blank", None, None),
        ];
        for (refused, status, kind, dependency, pause) in cases {
            let (response, body) = told(refused.into()).await;
            let expected = (status, kind.to_owned(), dependency.map(str::to_owned), pause.map(str::to_owned));
            assert_eq!(facts(&response, &body), expected);
            assert!(body.get("order_id").is_none(), "{body}");
        }
        let (_, body) = told(Refused::UnknownProducts(vec!["a".into(), "b".into()]).into()).await;
        assert_eq!(body["skus"], json!(["a", "b"]));
    }

    #[tokio::test]
    async fn an_order_is_shown_as_it_is_stored() {
        let order =
            |state, failure| Order { id: "o1".into(), customer: "alice".into(), total_cents: 790, state, failure };
        let shown = json!({
            "id": "o1", "customer": "alice", "total_cents": 790, "state": "cancelled", "failure": "declined"
        });
        assert_eq!(view(&order(State::Cancelled, Some(Failure::Declined))), shown);
        let confirmed = answer(Placed::Confirmed(order(State::Confirmed, None))).unwrap();
        let pending = answer(Placed::Pending(order(State::Pending, None))).unwrap();
        for (response, status, pause) in [(confirmed, 201, None), (pending, 202, Some("1"))] {
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[header::LOCATION], "/v1/orders/o1");
            assert_eq!(response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap()), pause);
        }
    }

    #[test]
    fn a_key_has_1_to_200_printable_characters() {
        let key = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            idempotency_key(&HeaderMap::from_iter([(IDEMPOTENCY_KEY, value)])).map_err(|problem| problem.status())
        };
        assert_eq!(idempotency_key(&HeaderMap::new()).ok(), Some(None));
        assert_eq!(key(b"k"), Ok(Some("k".to_owned())));
        assert_eq!(key(&[b'k'; 200]), Ok(Some("k".repeat(200))));
        for wrong in [&b""[..], &[b'k'; 201], b"\xe9"] {
            assert_eq!(key(wrong), Err(StatusCode::BAD_REQUEST), "{wrong:?}");
        }
    }
}
