//! Placing an order: check, price, store, then reserve, charge and confirm.
//!
//! The order's state is written before a step that may leave something behind and after it. A step that fails, and a
//! step that may have failed, hand the order over to [`super::undo`]: a timeout says nothing about what happened, so it
//! is undone like a success.

use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::clients::{Answer, Inventory, Payment};
use super::domain::{Failure, NewOrder, Order, State};
use super::store::{Prices, Store, StoreError};
use super::undo::Undo;
use crate::upstream::{Kind, Upstream};

#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub(super) store: Store,
    pub(super) payment: Payment,
    pub(super) inventory: Inventory,
    pub(super) undo: Undo,
    pub(super) tasks: TaskTracker,
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
    #[error("the database failed")]
    Store(#[from] StoreError),
    #[error("the order's task is gone")]
    Lost,
}

/// An order that was stored, and how it went so far.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) order: Order,
    /// What the failing call knew about when to come back.
    pub(super) retry_after: Option<std::time::Duration>,
}

impl Steps {
    /// Places an order, or finds the one that was placed with the same key.
    pub(super) async fn place(&self, new: NewOrder, idempotency_key: Option<String>) -> Result<Placed, Refused> {
        // First of all, so that a repeated request gets its answer even while the inventory is down.
        if let Some(earlier) = self.earlier(&new, idempotency_key.as_deref()).await? {
            return Ok(earlier);
        }
        let prices = self.prices(&new).await?;
        let id = Uuid::now_v7().to_string();
        let Some(order) = self.store.insert(&id, &new, &prices, idempotency_key.as_deref()).await? else {
            // The same key came twice at once, and the other one was faster.
            return self.earlier(&new, idempotency_key.as_deref()).await?.ok_or(Refused::Lost);
        };
        // From here on the order must not stop half way because its customer hung up.
        let steps = self.clone();
        self.tasks.spawn(async move { steps.run(order, &new).await }).await.map_err(|_| Refused::Lost)?
    }

    async fn earlier(&self, new: &NewOrder, key: Option<&str>) -> Result<Option<Placed>, Refused> {
        let Some(key) = key else { return Ok(None) };
        match self.store.order_by_key(key).await? {
            None => Ok(None),
            Some((_, fingerprint)) if fingerprint != new.fingerprint() => Err(Refused::KeyReused),
            Some((order, _)) => Ok(Some(Placed { order, retry_after: None })),
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

    /// The sequence itself. Returns the order as it is at the end.
    async fn run(&self, mut order: Order, new: &NewOrder) -> Result<Placed, Refused> {
        let mut retry_after = None;
        match self.sequence(&order, new).await? {
            Ok(()) => order.state = State::Confirmed,
            Err(stopped) => {
                tracing::warn!(order = order.id, failure = %stopped.failure, cause = stopped.cause, "order failed");
                self.store.cancel(&order.id, stopped.failure).await?;
                self.undo.wake();
                order.state = State::Cancelling;
                order.failure = Some(stopped.failure);
                retry_after = stopped.retry_after;
            }
        }
        tracing::info!(order = order.id, state = %order.state, "order answered");
        Ok(Placed { order, retry_after })
    }

    async fn sequence(&self, order: &Order, new: &NewOrder) -> Result<Result<(), Stopped>, StoreError> {
        let id = order.id.as_str();
        let steps =
            [(State::Pending, State::Reserved), (State::Reserved, State::Charged), (State::Charged, State::Confirmed)];
        for (from, to) in steps {
            let answer = match to {
                State::Reserved => self.inventory.reserve(id, &new.lines).await,
                State::Charged => self.payment.charge(id, &order.customer, order.total_cents).await,
                _ => self.inventory.confirm(id).await,
            };
            let failure = match answer {
                Ok(Answer::Done) => None,
                Ok(Answer::TurnedDown) if to == State::Reserved => Some(Failure::OutOfStock.into()),
                Ok(Answer::TurnedDown) => Some(Failure::Declined.into()),
                Ok(Answer::Revoked) => Some(Failure::Interrupted.into()),
                Err(upstream) => Some(upstream.into()),
            };
            if let Some(stopped) = failure {
                return Ok(Err(stopped));
            }
            if !self.store.advance(id, from, to).await? {
                return Ok(Err(Failure::Interrupted.into()));
            }
        }
        Ok(Ok(()))
    }
}

/// Why the sequence did not reach its end.
struct Stopped {
    failure: Failure,
    cause: String,
    retry_after: Option<std::time::Duration>,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self { failure, cause: "an answer".to_owned(), retry_after: None }
    }
}

impl From<Upstream> for Stopped {
    fn from(upstream: Upstream) -> Self {
        let failure = match (upstream.service, upstream.kind) {
            ("payment", Kind::TimedOut) => Failure::PaymentTimedOut,
            ("payment", _) => Failure::PaymentUnavailable,
            (_, Kind::TimedOut) => Failure::InventoryTimedOut,
            _ => Failure::InventoryUnavailable,
        };
        Self { failure, cause: upstream.to_string(), retry_after: upstream.retry_after }
    }
}
