//! Clients of payment and inventory for the order service: the generated clients, with typed
//! outcomes.

use tonic::Request;

use super::domain::NewLine;
use crate::inventory::proto as inv;
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::payment::proto as pay;
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::stack::GrpcChannel;
use crate::upstream::Upstream;

#[derive(Clone, Debug)]
pub(super) struct Payment {
    client: PaymentServiceClient<GrpcChannel>,
}

#[derive(Clone, Debug)]
pub(super) struct Inventory {
    client: InventoryServiceClient<GrpcChannel>,
}

/// The outcome of a step that a participant may reject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Done,
    /// Out of stock, or declined: a business outcome, not a fault.
    TurnedDown,
    /// The step was compensated before it ran.
    Revoked,
}

// `key` is the saga's key. It is the same on every attempt, so that the participant can tell a
// retry from a new order.

impl Payment {
    pub(super) fn new(channel: GrpcChannel) -> Self {
        Self { client: PaymentServiceClient::new(channel) }
    }

    pub(super) async fn charge(
        &self,
        key: &str,
        order_id: &str,
        customer: &str,
        amount_cents: i64,
    ) -> Result<Answer, Upstream> {
        let request = pay::ChargeRequest {
            key: key.to_owned(),
            order_id: order_id.to_owned(),
            customer: customer.to_owned(),
            amount_cents,
        };
        let answer =
            self.client.clone().charge(Request::new(request)).await.map_err(|status| failed("payment", &status))?;
        match answer.into_inner().outcome() {
            pay::ChargeOutcome::Charged => Ok(Answer::Done),
            pay::ChargeOutcome::Declined => Ok(Answer::TurnedDown),
            pay::ChargeOutcome::Revoked => Ok(Answer::Revoked),
            pay::ChargeOutcome::Unspecified => Err(Upstream::broken("payment", "charge without an outcome")),
        }
    }

    pub(super) async fn refund(&self, key: &str, order_id: &str) -> Result<(), Upstream> {
        let request = pay::RefundRequest { key: key.to_owned(), order_id: order_id.to_owned() };
        self.client.clone().refund(Request::new(request)).await.map_err(|status| failed("payment", &status)).map(drop)
    }
}

impl Inventory {
    pub(super) fn new(channel: GrpcChannel) -> Self {
        Self { client: InventoryServiceClient::new(channel) }
    }

    /// Returns the products with these SKUs. Unknown SKUs are left out.
    pub(super) async fn products(&self, skus: Vec<String>) -> Result<Vec<inv::Product>, Upstream> {
        let request = inv::ListProductsRequest { skus };
        let answer = self.client.clone().list_products(Request::new(request)).await;
        Ok(answer.map_err(|status| failed("inventory", &status))?.into_inner().products)
    }

    pub(super) async fn reserve(&self, key: &str, order_id: &str, lines: &[NewLine]) -> Result<Answer, Upstream> {
        let request = inv::ReserveRequest {
            key: key.to_owned(),
            order_id: order_id.to_owned(),
            lines: lines.iter().map(|line| inv::Line { sku: line.sku.clone(), quantity: line.quantity }).collect(),
        };
        let answer =
            self.client.clone().reserve(Request::new(request)).await.map_err(|status| failed("inventory", &status))?;
        match answer.into_inner().outcome() {
            inv::ReserveOutcome::Reserved => Ok(Answer::Done),
            inv::ReserveOutcome::OutOfStock => Ok(Answer::TurnedDown),
            inv::ReserveOutcome::Revoked => Ok(Answer::Revoked),
            inv::ReserveOutcome::Unspecified => Err(Upstream::broken("inventory", "reserve without an outcome")),
        }
    }

    pub(super) async fn release(&self, key: &str, order_id: &str) -> Result<(), Upstream> {
        let request = inv::ReleaseRequest { key: key.to_owned(), order_id: order_id.to_owned() };
        self.client
            .clone()
            .release(Request::new(request))
            .await
            .map_err(|status| failed("inventory", &status))
            .map(drop)
    }
}

fn failed(service: &'static str, status: &tonic::Status) -> Upstream {
    Upstream::from_status(service, status)
}
