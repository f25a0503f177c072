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
use crate::task::Stop;

pub(super) struct Scheduler<D: Database> {
    pub(super) db: Db<D>,
    pub(super) outbox: Outbox<D>,
    pub(super) flows: Vec<Arc<dyn Flow<D>>>,
    pub(super) owner: String,
    pub(super) concurrency: usize,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) recoveries: u32,
    /// A saga was started, or has something new to do.
    pub(super) woken: Arc<watch::Sender<()>>,
    /// The id of a saga that has ended, is stuck, or has turned back.
    pub(super) news: broadcast::Sender<Arc<str>>,
}

/// News that a waiter may miss before it has to look for itself.
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

    pub(super) async fn work(self: Arc<Self>, mut stop: Stop) {
        let mut woken = self.woken.subscribe();
        // Each saga a task; dropped, they are aborted.
        let mut runs = JoinSet::new();
        while !stop.is_set() {
            let pause = match self.claim(self.concurrency - runs.len().min(self.concurrency), &stop).await {
                Ok(claimed) => {
                    let none = claimed.is_empty();
                    for run in claimed {
                        runs.spawn(run.drive());
                    }
                    if none { self.until_due().await } else { self.poll }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for sagas");
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

    /// Until the next look: sooner than a whole poll if a saga that waits is due sooner.
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
