//! A member of a group: renews its leases, claims its share of the partitions, and releases the
//! surplus.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::group::{self, Claim, Place, View};
use super::partition::Partition;
use super::share::share;
use super::store::Log;
use crate::bus::handler::Handler;
use crate::bus::subscribe::Subscribe;
use crate::clock::Timestamp;
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
    ahead: Ahead,
}

struct Owned {
    partition: (String, i64),
    generation: i64,
    task: AbortHandle,
    stop: watch::Sender<bool>,
    /// Wakes the partition's task when there are records to read.
    news: Arc<Notify>,
}

/// Leases that end later than one of their length that begins now: when each was seen first.
#[derive(Default)]
struct Ahead(HashMap<(String, i64), (Timestamp, Instant)>);

// === impl Member ===

impl<D: Database> Member<D> {
    pub(super) fn new(log: Log<D>, subscribe: Arc<Subscribe>, handler: Arc<dyn Handler>, id: String) -> Self {
        Self { log, subscribe, handler, id, running: JoinSet::new(), owned: Vec::new(), ahead: Ahead::default() }
    }

    pub(super) async fn run(mut self, mut stop: Stop, health: WorkerHealth) {
        // Three chances to renew before the leases end.
        let (mut beat, mut round) = (interval(self.log.lease / 3), interval((self.log.lease / 3).min(REBALANCE)));
        // One query for all partitions. A query for each would multiply the load by eight for every
        // topic, and again for every publication of this process.
        let (mut look, mut published) = (interval(self.log.poll), self.log.published());
        for timer in [&mut beat, &mut round, &mut look] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        while !stop.is_set() {
            tokio::select! {
                // In this order, so that a member counts itself before it takes its share.
                biased;
                () = stop.wait() => {}
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                _ = beat.tick() => {
                    let renewed = group::renew(&self.log.db, &self.subscribe, &self.id, self.log.lease).await;
                    self.report(&health, renewed);
                }
                at = round.tick() => {
                    let balanced = self.balance(at).await;
                    self.report(&health, balanced);
                }
                _ = look.tick() => self.look().await,
                // The sender lives as long as the log, which this member holds.
                Ok(()) = published.changed() => self.look().await,
            }
        }
        self.leave().await;
    }

