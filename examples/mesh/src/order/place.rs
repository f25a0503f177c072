//! Placing an order: check, price, store it together with its saga, and wait for how it goes.

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::saga::{AdminError, Coordinator, Starter, Status};
use buttress_durable::{Database, DbError};
use uuid::Uuid;

use super::clients::Inventory;
use super::domain::{Failure, NewOrder, Order, State};
use super::saga::Data;
use super::store::{self, Prices, Store, StoreError};
use crate::telemetry::current_trace;
use crate::upstream::Upstream;

#[derive(Debug)]
pub(super) struct Desk<D: Database> {
    pub(super) store: Arc<Store<D>>,
    pub(super) inventory: Inventory,
    pub(super) starter: Starter<D, Data>,
    pub(super) coordinator: Coordinator<D>,
    /// How long a customer waits at most before being told to come back.
    pub(super) patience: Duration,
}

/// An order that was not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("unknown products: {}", .0.join(", "))]
    UnknownProducts(Vec<String>),
    #[error("the idempotency key was used for another order")]
    KeyReused,
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

/// An order that was stored, and how it goes.
#[derive(Debug)]
pub(super) enum Placed {
    Confirmed(Order),
    /// It will be cancelled, or is. That much is decided even while what it did is still being undone.
    Failed(Order, Failure),
    /// Not decided yet.
    Pending(Order),
}

impl<D: Database> Desk<D> {
    /// Places an order, or finds the one that was placed with the same key.
    pub(super) async fn place(&self, new: NewOrder, idempotency_key: Option<&str>) -> Result<Placed, Refused> {
        // First of all, so that a repeated request gets its answer even while the inventory is down.
        if let Some(id) = self.earlier(&new, idempotency_key).await? {
            return self.outcome(&id).await;
        }
        let prices = self.prices(&new).await?;
        let id = Uuid::now_v7().to_string();
        // The order and its saga in one transaction: there is no order that nobody sees to.
        let mut tx = self.store.db().begin().await?;
        if !store::insert(&mut tx, &id, &new, &prices, idempotency_key).await? {
            // The same key came twice at once, and the other one was faster.
            drop(tx);
            let id = self.earlier(&new, idempotency_key).await?.ok_or(Refused::Lost)?;
            return self.outcome(&id).await;
        }
        let data = Data { customer: new.customer.clone(), total_cents: new.total_cents(&prices), lines: new.lines };
        self.starter.start(&mut tx, &id, &data, current_trace().as_ref()).await?;
        tx.commit().await?;
        // From here on the order does not depend on its customer staying on the line.
        self.starter.wake();
        self.outcome(&id).await
    }

    /// The order that this key belongs to.
    async fn earlier(&self, new: &NewOrder, key: Option<&str>) -> Result<Option<String>, Refused> {
        let Some(key) = key else { return Ok(None) };
        match self.store.order_by_key(key).await? {
            Some((_, fingerprint)) if fingerprint != new.fingerprint() => Err(Refused::KeyReused),
            found => Ok(found.map(|(order, _)| order.id)),
        }
    }

    async fn prices(&self, new: &NewOrder) -> Result<Prices, Refused> {
        let skus = new.lines.iter().map(|line| line.sku.clone()).collect();
        let products = self.inventory.products(skus).await.map_err(Refused::Unpriced)?;
        let price = |sku: &str| products.iter().find(|product| product.sku == sku).map(|product| product.price_cents);
        let unknown: Vec<_> =
            new.lines.iter().filter(|line| price(&line.sku).is_none()).map(|line| line.sku.clone()).collect();
        if !unknown.is_empty() {
            return Err(Refused::UnknownProducts(unknown));
        }
        Ok(new.lines.iter().filter_map(|line| price(&line.sku)).collect())
    }

    /// Waits until it is decided how the order goes, but not longer than the patience.
    async fn outcome(&self, id: &str) -> Result<Placed, Refused> {
        self.coordinator.wait_until_decided(id, self.patience).await?;
        self.look(id).await
    }

    /// What is true now. Read, not remembered, so that a repeated request gets the same answer.
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
        let Some(saga) = self.coordinator.admin().get(id).await? else { return Err(Refused::Lost) };
        // Back is the only way from here, so the answer is known before the work is done. That also holds for a saga that is
        // stuck on its way back.
        match saga.failure {
            Some(failure) if saga.status != Status::Completed => Ok(Placed::Failed(order, Failure::of(&failure))),
            _ => Ok(Placed::Pending(order)),
        }
    }
}
