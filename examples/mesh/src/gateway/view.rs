//! One order, aggregated from four services.
//!
//! The four are queried concurrently, so the response takes as long as the slowest of them, not
//! their sum. A service that cannot answer is listed under `missing` and the rest is still
//! returned: a payment outage must not hide from a customer that the order exists.

use serde_json::{Value, json};
use tonic::Status;

use super::api::Upstreams;
use crate::inventory::proto::GetReservationRequest;
use crate::order::unknown_order;
use crate::payment::proto::GetPaymentRequest;
use crate::problem::{Json, Problem};
use crate::upstream::{Kind, Upstream};

pub(super) async fn order(upstreams: Upstreams, id: &str) -> Result<Json<Value>, Problem> {
    let Upstreams { orders, mut payment, mut inventory, shipping, .. } = upstreams;
    let (order_path, shipment_path) = (format!("/v1/orders/{id}"), format!("/v1/shipments/{id}"));
    let (order, payment, reservation, shipment) = tokio::join!(
        orders.get(&order_path),
        payment.get_payment(GetPaymentRequest { order_id: id.to_owned() }),
        inventory.get_reservation(GetReservationRequest { order_id: id.to_owned() }),
        shipping.get(&shipment_path),
    );
    let payment = known("payment", payment)
        .map(|p| p.map(|payment| json!({ "state": payment.state, "amount_cents": payment.amount_cents })));
    let reservation =
        known("inventory", reservation).map(|r| r.map(|reservation| json!({ "state": reservation.state })));

    // Only the order service can tell whether an order exists.
    if matches!(order, Ok(None)) {
        return Err(unknown_order(id));
    }
    let parts = [("order", order), ("payment", payment), ("inventory", reservation), ("shipping", shipment)];
    let no_answer = parts.iter().all(|(_, part)| !matches!(part, Ok(Some(_))));
    let mut answer = json!({ "id": id });
    let mut missing = Vec::new();
    for (service, part) in parts {
        match part {
            Ok(value) => answer[service] = value.unwrap_or(Value::Null),
            Err(upstream) if no_answer => return Err(upstream.into()),
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