    /// Removes a task that has ended. If it panicked, the next round starts it again.
    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        if let Err(error) = &ended
            && error.is_panic()
        {
            tracing::error!(group = self.subscribe.group, "the task of a partition panicked; starting it again");
        }
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        self.owned.retain(|owned| owned.task.id() != id);
    }

    fn report(&self, health: &WorkerHealth, done: Result<(), DbError>) {
        match done {
            Ok(()) => health.succeeded(),
            Err(error) => {
                health.failed(&error);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(group = self.subscribe.group, error, "the group's database fails; retrying");
            }
        }
    }

    /// Wakes the partitions that have records to read. After a failed query they wait for the next.
    async fn look(&self) {
        match group::behind(&self.log.db, &self.subscribe.group, &self.id).await {
            Ok(behind) => {
                let owned = self.owned.iter().filter(|owned| behind.contains(&owned.partition));
                owned.for_each(|owned| owned.news.notify_one());
            }
            Err(error) => tracing::debug!(group = self.subscribe.group, %error, "cannot query for new records"),
        }
    }

    /// Drops what others have taken over, releases more than this member's share, and claims what
    /// is missing.
    async fn balance(&mut self, at: Instant) -> Result<(), DbError> {
        let now = self.log.db.lease_now().await?;
        let view = group::view(&self.log.db, &self.subscribe.group, now, self.log.lease).await?;
        self.drop_lost(&view);
        let has = |topic: &String| view.partitions.iter().any(|place| place.topic == *topic);
        if !self.subscribe.topics.iter().all(has) {
            // The group was retired while this member joined it. Without its rows the member would
            // wait for ever.
            tracing::warn!(group = self.subscribe.group, "the group was retired; joining it again");
            return group::register(&self.log.db, &self.subscribe).await;
        }
        for topic in &self.subscribe.clone().topics {
            let share = share(&view.members, &self.id, topic);
            let held = self.owned.iter().filter(|owned| owned.partition.0 == *topic);
            for surplus in held.clone().skip(share) {
                surplus.stop.send_replace(true);
            }
            let missing = share.saturating_sub(held.count());
            self.claim(&view, topic, missing, now, at).await?;
        }
        Ok(())
    }

    /// Aborts the tasks of partitions that other members own now, with their handlers.
    fn drop_lost(&self, view: &View) {
        for owned in &self.owned {
            let (topic, part) = (&owned.partition.0, owned.partition.1);
            let place = view.partitions.iter().find(|place| (&place.topic, place.part) == (topic, part));
            if place.is_none_or(|place| place.generation != owned.generation) {
                tracing::warn!(group = self.subscribe.group, topic, part, "another member owns the partition now");
                owned.task.abort();
            }
        }
    }

    async fn claim(
        &mut self,
        view: &View,
        topic: &str,
        mut missing: usize,
        now: Timestamp,
        at: Instant,
    ) -> Result<(), DbError> {
        for place in view.partitions.iter().filter(|place| place.topic == topic) {
            let ours = place.owner.as_ref() == Some(&self.id);
            let over = self.ahead.is_over(place, now, self.log.lease, at);
            let partition = (place.topic.clone(), place.part);
            // A task of this member may still be stopping.
            let held = self.owned.iter().any(|owned| owned.partition == partition);
            if missing == 0 || held || !(ours || over) {
                continue;
            }
            let until = (now, self.log.lease);
            let claim = Claim::take(&self.log.db, &self.subscribe.group, place, &self.id, until).await?;
            let Some(claim) = claim else { continue };
            self.start(partition, claim);
            missing -= 1;
        }
        Ok(())
    }

    fn start(&mut self, partition: (String, i64), claim: Claim) {
        let (stop, stopped) = Stop::channel();
        let (news, generation) = (Arc::new(Notify::new()), claim.generation);
        let work = Partition {
            log: self.log.clone(),
            subscribe: self.subscribe.clone(),
            handler: self.handler.clone(),
            claim,
            unsaved: false,
            news: news.clone(),
        };
        let task = self.running.spawn(work.run(stopped));
        self.owned.push(Owned { partition, generation, task, stop, news });
    }

    /// Lets the partitions finish their records, and leaves the group.
    async fn leave(mut self) {
        for owned in &self.owned {
            owned.stop.send_replace(true);
        }
        let mut beat = interval(self.log.lease / 3);
        loop {
            tokio::select! {
                ended = self.running.join_next() => if ended.is_none() { break },
                // A handler may take longer than the lease.
                _ = beat.tick() => {
                    if let Err(error) = group::renew(&self.log.db, &self.subscribe, &self.id, self.log.lease).await {
                        tracing::debug!(group = self.subscribe.group, %error, "cannot renew the leases");
                    }
                }
            }
        }
        if let Err(error) = group::leave(&self.log.db, &self.subscribe.group, &self.id).await {
            tracing::debug!(group = self.subscribe.group, %error, "cannot leave the group");
        }
    }
}

// === impl Ahead ===

impl Ahead {
    /// Returns whether a lease is over.
    ///
    /// An owner whose clock was ahead leaves a lease that ends much too late. Such a lease is also
    /// over when it was not renewed for as long as it should have lasted. Its own length counts, as
    /// it was written: the reader's may be shorter, and then the owner would not have renewed it
    /// yet. `lease` is the length of one that does not say its own.
    fn is_over(&mut self, place: &Place, now: Timestamp, lease: Duration, at: Instant) -> bool {
        let lease = place.lease.unwrap_or(lease);
        let key = (place.topic.clone(), place.part);
        if place.expires_at <= now.plus(lease) {
            self.0.remove(&key);
            return place.expires_at <= now;
        }
        let seen = self.0.entry(key).or_insert((place.expires_at, at));
        if seen.0 != place.expires_at {
            *seen = (place.expires_at, at);
        }
        at.duration_since(seen.1) >= lease
    }
}
