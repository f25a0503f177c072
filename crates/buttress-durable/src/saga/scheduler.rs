//! Claims the sagas that are due and runs them, up to a number at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use super::definition::Flow;
use super::run::Run;
use super::store;
use crate::db::{Database, Db, DbError};
use crate::outbox::Outbox;
use crate::task::{Stop, WorkerHealth};

pub(super) struct Scheduler<D: Database> {
    pub(super) db: Db<D>,
    pub(super) outbox: Outbox<D>,
    pub(super) flows: Vec<Arc<dyn Flow<D>>>,
    pub(super) owner: String,
    pub(super) concurrency: usize,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) recoveries: u32,
    /// Notified by a starter when a saga was started.
    pub(super) woken: Arc<watch::Sender<()>>,
    /// Ids of sagas that have ended, got stuck, or begun to compensate.
    pub(super) news: broadcast::Sender<Arc<str>>,
}

/// Notifications that a waiter may lag behind before it has to query the database.
const NEWS: usize = 256;

impl<D: Database> Scheduler<D> {
    pub(super) fn new(db: Db<D>, outbox: Outbox<D>) -> Self {
        Self {
            db,
            outbox,
            flows: Vec::new(),
            owner: Uuid::now_v7().to_string(),
            concurrency: 16,
            lease: Duration::from_secs(30),
            poll: Duration::from_millis(200),
            recoveries: 10,
            woken: Arc::new(watch::channel(()).0),
            news: broadcast::channel(NEWS).0,
        }
    }

    pub(super) async fn work(self: Arc<Self>, mut stop: Stop, health: WorkerHealth) {
        let mut woken = self.woken.subscribe();
        // One task for each saga. Dropping the set aborts them.
        let mut runs = JoinSet::new();
        while !stop.is_set() {
            let pause = match self.claim(self.concurrency - runs.len().min(self.concurrency), &stop).await {
                Ok(claimed) => {
                    health.succeeded();
                    let none = claimed.is_empty();
                    for run in claimed {
                        runs.spawn(run.drive());
                    }
                    if none { self.until_due().await } else { self.poll }
                }
                Err(error) => {
                    health.failed(&error);
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot claim sagas");
                    self.poll
                }
            };
            tokio::select! {
                () = stop.wait() => {}
                _ = woken.changed(), if runs.len() < self.concurrency => {}
                Some(_) = runs.join_next() => {}
                () = sleep(pause), if runs.len() < self.concurrency => {}
            }
        }
        while runs.join_next().await.is_some() {}
    }

    /// Returns the pause until the next query: at most the poll interval, less if a waiting saga is
    /// due earlier.
    async fn until_due(&self) -> Duration {
        let mut pause = self.poll;
        for flow in &self.flows {
            if let Ok(Some(due)) = store::next_due(&self.db, (flow.name(), flow.version())).await {
                pause = pause.min(due.since(self.db.now()).max(Duration::from_millis(1)));
            }
        }
        pause
    }

    pub(super) async fn claim(&self, limit: usize, stop: &Stop) -> Result<Vec<Run<D>>, DbError> {
        let mut runs = Vec::new();
        for flow in &self.flows {
            let room = limit.saturating_sub(runs.len());
            if room == 0 {
                break;
            }
            let definition = (flow.name(), flow.version());
            for saga in store::claim(&self.db, definition, &self.owner, self.lease, room).await? {
                runs.push(Run {
                    db: self.db.clone(),
                    outbox: self.outbox.clone(),
                    flow: flow.clone(),
                    saga,
                    lease: self.lease,
                    recoveries: self.recoveries,
                    stop: stop.clone(),
                    news: self.news.clone(),
                });
            }
        }
        Ok(runs)
    }
}

impl<D: Database> fmt::Debug for Scheduler<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows: Vec<_> = self.flows.iter().map(|flow| (flow.name(), flow.version())).collect();
        f.debug_struct("Coordinator").field("owner", &self.owner).field("flows", &flows).finish_non_exhaustive()
    }
}
