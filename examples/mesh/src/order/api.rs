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
use crate::input::{FieldError, Key, OrderId};
use crate::problem::{Json, Problem};
use crate::upstream::DEFAULT_PAUSE;

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
    let new = NewOrder::parse(draft).map_err(|errors| invalid_order(&errors))?;
    answer(desk.place(new, key.as_ref()).await?)
}

async fn show<D: Database>(
    AxumState(desk): AxumState<Arc<Desk<D>>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: OrderId = id.parse().map_err(|_| unknown_order(&id))?;
    let order = desk.store.order(id.as_str()).await.map_err(|error| internal(&error))?;
    let id = id.as_str();
    Ok(Json(view(&order.ok_or_else(|| unknown_order(id))?)).into_response())
}

/// Problem for an unknown order. The gateway also uses it, for ids that are not UUIDs.
pub fn unknown_order(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-order", "There is no such order", format!("no order has the id {id}"))
}

/// Problem for an order that violates rules, with all violations.
pub fn invalid_order(errors: &[FieldError]) -> Problem {
    Problem::invalid("invalid-order", "The order is not valid", errors)
}

/// Reads the `Idempotency-Key` header.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<Key>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().parse();
    key.map(Some).map_err(|rule| Problem::from_status(StatusCode::BAD_REQUEST, format!("Idempotency-Key {rule}")))
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
///
/// It is final, and its status says so to every client, proxy and retry layer: a 4xx is not
/// repeated. Of a 503 or 504 they would expect another answer to the same request, which cannot
/// come, because the key belongs to the order that was cancelled. 424 (RFC 4918, section 11.4) is
/// the status of a request that was carried out and failed because another action failed.
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
        Failure::PaymentTimedOut
        | Failure::InventoryTimedOut
        | Failure::PaymentUnavailable
        | Failure::InventoryUnavailable
        | Failure::Interrupted => (
            StatusCode::FAILED_DEPENDENCY,
            "order-failed",
            "The order failed",
            "the order is cancelled, and its effects are undone. To try again, use a new idempotency key",
        ),
    };
    let problem =
        Problem::new(status, kind, title, detail).with("order_id", order_id).with("failure", failure.as_str());
    match failure.dependency() {
        Some(service) => problem.caused_by(service),
        None => problem,
    }
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
            Refused::Busy => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-orders",
                "Too many orders are under way",
                "nothing was stored; try again later",
            )
            .retry_after(DEFAULT_PAUSE)
            .rejected("too_many_orders"),
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
    async fn every_failure_has_an_answer_that_is_final() {
        let cases = [
            (Failure::OutOfStock, 409, "out-of-stock", None),
            (Failure::Declined, 402, "payment-declined", None),
            (Failure::PaymentTimedOut, 424, "order-failed", Some("payment")),
            (Failure::InventoryTimedOut, 424, "order-failed", Some("inventory")),
            (Failure::PaymentUnavailable, 424, "order-failed", Some("payment")),
            (Failure::InventoryUnavailable, 424, "order-failed", Some("inventory")),
            (Failure::Interrupted, 424, "order-failed", None),
        ];
        for (failure, status, kind, dependency) in cases {
            let (response, body) = told(super::failed("o1", failure)).await;
            // Without a pause: the answer is final.
            let expected = (status, kind.to_owned(), dependency.map(str::to_owned), None);
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
            (Refused::Busy, 503, "too-many-orders", None, Some("1")),
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
        assert_eq!(key(b"k"), Ok(Some("k".parse().unwrap())));
        assert_eq!(key(&[b'k'; 200]), Ok(Some("k".repeat(200).parse().unwrap())));
        for wrong in [&b""[..], &[b'k'; 201], b"\xe9", b"a b"] {
            assert_eq!(key(wrong), Err(StatusCode::BAD_REQUEST), "{wrong:?}");
        }
    }
}
