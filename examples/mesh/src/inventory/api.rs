//! The gRPC API of the inventory service: validates and translates, without business rules.

use std::collections::HashSet;
use std::sync::Arc;

use buttress_durable::Database;
use tonic::{Request, Response, Status};

use super::domain::{Line, Product, ReserveOutcome};
use super::store::Store;
use crate::input::{Key, OrderId, Sku, field};
use crate::page::Page;
use crate::problem::grpc_failed;

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
        let proto::ListProductsRequest { skus, limit, after } = request.into_inner();
        let (products, next) = if skus.is_empty() {
            let page = parse_page(limit, &after)?;
            let products = self.store.page(&page).await.map_err(|error| grpc_failed("inventory", &error))?;
            page.cut(products, |product| product.sku.clone())
        } else {
            let skus = parse_skus(skus)?;
            (self.store.products(&skus).await.map_err(|error| grpc_failed("inventory", &error))?, None)
        };
        let products = products
            .into_iter()
            .map(|Product { sku, name, price_cents, on_hand }| proto::Product { sku, name, price_cents, on_hand })
            .collect();
        Ok(Response::new(proto::ListProductsResponse { products, next: next.unwrap_or_default() }))
    }

    async fn reserve(
        &self,
        request: Request<proto::ReserveRequest>,
    ) -> Result<Response<proto::ReserveResponse>, Status> {
        let proto::ReserveRequest { key, order_id, lines } = request.into_inner();
        let (key, order_id): (Key, OrderId) = (field("key", &key)?, field("order_id", &order_id)?);
        let lines = parse_lines(lines)?;
        let reserving = self.store.reserve(key.as_str(), order_id.as_str(), &lines);
        let outcome = reserving.await.map_err(|error| grpc_failed("inventory", &error))?;
        tracing::info!(order = %order_id, %key, lines = lines.len(), ?outcome, "reserve");
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
        let (key, order_id): (Key, OrderId) = (field("key", &key)?, field("order_id", &order_id)?);
        let releasing = self.store.release(key.as_str(), order_id.as_str());
        releasing.await.map_err(|error| grpc_failed("inventory", &error))?;
        tracing::info!(order = %order_id, %key, "release");
        Ok(Response::new(proto::ReleaseResponse {}))
    }

    async fn get_reservation(
        &self,
        request: Request<proto::GetReservationRequest>,
    ) -> Result<Response<proto::GetReservationResponse>, Status> {
        let order_id: OrderId = field("order_id", &request.into_inner().order_id)?;
        let state = self
            .store
            .reservation(order_id.as_str())
            .await
            .map_err(|error| grpc_failed("inventory", &error))?
            .ok_or_else(|| Status::not_found(format!("no reservation for order {order_id}")))?;
        Ok(Response::new(proto::GetReservationResponse { state }))
    }
}

/// Maximum number of lines of an order, and of products in a lookup.
const MAX_LINES: usize = 50;

fn parse_page(limit: u32, after: &str) -> Result<Page, Status> {
    let after = if after.is_empty() { None } else { Some(field::<Sku>("after", after)?.into()) };
    let limit = if limit == 0 { Page::LARGEST } else { limit };
    Page::new(limit, after).map_err(|error| Status::invalid_argument(format!("limit {error}")))
}

fn parse_skus(skus: Vec<String>) -> Result<Vec<String>, Status> {
    if skus.len() > MAX_LINES {
        return Err(Status::invalid_argument(format!("skus must be at most {MAX_LINES}")));
    }
    skus.iter().map(|sku| field::<Sku>("skus", sku).map(Into::into)).collect()
}

fn parse_lines(lines: Vec<proto::Line>) -> Result<Vec<Line>, Status> {
    if lines.is_empty() || lines.len() > MAX_LINES {
        return Err(Status::invalid_argument(format!("lines must be 1 to {MAX_LINES}")));
    }
    let skus: HashSet<_> = lines.iter().map(|line| &line.sku).collect();
    if skus.len() < lines.len() {
        return Err(Status::invalid_argument("a product has two lines"));
    }
    lines
        .into_iter()
        .map(|proto::Line { sku, quantity }| {
            let sku: Sku = field("sku", &sku)?;
            if quantity <= 0 {
                return Err(Status::invalid_argument(format!("quantity of {sku} must be positive")));
            }
            Ok(Line { sku: sku.into(), quantity })
        })
        .collect()
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
    fn names_and_pages_are_checked() {
        let code = |status: Status| status.code();
        assert_eq!(parse(&[("a\0", 1)]), Err(Code::InvalidArgument));
        let lines: Vec<_> = (0..51).map(|n| (format!("p{n}"), 1)).collect();
        let lines: Vec<_> = lines.iter().map(|(sku, quantity)| (sku.as_str(), *quantity)).collect();
        assert!(parse(&lines[..50]).is_ok());
        assert_eq!(parse(&lines), Err(Code::InvalidArgument));
        assert_eq!(parse_skus(vec!["tea".into(), "b\0".into()]).map_err(code), Err(Code::InvalidArgument));
        assert_eq!(parse_skus(vec!["tea".into(); 51]).map_err(code), Err(Code::InvalidArgument));
        assert!(parse_page(0, "").is_ok() && parse_page(100, "tea").is_ok());
        assert!(parse_page(101, "").is_err() && parse_page(1, "b\0").is_err());
    }
}
