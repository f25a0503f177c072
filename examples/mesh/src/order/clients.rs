//! Clients of payment and inventory for the order service: the generated clients, with typed
//! outcomes.

use tonic::{Request, Response, Status};

use super::domain::NewLine;
use crate::inventory::proto as inv;
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::payment::proto as pay;
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::stack::GrpcChannel;
use crate::telemetry::Attempts;
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

/// A call of a participant failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) upstream: Upstream,
    /// Whether an attempt was made. Without one the call had no effect: a layer of the client stack
    /// has rejected it, such as an open circuit or a full bulkhead. With one it may have had,
    /// although the last of several attempts was rejected.
    pub(super) sent: bool,
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
    ) -> Result<Answer, Failed> {
        let request = pay::ChargeRequest {
            key: key.to_owned(),
            order_id: order_id.to_owned(),
            customer: customer.to_owned(),
            amount_cents,
        };
        let mut client = self.client.clone();
        match called("payment", request, async |request| client.charge(request).await).await?.outcome() {
            pay::ChargeOutcome::Charged => Ok(Answer::Done),
            pay::ChargeOutcome::Declined => Ok(Answer::TurnedDown),
            pay::ChargeOutcome::Revoked => Ok(Answer::Revoked),
            pay::ChargeOutcome::Unspecified => Err(Failed::broken("payment", "charge without an outcome")),
        }
    }

    pub(super) async fn refund(&self, key: &str, order_id: &str) -> Result<(), Failed> {
        let request = pay::RefundRequest { key: key.to_owned(), order_id: order_id.to_owned() };
        let mut client = self.client.clone();
        called("payment", request, async |request| client.refund(request).await).await.map(drop)
    }
}

impl Inventory {
    pub(super) fn new(channel: GrpcChannel) -> Self {
        Self { client: InventoryServiceClient::new(channel) }
    }

    /// Returns the products with these SKUs. Unknown SKUs are left out.
    pub(super) async fn products(&self, skus: Vec<String>) -> Result<Vec<inv::Product>, Upstream> {
        let request = inv::ListProductsRequest { skus, ..Default::default() };
        let answer = self.client.clone().list_products(Request::new(request)).await;
        Ok(answer.map_err(|status| Upstream::from_status("inventory", &status))?.into_inner().products)
    }

    pub(super) async fn reserve(&self, key: &str, order_id: &str, lines: &[NewLine]) -> Result<Answer, Failed> {
        let request = inv::ReserveRequest {
            key: key.to_owned(),
            order_id: order_id.to_owned(),
            lines: lines.iter().map(|line| inv::Line { sku: line.sku.to_string(), quantity: line.quantity }).collect(),
        };
        let mut client = self.client.clone();
        match called("inventory", request, async |request| client.reserve(request).await).await?.outcome() {
            inv::ReserveOutcome::Reserved => Ok(Answer::Done),
            inv::ReserveOutcome::OutOfStock => Ok(Answer::TurnedDown),
            inv::ReserveOutcome::Revoked => Ok(Answer::Revoked),
            inv::ReserveOutcome::Unspecified => Err(Failed::broken("inventory", "reserve without an outcome")),
        }
    }

    pub(super) async fn release(&self, key: &str, order_id: &str) -> Result<(), Failed> {
        let request = inv::ReleaseRequest { key: key.to_owned(), order_id: order_id.to_owned() };
        let mut client = self.client.clone();
        called("inventory", request, async |request| client.release(request).await).await.map(drop)
    }
}

impl Failed {
    fn broken(service: &'static str, detail: &str) -> Self {
        Self { upstream: Upstream::broken(service, detail), sent: true }
    }
}

async fn called<M, A>(
    service: &'static str,
    message: M,
    call: impl AsyncFnOnce(Request<M>) -> Result<Response<A>, Status>,
) -> Result<A, Failed> {
    let (mut request, attempts) = (Request::new(message), Attempts::default());
    request.extensions_mut().insert(attempts.clone());
    let failed = |status| {
        let rejected = buttress::error::find_rejection(&status).is_some();
        Failed { upstream: Upstream::from_status(service, &status), sent: !rejected || attempts.count() > 0 }
    };
    call(request).await.map(Response::into_inner).map_err(failed)
}
