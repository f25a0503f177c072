//! Placing an order: check, price, store, then reserve, charge and confirm.
//!
//! The order's state is written before a step that may leave something behind and after it. A step that fails, and a
//! step that may have failed, hand the order over to [`super::undo`]: a timeout says nothing about what happened, so it
//! is undone like a success.

use std::time::Duration;

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
    pub(super) retry_after: Option<Duration>,
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

    /// Runs the sequence, or hands the order over to be undone. Returns the order as it is stored afterwards.
    async fn run(&self, order: Order, new: &NewOrder) -> Result<Placed, Refused> {
        let mut retry_after = None;
        if let Err(stopped) = self.sequence(&order, new).await {
            tracing::warn!(order = order.id, failure = %stopped.failure, cause = stopped.cause, "order failed");
            self.store.cancel(&order.id, stopped.failure).await?;
            self.undo.wake();
            retry_after = stopped.retry_after;
        }
        // Read, not remembered: the customer is told what is true, even if the database failed us half way.
        let order = self.store.order(&order.id).await?.ok_or(Refused::Lost)?;
        tracing::info!(order = order.id, state = %order.state, "order answered");
        Ok(Placed { order, retry_after })
    }

    async fn sequence(&self, order: &Order, new: &NewOrder) -> Result<(), Stopped> {
        let id = order.id.as_str();
        self.inventory.reserve(id, &new.lines).await?.done_or(Failure::OutOfStock)?;
        self.advance(id, State::Pending, State::Reserved).await?;
        self.payment.charge(id, &order.customer, order.total_cents).await?.done_or(Failure::Declined)?;
        self.advance(id, State::Reserved, State::Charged).await?;
        self.inventory.confirm(id).await?.done_or(Failure::Interrupted)?;
        self.advance(id, State::Charged, State::Confirmed).await
    }

    async fn advance(&self, id: &str, from: State, to: State) -> Result<(), Stopped> {
        if self.store.advance(id, from, to).await? { Ok(()) } else { Err(Failure::Interrupted.into()) }
    }
}

impl Answer {
    /// Goes on if the step was done, and stops with `refusal` if the participant turned it down.
    fn done_or(self, refusal: Failure) -> Result<(), Stopped> {
        match self {
            Self::Done => Ok(()),
            Self::TurnedDown => Err(refusal.into()),
            Self::Revoked => Err(Failure::Interrupted.into()),
        }
    }
}

/// Why the sequence did not reach its end.
struct Stopped {
    /// What the customer is told.
    failure: Failure,
    /// What the log is told.
    cause: String,
    /// What the failing call knew about when to come back.
    retry_after: Option<Duration>,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self { failure, cause: "an answer".to_owned(), retry_after: None }
    }
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self { failure: Failure::Interrupted, cause: error.to_string(), retry_after: None }
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
