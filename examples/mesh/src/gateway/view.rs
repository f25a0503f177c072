//! One order, seen from four services.
//!
//! The four are asked at the same time, so the answer takes as long as the slowest of them, not their sum. What one
//! cannot tell is named under `missing`, and the rest is still an answer: a payment service that is down must not hide
//! from a customer that the order exists.

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

    // The order service alone knows which orders exist.
    if matches!(order, Ok(None)) {
        return Err(unknown_order(id));
    }
    let parts = [("order", order), ("payment", payment), ("inventory", reservation), ("shipping", shipment)];
    let nobody_knows = parts.iter().all(|(_, part)| !matches!(part, Ok(Some(_))));
    let mut answer = json!({ "id": id });
    let mut missing = Vec::new();
    for (service, part) in parts {
        match part {
            Ok(value) => answer[service] = value.unwrap_or(Value::Null),
            Err(upstream) if nobody_knows => return Err(upstream.into()),
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

/// "Not found" is knowledge: the order has not come that far.
fn known<T>(service: &'static str, answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Upstream> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) => match Upstream::from_status(service, &status) {
            Upstream { kind: Kind::NotFound, .. } => Ok(None),
            upstream => Err(upstream),
        },
    }
}
