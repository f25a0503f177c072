//! A member of a group: sends heartbeats, claims its share of the partitions, and releases the
//! surplus.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::group::{self, Claim};
use super::partition::Partition;
use super::store::{Log, PARTITIONS};
use crate::bus::handler::Handler;
use crate::bus::subscribe::Subscribe;
use crate::db::{Database, DbError};
use crate::task::{Stop, WorkerHealth};

/// Longest time until a member notices a partition that was released.
const REBALANCE: Duration = Duration::from_secs(1);

pub(super) struct Member<D: Database> {
    log: Log<D>,
    subscribe: Arc<Subscribe>,
    handler: Arc<dyn Handler>,
    id: String,
    /// One task for each partition, so that a handler that holds a transaction does not block the
    /// other partitions. Dropping the set aborts them.
    running: JoinSet<()>,
    owned: Vec<Owned>,
}

struct Owned {
    partition: (String, i64),
    task: tokio::task::Id,
    stop: watch::Sender<bool>,
    /// Wakes the partition's task when there are records to read.
    news: Arc<Notify>,
}

impl<D: Database> Member<D> {
    pub(super) async fn join(log: Log<D>, subscribe: Subscribe, handler: Arc<dyn Handler>) -> Result<Self, DbError> {
        group::register(&log.db, &subscribe).await?;
        let id = Uuid::now_v7().to_string();
        Ok(Self { log, subscribe: Arc::new(subscribe), handler, id, running: JoinSet::new(), owned: Vec::new() })
    }

    pub(super) async fn run(mut self, mut stop: Stop, health: WorkerHealth) {
        let mut beat = interval((self.log.lease / 3).min(REBALANCE));
        // One query for all partitions. A query for each would multiply the load by eight for every
        // topic, and again for every publication of this process.
        let (mut look, mut published) = (interval(self.log.poll), self.log.published());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_set() {
            tokio::select! {
                () = stop.wait() => {}
                Some(ended) = self.running.join_next_with_id() => {
                    let ended = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.owned.retain(|owned| owned.task != ended);
                }
                _ = beat.tick() => match self.balance().await {
                    Ok(()) => health.succeeded(),
                    Err(error) => {
                        health.failed(&error);
                        tracing::warn!(group = self.subscribe.group, %error, "cannot balance the group");
                    }
                },
                _ = look.tick() => self.look().await,
                // The sender lives as long as the log, which this member holds.
                Ok(()) = published.changed() => self.look().await,
            }
        }
        for owned in &self.owned {
            owned.stop.send_replace(true);
        }
        while self.running.join_next().await.is_some() {}
        if let Err(error) = group::leave(&self.log.db, &self.subscribe.group, &self.id).await {
            tracing::debug!(group = self.subscribe.group, %error, "cannot leave the group");
        }
    }

    /// Wakes the partitions that have records to read. If the query fails, they look when they
    /// renew their leases.
    async fn look(&self) {
        match group::behind(&self.log.db, &self.subscribe.group, &self.id).await {
            Ok(behind) => {
                let owned = self.owned.iter().filter(|owned| behind.contains(&owned.partition));
                owned.for_each(|owned| owned.news.notify_one());
            }
            Err(error) => tracing::debug!(group = self.subscribe.group, %error, "cannot query for new records"),
        }
    }

    async fn balance(&mut self) -> Result<(), DbError> {
        let (db, name) = (&self.log.db, &self.subscribe.group);
        let members = group::heartbeat(db, name, &self.id, self.log.lease).await?;
        let share = (self.subscribe.topics.len() * usize::from(PARTITIONS)).div_ceil(members);
        for surplus in self.owned.iter().skip(share) {
            surplus.stop.send_replace(true);
        }
        if self.owned.len() >= share {
            return Ok(());
        }
        for partition in group::free(db, name).await? {
            // Another member may subscribe to topics that this one does not; and a task of this
            // member may still be stopping.
            let known = self.subscribe.topics.contains(&partition.0);
            if !known || self.owned.len() >= share || self.owned.iter().any(|owned| owned.partition == partition) {
                continue;
            }
            let claim = Claim::take(db, name, partition.clone(), &self.id, self.log.lease).await?;
            let Some(claim) = claim else { continue };
            let (stop, stopped) = Stop::channel();
            let news = Arc::new(Notify::new());
            let work = Partition {
                log: self.log.clone(),
                subscribe: self.subscribe.clone(),
                handler: self.handler.clone(),
                claim,
                news: news.clone(),
            };
            let task = self.running.spawn(work.run(stopped)).id();
            self.owned.push(Owned { partition, task, stop, news });
        }
        Ok(())
    }
}
