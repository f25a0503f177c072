//! Undoing what an order did, until it is undone.
//!
//! One worker for the whole service reads its work from the database: orders in state `cancelling`. For each it refunds
//! and releases by key, in the reverse order of the steps. It does not ask which steps were done: a participant that
//! knows nothing of the key remembers that it is revoked, and that is what makes a *late* charge harmless, one that is
//! still somewhere on its way while we believe it lost.
//!
//! A failure postpones the order, with a pause that grows; nothing is ever given up. A restart finds everything where it
//! was, since nothing is kept in memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::Notify;

use super::clients::{Inventory, Payment};
use super::domain::State;
use super::store::{Store, StoreError};
use crate::upstream::Upstream;

/// Orders undone at the same time. Few, because they share the bulkheads with customers who are still waiting.
const CONCURRENCY: usize = 2;
/// Orders read from the database at once.
const BATCH: i64 = 32;
/// Between two looks at the database when nobody wakes the worker: postponed orders come due unannounced.
const IDLE: Duration = Duration::from_millis(100);
/// The pause after the first failure, and the longest one: it doubles in between.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

#[derive(Clone, Debug)]
pub(super) struct Undo {
    store: Store,
    payment: Payment,
    inventory: Inventory,
    orphan_after: Duration,
    wake: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum UndoError {
    #[error(transparent)]
    Upstream(#[from] Upstream),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Undo {
    pub(super) fn new(store: Store, payment: Payment, inventory: Inventory, orphan_after: Duration) -> Self {
        Self { store, payment, inventory, orphan_after, wake: Arc::new(Notify::new()) }
    }

    /// There is something to undo.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Works until dropped.
    pub(super) async fn run(self) {
        loop {
            match self.round().await {
                // More may be due already.
                Ok(done) if done > 0 => continue,
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "cannot read the orders to undo"),
            }
            let _ = tokio::time::timeout(IDLE, self.wake.notified()).await;
        }
    }

    /// One batch: how many orders were tried.
    async fn round(&self) -> Result<usize, sqlx::Error> {
        self.store.interrupt_older_than(self.orphan_after).await?;
        let due = self.store.due(BATCH).await?;
        let count = due.len();
        stream::iter(due).for_each_concurrent(CONCURRENCY, |(id, attempts)| self.undo_or_postpone(id, attempts)).await;
        Ok(count)
    }

    async fn undo_or_postpone(&self, id: String, attempts: i64) {
        let Err(error) = self.undo(&id).await else {
            tracing::info!(order = id, "cancelled");
            return;
        };
        let doublings = u32::try_from(attempts.clamp(0, 16)).unwrap_or(16);
        let pause = PAUSE.0.saturating_mul(2_u32.saturating_pow(doublings)).min(PAUSE.1);
        tracing::warn!(order = id, %error, attempts, ?pause, "cannot undo yet");
        if let Err(error) = self.store.postpone(&id, pause).await {
            tracing::error!(order = id, %error, "cannot postpone");
        }
    }

    async fn undo(&self, id: &str) -> Result<(), UndoError> {
        self.payment.refund(id).await?;
        self.inventory.release(id).await?;
        self.store.advance(id, State::Cancelling, State::Cancelled).await?;
        Ok(())
    }
}
