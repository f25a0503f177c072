//! The gRPC API of the inventory service: validates and translates, without business rules.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;

use buttress_durable::Database;
use tonic::{Request, Response, Status};

use super::domain::{Line, ReserveOutcome};
use super::store::Store;

/// Generated from `proto/inventory/v1/inventory.proto`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("inventory.v1");
}

use proto::inventory_service_server::InventoryService;

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
impl<D: Database> InventoryService for Api<D> {
    async fn list_products(
        &self,
        request: Request<proto::ListProductsRequest>,
    ) -> Result<Response<proto::ListProductsResponse>, Status> {
        let products = self.store.products(&request.into_inner().skus).await.map_err(unavailable)?;
        let products = products
            .into_iter()
            .map(|product| proto::Product {
                sku: product.sku,
                name: product.name,
                price_cents: product.price_cents,
                on_hand: product.on_hand,
            })
            .collect();
        Ok(Response::new(proto::ListProductsResponse { products }))
    }

    async fn reserve(
        &self,
        request: Request<proto::ReserveRequest>,
    ) -> Result<Response<proto::ReserveResponse>, Status> {
        let proto::ReserveRequest { key, order_id, lines } = request.into_inner();
        required("key", &key)?;
        required("order_id", &order_id)?;
        let lines = parse_lines(lines)?;
        let outcome = self.store.reserve(&key, &order_id, &lines).await.map_err(unavailable)?;
        tracing::info!(order = order_id, key, lines = lines.len(), ?outcome, "reserve");
        let outcome = match outcome {
            ReserveOutcome::Reserved => proto::ReserveOutcome::Reserved,
            ReserveOutcome::OutOfStock => proto::ReserveOutcome::OutOfStock,
            ReserveOutcome::Revoked => proto::ReserveOutcome::Revoked,
        };
        Ok(Response::new(proto::ReserveResponse { outcome: outcome.into() }))
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseRequest>,
    ) -> Result<Response<proto::ReleaseResponse>, Status> {
        let proto::ReleaseRequest { key, order_id } = request.into_inner();
        required("key", &key)?;
        required("order_id", &order_id)?;
        self.store.release(&key, &order_id).await.map_err(unavailable)?;
        tracing::info!(order = order_id, key, "release");
        Ok(Response::new(proto::ReleaseResponse {}))
    }

    async fn get_reservation(
        &self,
        request: Request<proto::GetReservationRequest>,
    ) -> Result<Response<proto::GetReservationResponse>, Status> {
        let order_id = request.into_inner().order_id;
        required("order_id", &order_id)?;
        let state = self
            .store
            .reservation(&order_id)
            .await
            .map_err(unavailable)?
            .ok_or_else(|| Status::not_found(format!("no reservation for order {order_id}")))?;
        Ok(Response::new(proto::GetReservationResponse { state }))
    }
}

fn parse_lines(lines: Vec<proto::Line>) -> Result<Vec<Line>, Status> {
    if lines.is_empty() {
        return Err(Status::invalid_argument("lines are required"));
    }
    let skus: HashSet<_> = lines.iter().map(|line| &line.sku).collect();
    if skus.len() < lines.len() {
        return Err(Status::invalid_argument("a product has two lines"));
    }
    lines
        .into_iter()
        .map(|proto::Line { sku, quantity }| {
            required("sku", &sku)?;
            if quantity <= 0 {
                return Err(Status::invalid_argument(format!("quantity of {sku} must be positive")));
            }
            Ok(Line { sku, quantity })
        })
        .collect()
}

fn required(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field} is required"))) } else { Ok(()) }
}

/// Logs the details and keeps them off the wire. UNAVAILABLE lets the caller retry, which is safe
/// because of the keys.
#[allow(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn unavailable(error: impl Error) -> Status {
    tracing::error!(%error, "database failed");
    Status::unavailable("the inventory database failed")
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn parse(lines: &[(&str, i64)]) -> Result<Vec<(String, i64)>, Code> {
        let lines = lines.iter().map(|&(sku, quantity)| proto::Line { sku: sku.to_owned(), quantity }).collect();
        let lines = parse_lines(lines).map_err(|status| status.code())?;
        Ok(lines.into_iter().map(|Line { sku, quantity }| (sku, quantity)).collect())
    }

    #[test]
    fn lines_have_a_product_of_their_own_and_a_positive_quantity() {
        let lines = [("tea".to_owned(), 1), ("mug".to_owned(), 1_000)];
        assert_eq!(parse(&[("tea", 1), ("mug", 1_000)]).unwrap(), lines);
        for wrong in [&[][..], &[("tea", 0)], &[("tea", -1)], &[("", 1)], &[("tea", 1), ("mug", 1), ("tea", 2)]] {
            assert_eq!(parse(wrong), Err(Code::InvalidArgument), "{wrong:?}");
        }
    }

    #[test]
    fn a_broken_database_is_unavailable_and_keeps_its_secrets() {
        let status = unavailable(std::io::Error::other("hunter2"));
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "the inventory database failed"));
    }
}
