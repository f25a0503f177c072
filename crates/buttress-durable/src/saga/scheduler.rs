//! Claims the sagas that are due and runs them, up to a number at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use super::claim::{Claimed, Claims};
use super::flow::Flow;
use super::id::SagaId;
use super::run::Run;
use super::store;
use crate::clock::monotonic;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::outbox::Outbox;
use crate::task::{Stop, WorkerHealth};

pub(super) struct Scheduler<D: Database> {
    pub(super) db: Db<D>,
    pub(super) outbox: Outbox<D>,
    pub(super) flows: Vec<Arc<dyn Flow<D>>>,
    /// `None` without definitions.
    pub(super) claims: Option<Claims>,
    pub(super) owner: String,
    pub(super) concurrency: usize,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) recoveries: u32,
    /// Notified by a starter when a saga was started.
    pub(super) woken: Arc<watch::Sender<()>>,
    /// Ids of sagas that have ended, got stuck, or begun to compensate.
    pub(super) news: broadcast::Sender<Arc<SagaId>>,
}

/// Notifications that a waiter may lag behind before it has to query the database.
const NEWS: usize = 256;
/// How often sagas are reported that no coordinator of this process can run.
const REPORT: Duration = Duration::from_secs(600);

impl<D: Database> Scheduler<D> {
    pub(super) fn new(db: Db<D>, outbox: Outbox<D>) -> Self {
        Self {
            db,
            outbox,
            flows: Vec::new(),
            claims: None,
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
        let mut report_at = monotonic();
        while !stop.is_set() {
            if monotonic() >= report_at {
                report_at = monotonic() + REPORT;
                self.report().await;
            }
            let pause = match self.claim(self.concurrency - runs.len().min(self.concurrency), &stop).await {
                Ok((claimed, next)) => {
                    health.succeeded();
                    for run in claimed {
                        runs.spawn(run.drive());
                    }
                    next.map_or(self.poll, |next| next.clamp(Duration::from_millis(1), self.poll))
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

    /// Claims up to `limit` sagas. If it finds none, it returns the time until the next one is due.
    pub(super) async fn claim(&self, limit: usize, stop: &Stop) -> Result<(Vec<Run<D>>, Option<Duration>), DbError> {
        let Some(claims) = self.claims.filter(|_| limit > 0) else { return Ok((Vec::new(), None)) };
        let Claimed { sagas, now, next } = claims.claim(&self.db, &self.owner, self.lease, limit).await?;
        let runs = sagas.into_iter().filter_map(|saga| {
            Some(Run {
                db: self.db.clone(),
                outbox: self.outbox.clone(),
                flow: self.flow(saga.id.definition(), saga.version)?.clone(),
                saga,
                lease: self.lease,
                recoveries: self.recoveries,
                not_before: now,
                stop: stop.clone(),
                news: self.news.clone(),
            })
        });
        Ok((runs.collect(), next))
    }

    /// Returns a registered definition.
    pub(super) fn flow(&self, name: &str, version: u32) -> Option<&Arc<dyn Flow<D>>> {
        self.flows.iter().find(|flow| (flow.name(), flow.version()) == (name, version))
    }

    /// Returns definition, version and number of the sagas that have not ended, and whose version
    /// is not registered here.
    pub(super) async fn unregistered(&self) -> Result<Vec<(String, u32, u64)>, DbError> {
        let sql = "SELECT definition, version, COUNT(*) FROM buttress_saga
                   WHERE status IN ('running', 'compensating') GROUP BY definition, version";
        let mut unregistered = Vec::new();
        for row in &self.db.read(sql, args![]).await? {
            let (definition, version) = (D::text(row, 0)?, store::version(D::int(row, 1)?));
            if self.flow(&definition, version).is_none() {
                unregistered.push((definition, version, u64::try_from(D::int(row, 2)?).unwrap_or(0)));
            }
        }
        Ok(unregistered)
    }

    async fn report(&self) {
        match self.unregistered().await {
            Ok(unregistered) => {
                for (definition, version, sagas) in unregistered {
                    tracing::warn!(
                        definition,
                        version,
                        sagas,
                        "sagas wait for a definition that is not registered here"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "cannot count the sagas of unregistered definitions"),
        }
    }
}

impl<D: Database> fmt::Debug for Scheduler<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows: Vec<_> = self.flows.iter().map(|flow| (flow.name(), flow.version())).collect();
        f.debug_struct("Coordinator").field("owner", &self.owner).field("flows", &flows).finish_non_exhaustive()
    }
}
