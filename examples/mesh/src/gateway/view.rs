//! One order, aggregated from four services.
//!
//! The four are queried concurrently, so the response takes as long as the slowest of them, not
//! their sum. A service that cannot answer is listed under `missing` and the rest is still
//! returned: a payment outage must not hide from a customer that the order exists.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Status;

use super::api::Upstreams;
use super::auth::Caller;
use crate::inventory::proto::GetReservationRequest;
use crate::order::unknown_order;
use crate::payment::proto::GetPaymentRequest;
use crate::problem::{Json, Problem};
use crate::upstream::{Kind, Upstream};

/// How long each part may take, with its body. Longer than the call of a healthy service with its
/// retries, and short for a customer who looks at a page: a service that sends a head and then
/// stalls does not hold up the others' parts.
const PART: Duration = Duration::from_millis(2500);

/// The parts of the caller's order. An order of another customer is answered like one that does not
/// exist.
pub(super) async fn order(upstreams: Upstreams, caller: &Caller, id: &str) -> Result<Json<Value>, Problem> {
    let Upstreams { orders, mut payment, mut inventory, shipping, .. } = upstreams;
    let (order_path, shipment_path) = (format!("/v1/orders/{id}"), format!("/v1/shipments/{id}"));
    let order_id = || id.to_owned();
    let (order, payment, reservation, shipment) = tokio::join!(
        in_time("order", orders.get(&order_path)),
        in_time("payment", async {
            known("payment", payment.get_payment(GetPaymentRequest { order_id: order_id() }).await)
        }),
        in_time("inventory", async {
            known("inventory", inventory.get_reservation(GetReservationRequest { order_id: order_id() }).await)
        }),
        in_time("shipping", shipping.get(&shipment_path)),
    );
    let payment = payment.map(|found| {
        let found = found?;
        Some(json!({ "state": found.state, "amount_cents": found.amount_cents, "customer": found.customer }))
    });
    let reservation = reservation.map(|found| Some(json!({ "state": found?.state })));
    let parts = [("order", order), ("payment", payment), ("inventory", reservation), ("shipping", shipment)];
    match owner(&parts) {
        Some(owner) if owner == caller.0.as_str() => {}
        Some(_) => return Err(unknown_order(id)),
        None => return Err(why_unknown(parts).map_or_else(|| unknown_order(id), Problem::from)),
    }
    let mut answer = json!({ "id": id });
    let mut missing = Vec::new();
    for (service, part) in parts {
        match part {
            Ok(value) => answer[service] = value.unwrap_or(Value::Null),
            Err(upstream) => {
                tracing::warn!(order = id, %upstream, "partial answer");
                answer[service] = Value::Null;
                missing.push(service);
            }
        }
    }
    answer["missing"] = json!(missing);
    Ok(Json(answer))
}

type Part = (&'static str, Result<Option<Value>, Upstream>);

/// The customer of an order, from the first part that names one. The order service knows it best;
/// payment and shipping have been told, and answer when the order service cannot.
fn owner(parts: &[Part]) -> Option<&str> {
    parts.iter().find_map(|(_, part)| {
        let customer = part.as_ref().ok()?.as_ref()?.get("customer")?.as_str()?;
        Some(customer).filter(|customer| !customer.is_empty())
    })
}

/// Why no part names a customer: a service that did not answer, or `None` if there is no such
/// order, which only the order service can tell.
fn why_unknown(parts: [Part; 4]) -> Option<Upstream> {
    parts.into_iter().find_map(|(service, part)| match part {
        Ok(None) if service == "order" => Some(None),
        Ok(_) => None,
        Err(upstream) => Some(Some(upstream)),
    })?
}

/// Limits the time of one part, from its request to the end of its body.
async fn in_time<T>(service: &'static str, part: impl Future<Output = Result<T, Upstream>>) -> Result<T, Upstream> {
    tokio::time::timeout(PART, part).await.unwrap_or_else(|_| Err(Upstream::timed_out(service)))
}

/// Converts a gRPC answer. NOT_FOUND is `None`, not an error: the order has not reached that
/// service yet.
fn known<T>(service: &'static str, answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Upstream> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) => match Upstream::from_status(service, &status) {
            Upstream { kind: Kind::NotFound, .. } => Ok(None),
            upstream => Err(upstream),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(service: &'static str, customer: &str) -> Part {
        (service, Ok(Some(json!({ "customer": customer }))))
    }

    fn down(service: &'static str) -> Part {
        (service, Err(Upstream::timed_out(service)))
    }

    #[test]
    fn an_order_belongs_to_the_customer_whom_its_parts_name() {
        assert_eq!(owner(&[part("order", "alice"), part("payment", "bob")]), Some("alice"));
        assert_eq!(owner(&[down("order"), part("payment", ""), part("shipping", "alice")]), Some("alice"));
        assert_eq!(owner(&[down("order"), ("payment", Ok(None)), ("inventory", Ok(Some(json!({}))))]), None);
    }

    #[test]
    fn an_order_that_the_order_service_does_not_know_does_not_exist() {
        let parts = |order| [order, ("payment", Ok(None)), ("inventory", Ok(None)), down("shipping")];
        assert!(why_unknown(parts(("order", Ok(None)))).is_none());
        assert_eq!(why_unknown(parts(down("order"))).unwrap().service, "order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_stalls_is_late_and_the_others_are_not() {
        let start = crate::clock::now();
        let stalled = in_time("payment", std::future::pending::<Result<(), Upstream>>());
        let (stalled, other) = tokio::join!(stalled, in_time("order", async { Ok(1) }));
        assert_eq!((stalled.unwrap_err().kind, other.unwrap()), (Kind::TimedOut, 1));
        assert_eq!(start.elapsed(), PART);
    }
}
