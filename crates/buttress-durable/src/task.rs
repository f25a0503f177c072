//! Background workers: stopped by their owner, restarted after a panic, and observable.

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::clock::{Clock, Timestamp};
use crate::text::{Chain, storable};

/// A task that is aborted when dropped, and that [`shutdown`](Self::shutdown) lets finish its work.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    health: WorkerHealth,
}

/// Signals a worker to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// Reports how a background worker is doing. Cheap to clone, and outlives the worker, so that a
/// health check or a metric can hold it.
#[derive(Clone)]
pub struct WorkerHealth {
    clock: Clock,
    status: Arc<Mutex<WorkerStatus>>,
}

/// What a background worker has done lately.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// When its last round without a failure ended, also one that found nothing to do. `None`
    /// before the first.
    pub last_success: Option<Timestamp>,
    /// Failed rounds since then.
    pub failures: u64,
    /// The last failure, with its causes. `None` after a success.
    pub error: Option<String>,
}

/// Pause before a worker that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);

// === impl Worker ===

impl Worker {
    /// Spawns a worker that is started again after a panic. It must report its rounds to `health`.
    pub(crate) fn supervised<F>(health: WorkerHealth, mut run: impl FnMut(Stop) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let reports = health.clone();
        Self::observed(health, |mut stop| async move {
            loop {
                // Called inside, so that a panic before the first poll is caught as well.
                let run = AssertUnwindSafe(async { run(stop.clone()).await });
                if run.catch_unwind().await.is_ok() {
                    return;
                }
                tracing::error!("a background worker panicked; starting it again");
                reports.failed(&Panicked);
                tokio::select! {
                    () = stop.wait() => return,
                    () = sleep(RESTART) => {}
                }
            }
        })
    }

    /// Spawns a worker that runs once and handles its panics itself.
    pub(crate) fn observed<F>(health: WorkerHealth, run: impl FnOnce(Stop) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = Stop::channel();
        Self { stop, task: tokio::spawn(run(stopped)), health }
    }

    pub(crate) fn health(&self) -> WorkerHealth {
        self.health.clone()
    }

    pub(crate) async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // The panic hook has reported a panic of the task; there is nothing left to stop.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the worker panicked")]
struct Panicked;

// === impl Stop ===

impl Stop {
    pub(crate) fn channel() -> (watch::Sender<bool>, Self) {
        let (stop, stopped) = watch::channel(false);
        (stop, Self(stopped))
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the worker should stop, or when the sender was dropped.
    pub(crate) async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

// === impl WorkerHealth ===

impl WorkerHealth {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, status: Arc::default() }
    }

    /// Returns what the worker has done lately.
    pub fn status(&self) -> WorkerStatus {
        self.locked(|status| status.clone())
    }

    pub(crate) fn succeeded(&self) {
        let now = self.clock.now();
        self.locked(|status| *status = WorkerStatus { last_success: Some(now), failures: 0, error: None });
    }

    pub(crate) fn failed(&self, error: &(dyn Error + 'static)) {
        let error = storable(Chain(error));
        self.locked(|status| {
            status.failures = status.failures.saturating_add(1);
            status.error = Some(error);
        });
    }

    fn locked<T>(&self, read: impl FnOnce(&mut WorkerStatus) -> T) -> T {
        read(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for WorkerHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::ManualClock;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panics_is_started_again_and_says_so() {
        let hand = ManualClock::new(Timestamp::from_millis(7));
        let health = WorkerHealth::new(hand.clock());
        let (starts, reports) = (Arc::new(AtomicU32::new(0)), health.clone());
        let count = starts.clone();
        let worker = Worker::supervised(health, move |mut stop| {
            let (count, reports) = (count.clone(), reports.clone());
            async move {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    std::panic::resume_unwind(Box::new("a bug"));
                }
                reports.succeeded();
                stop.wait().await;
            }
        });
        sleep(RESTART / 2).await;
        let status = worker.health().status();
        assert_eq!((status.failures, status.error.as_deref()), (1, Some("the worker panicked")));
        sleep(RESTART).await;
        let expected = WorkerStatus { last_success: Some(Timestamp::from_millis(7)), failures: 0, error: None };
        assert_eq!((starts.load(Ordering::SeqCst), worker.health().status()), (2, expected));
        worker.shutdown().await;
    }
}
