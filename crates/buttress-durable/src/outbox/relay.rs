use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::round::{Drained, Work};
use super::store::Outbox;
use super::waiting::PAUSE;
use crate::bus::{BusError, EventBus};
use crate::db::Database;
use crate::task::{Stop, Worker, WorkerHealth};

/// Publishes the events of an outbox in the background. Dropping it aborts it; events that it has
/// not marked are published again.
#[derive(Debug)]
#[must_use = "dropping a relay stops it"]
pub struct Relay {
    worker: Worker,
}

/// Time limits for the last publications on shutdown, and for giving the lease back. Together they
/// are the promise of [`Relay::shutdown`].
const LAST_EVENTS: Duration = Duration::from_millis(4_500);
const GIVE_BACK: Duration = Duration::from_millis(500);

// === impl Outbox ===

impl<D: Database> Outbox<D> {
    /// Starts a relay that publishes to `bus` until it is dropped. Start one in every process: on
    /// PostgreSQL they share the shards, on SQLite one publishes and the others stand by.
    pub fn relay(&self, bus: Arc<dyn EventBus>) -> Relay {
        let (outbox, health) = (self.clone(), WorkerHealth::new(self.db.clock().clone()));
        let reports = health.clone();
        let run = move |stop| run(Work::new(outbox.clone(), bus.clone()), stop, reports.clone());
        Relay { worker: Worker::supervised(health, run) }
    }

    /// Publishes the events that are waiting, and returns their number.
    ///
    /// For tests, and for services with their own loop. On SQLite it does nothing while another
    /// relay has the lease.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::bus::{EventBus, LogBus};
    /// use buttress_durable::{Db, DomainEvent, Outbox};
    /// use std::sync::Arc;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let db = Db::open(dir.path().join("orders.db")).await?;
    /// let outbox = Outbox::new(db.clone());
    /// let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()));
    /// let mut tx = db.begin().await?;
    /// outbox.append(&mut tx, &DomainEvent::new("OrderCreated", "order-7", db.clock().now(), &())?).await?;
    /// tx.commit().await?;
    ///
    /// assert_eq!(outbox.backlog().await?.unsent, 1);
    /// assert_eq!(outbox.relay_once(&bus).await?, 1);
    /// assert_eq!(outbox.backlog().await?.unsent, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BusError`] if the database fails, or the bus for any of the events. The others have been
    /// published. Events that are not marked are published again by the next call.
    pub async fn relay_once(&self, bus: &Arc<dyn EventBus>) -> Result<u64, BusError> {
        let mut work = Work::new(self.clone(), bus.clone());
        let drained = work.drain().await;
        work.give_back().await;
        let Drained { published, failed } = drained?;
        failed.map_or(Ok(published), Err)
    }
}

// === impl Relay ===

impl Relay {
    /// Reports how the relay is doing.
    pub fn health(&self) -> WorkerHealth {
        self.worker.health()
    }

    /// Publishes the events that are committed by now, as far as that is possible within 5 s, and
    /// stops.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}

/// Publishes until it is stopped, and then what is left.
async fn run<D: Database>(mut work: Work<D>, mut stop: Stop, health: WorkerHealth) {
    let mut written = work.outbox.written();
    // Also ends a publication that is under way when the shutdown begins.
    let mut last = stop.clone();
    let mut deadline = pin!(async move {
        last.wait().await;
        sleep(LAST_EVENTS).await;
    });
    let mut failures = 0;
    loop {
        let stopping = stop.is_set();
        let drained = tokio::select! {
            biased;
            () = &mut deadline => break,
            drained = work.drain() => drained,
        };
        if stopping {
            break;
        }
        let pause = match drained {
            Ok(Drained { failed, .. }) => {
                failures = 0;
                match &failed {
                    Some(error) => report(&health, error),
                    None if work.waiting.is_empty() => health.succeeded(),
                    None => {}
                }
                // What failed at the bus has its own pause.
                work.pause()
            }
            // Whatever waits for the bus, nothing can be read before the database is back.
            Err(error) => {
                report(&health, &error);
                let pause = PAUSE.pause(failures, &mut fastrand::Rng::new());
                failures = failures.saturating_add(1);
                pause
            }
        };
        tokio::select! {
            () = stop.wait() => {}
            _ = written.changed(), if work.waiting.is_empty() && failures == 0 => {}
            () = sleep(pause) => {}
        }
    }
    let _ = timeout(GIVE_BACK, work.give_back()).await;
}

fn report(health: &WorkerHealth, error: &(dyn std::error::Error + 'static)) {
    health.failed(error);
    tracing::warn!(error, "cannot publish from the outbox; retrying");
}
