//! The gRPC API of the payment service: validates and translates, without business rules.

use std::sync::Arc;

use buttress_durable::Database;
use tonic::{Request, Response, Status};

use super::domain::{Charge, ChargeOutcome, Payment};
use super::store::{Store, StoreError};
use crate::input::{Customer, Key, OrderId, field};
use crate::problem::grpc_failed;

/// Generated from `proto/payment/v1/payment.proto`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("payment.v1");
}

use proto::payment_service_server::PaymentService;

#[derive(Debug)]
pub(super) struct Api<D: Database> {
    store: Arc<Store<D>>,
}

impl<D: Database> Api<D> {
    pub(super) fn new(store: Arc<Store<D>>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl<D: Database> PaymentService for Api<D> {
    async fn charge(&self, request: Request<proto::ChargeRequest>) -> Result<Response<proto::ChargeResponse>, Status> {
        let charge = parse_charge(request.into_inner())?;
        let outcome = self.store.charge(&charge).await?;
        tracing::info!(order = charge.order_id, key = charge.key, cents = charge.amount_cents, ?outcome, "charge");
        let outcome = match outcome {
            ChargeOutcome::Charged => proto::ChargeOutcome::Charged,
            ChargeOutcome::Declined => proto::ChargeOutcome::Declined,
            ChargeOutcome::Revoked => proto::ChargeOutcome::Revoked,
        };
        Ok(Response::new(proto::ChargeResponse { outcome: outcome.into() }))
    }

    async fn refund(&self, request: Request<proto::RefundRequest>) -> Result<Response<proto::RefundResponse>, Status> {
        let proto::RefundRequest { key, order_id } = request.into_inner();
        let (key, order_id): (Key, OrderId) = (field("key", &key)?, field("order_id", &order_id)?);
        let amount_cents = self.store.refund(key.as_str(), order_id.as_str()).await?;
        tracing::info!(order = %order_id, %key, cents = amount_cents, "refund");
        Ok(Response::new(proto::RefundResponse { amount_cents }))
    }

    async fn get_payment(
        &self,
        request: Request<proto::GetPaymentRequest>,
    ) -> Result<Response<proto::GetPaymentResponse>, Status> {
        let order_id: OrderId = field("order_id", &request.into_inner().order_id)?;
        let payment = self.store.payment(order_id.as_str()).await.map_err(|error| grpc_failed("payment", &error))?;
        let Payment { state, amount_cents, customer } =
            payment.ok_or_else(|| Status::not_found(format!("no payment for order {order_id}")))?;
        Ok(Response::new(proto::GetPaymentResponse { state, amount_cents, customer }))
    }
}

fn parse_charge(request: proto::ChargeRequest) -> Result<Charge, Status> {
    let proto::ChargeRequest { key, order_id, customer, amount_cents } = request;
    let (key, order_id): (Key, OrderId) = (field("key", &key)?, field("order_id", &order_id)?);
    let customer: Customer = field("customer", &customer)?;
    if amount_cents <= 0 {
        return Err(Status::invalid_argument("amount_cents must be positive"));
    }
    Ok(Charge { key: key.into(), order_id: order_id.into(), customer: customer.into(), amount_cents })
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::KeyReused { .. } => Self::already_exists(error.to_string()),
            StoreError::Write(error) => grpc_failed("payment", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use buttress_durable::DbError;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_charge_is_translated_field_by_field_and_each_is_checked() {
        let request = proto::ChargeRequest {
            key: "k".to_owned(),
            order_id: "o".to_owned(),
            customer: "c".to_owned(),
            amount_cents: 1,
        };
        let Charge { key, order_id, customer, amount_cents } = parse_charge(request.clone()).unwrap();
        assert_eq!((key.as_str(), order_id.as_str(), customer.as_str(), amount_cents), ("k", "o", "c", 1));
        for (wrong, field) in [
            (proto::ChargeRequest { key: String::new(), ..request.clone() }, "key must"),
            (proto::ChargeRequest { order_id: "o\0".to_owned(), ..request.clone() }, "order_id must"),
            (proto::ChargeRequest { customer: "a\0".to_owned(), ..request.clone() }, "customer must"),
            (proto::ChargeRequest { amount_cents: 0, ..request.clone() }, "amount_cents must"),
            (proto::ChargeRequest { amount_cents: -1, ..request }, "amount_cents must"),
        ] {
            let status = parse_charge(wrong).unwrap_err();
            assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{status:?}");
        }
    }

    #[test]
    fn a_reused_key_is_final_and_a_broken_database_is_not_and_keeps_its_secrets() {
        let reused = Status::from(StoreError::KeyReused { key: "k".to_owned() });
        assert_eq!(reused.code(), Code::AlreadyExists);
        let broken = DbError::Unreadable { what: "password", value: "hunter2".to_owned() };
        let status = Status::from(StoreError::from(broken));
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the payment database failed"));
    }
}
