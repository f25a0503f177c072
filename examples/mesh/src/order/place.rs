//! Placing an order: validates and prices it, stores it together with its saga, and waits for the
//! outcome.

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::saga::{AdminError, Coordinator, Starter, Status};
use buttress_durable::{Database, DbError};
use uuid::Uuid;

use super::clients::Inventory;
use super::domain::{Failure, NewOrder, Order, State};
use super::saga::Data;
use super::store::{self, Prices, ScopedKey, Store, StoreError};
use crate::input::Key;
use crate::telemetry::{about_order, current_trace};
use crate::upstream::Upstream;

#[derive(Debug)]
pub(super) struct Desk<D: Database> {
    pub(super) store: Arc<Store<D>>,
    pub(super) inventory: Inventory,
    pub(super) starter: Starter<D, Data>,
    pub(super) coordinator: Coordinator<D>,
    /// How long a request waits for its saga before it is answered 202.
    pub(super) patience: Duration,
    /// Maximum number of orders under way: see [`UNDER_WAY`](super::UNDER_WAY).
    pub(super) under_way: u32,
}

/// Why an order was not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("unknown products: {}", .0.join(", "))]
    UnknownProducts(Vec<String>),
    #[error("the idempotency key was used for another order")]
    KeyReused,
    /// As many orders are under way as allowed.
    #[error("too many orders are under way")]
    Busy,
    #[error("prices are not known right now")]
    Unpriced(#[source] Upstream),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Saga(#[from] AdminError),
    #[error("the order is gone")]
    Lost,
}

impl From<DbError> for Refused {
    fn from(error: DbError) -> Self {
        Self::Store(error.into())
    }
}

/// A stored order and its outcome.
#[derive(Debug)]
pub(super) enum Placed {
    Confirmed(Order),
    /// Cancelled, or being compensated. The outcome is known before the compensation ends.
    Failed(Order, Failure),
    /// Not yet decided.
    Pending(Order),
}

impl<D: Database> Desk<D> {
    /// Places an order, or returns the outcome of the order with the same key.
    pub(super) async fn place(&self, new: NewOrder, key: Option<&Key>) -> Result<Placed, Refused> {
        let key = key.map(|key| ScopedKey::new(&new.customer, key));
        // Checked first, so that a repeated request gets its answer even while inventory is down or
        // too many orders are under way.
        if let Some(id) = self.earlier(&new, key.as_ref()).await? {
            return self.outcome(&id).await;
        }
        // `insert` counts again. Here it saves the call of a request that would be refused then.
        if self.store.is_full(self.under_way).await? {
            return Err(Refused::Busy);
        }
        let prices = self.prices(&new).await?;
        let id = Uuid::now_v7().to_string();
        // Order and saga are stored in one transaction, so that no order is left without a saga.
        let mut tx = self.store.db().begin().await?;
        if !store::insert(&mut tx, &id, &new, &prices, key.as_ref(), self.under_way).await? {
            drop(tx);
            // A concurrent request with the same key was faster, or others have taken the last
            // place.
            let id = self.earlier(&new, key.as_ref()).await?.ok_or(Refused::Busy)?;
            return self.outcome(&id).await;
        }
        let (customer, total_cents) = (new.customer.to_string(), new.total_cents(&prices));
        let data = Data { customer, total_cents, lines: new.lines };
        self.starter.start(&mut tx, &id, &data, current_trace().as_ref()).await?;
        tx.commit().await?;
        // From here on the order does not depend on the client's connection.
        self.starter.wake();
        self.outcome(&id).await
    }

    /// The order placed with this key, if any.
    async fn earlier(&self, new: &NewOrder, key: Option<&ScopedKey>) -> Result<Option<String>, Refused> {
        let Some(key) = key else { return Ok(None) };
        match self.store.order_by_key(key).await? {
            Some((_, fingerprint)) if fingerprint != new.fingerprint() => Err(Refused::KeyReused),
            found => Ok(found.map(|(id, _)| id)),
        }
    }

    async fn prices(&self, new: &NewOrder) -> Result<Prices, Refused> {
        let skus = new.lines.iter().map(|line| line.sku.to_string()).collect();
        let products = self.inventory.products(skus).await.map_err(Refused::Unpriced)?;
        let price = |sku: &str| products.iter().find(|product| product.sku == sku).map(|product| product.price_cents);
        let unknown: Vec<_> = new
            .lines
            .iter()
            .map(|line| line.sku.as_str())
            .filter(|sku| price(sku).is_none())
            .map(str::to_owned)
            .collect();
        if !unknown.is_empty() {
            return Err(Refused::UnknownProducts(unknown));
        }
        Ok(new.lines.iter().filter_map(|line| price(line.sku.as_str())).collect())
    }

    /// Waits until the outcome is known, at most `patience`.
    async fn outcome(&self, id: &str) -> Result<Placed, Refused> {
        about_order(id);
        self.coordinator.wait_until_decided(&self.starter.id(id), self.patience).await?;
        self.look(id).await
    }

    /// Reads the stored outcome, so that a repeated request gets the same answer.
    async fn look(&self, id: &str) -> Result<Placed, Refused> {
        let order = self.store.order(id).await?.ok_or(Refused::Lost)?;
        match order.state {
            State::Confirmed => return Ok(Placed::Confirmed(order)),
            State::Cancelled => {
                let failure = order.failure.unwrap_or(Failure::Interrupted);
                return Ok(Placed::Failed(order, failure));
            }
            State::Pending => {}
        }
        let Some(saga) = self.coordinator.admin().get(&self.starter.id(id)).await? else { return Err(Refused::Lost) };
        // A saga with a failure can only be compensated, so the outcome is known before the
        // compensation ends. This includes a saga that is stuck while compensating.
        match saga.failure {
            Some(failure) if saga.status != Status::Completed => Ok(Placed::Failed(order, Failure::of(&failure))),
            _ => Ok(Placed::Pending(order)),
        }
    }
}
