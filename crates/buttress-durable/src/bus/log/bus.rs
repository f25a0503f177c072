use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use buttress_core::Backoff;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;
use uuid::Uuid;

use super::member::Member;
use super::store::{Log, PARTITIONS, Record};
use super::{dead_letters, group};
use crate::bus::dead_letter::DeadLettered;
use crate::bus::event_bus::{BusError, EventBus};
use crate::bus::handler::Handler;
use crate::bus::lag::Lag;
use crate::bus::subscribe::{Subscribe, Subscription};
use crate::db::{Database, Db, DbError, DbErrorKind};
use crate::event::DomainEvent;
use crate::hash::bucket;
use crate::task::{Stop, Worker, WorkerHealth};
use crate::text::{Chain, storable};

/// Pauses between attempts to join a group while the log's database fails.
const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));

/// The embedded broker: an append-only log in a database. Clones share one log.
///
/// Positions in a partition have no gaps and follow the order of the commits. An event that is
/// published again is not appended while the log still holds the first copy.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::{Delivery, EventBus, LogBus, Subscribe};
/// use buttress_durable::{Db, DomainEvent};
/// use std::sync::Arc;
///
/// # let dir = tempfile::tempdir()?;
/// let bus = LogBus::new(Db::open(dir.path().join("bus.db")).await?);
/// let (seen, mut handled) = tokio::sync::mpsc::channel(1);
/// let handler = move |delivery: Delivery| {
///     let seen = seen.clone();
///     async move { Ok(seen.send(delivery.event.key().to_owned()).await?) }
/// };
/// let shipping = bus.subscribe(Subscribe::new("shipping", ["OrderConfirmed"])?, Arc::new(handler)).await?;
///
/// let now = bus.db().clock().now();
/// bus.publish(&[DomainEvent::new("OrderConfirmed", "order-7", now, &())?]).await?;
/// assert_eq!(handled.recv().await.as_deref(), Some("order-7"));
/// shipping.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LogBus<D: Database> {
    pub(super) log: Log<D>,
}

impl<D: Database> LogBus<D> {
    /// Creates a bus over the log in `db`, with leases of 10 s and a poll interval of 100 ms.
    pub fn new(db: Db<D>) -> Self {
        Self { log: Log::new(db) }
    }

    /// Sets how long a crashed member keeps its partitions. Default: 10 s; at least 10 ms.
    ///
    /// Use at least 3 times the longest pause of a healthy process (swapping, a slow disk). Members
    /// of a group may have different leases, for example during a rolling update: each is left its
    /// partitions for as long as its own lease lasts.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.log.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Sets how often a member looks for events of other processes. Default: 100 ms; at least 1 ms.
    ///
    /// Events that this process publishes wake its members at once.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.log.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// Returns the database that holds the log.
    pub fn db(&self) -> &Db<D> {
        &self.log.db
    }

    /// Publishes all in one transaction. If the database rejects one of them, the others get a
    /// transaction each.
    async fn publish_all(&self, events: &[DomainEvent]) -> Vec<Result<(), BusError>> {
        let entries: Vec<Result<Entry<'_>, BusError>> = events.iter().map(Entry::new).collect();
        let valid: Vec<&Entry<'_>> = entries.iter().flatten().collect();
        let failed = match self.append(&valid).await {
            Ok(()) => None,
            Err(error) if error.kind() == DbErrorKind::Data && valid.len() > 1 => {
                return self.publish_apart(entries).await;
            }
            Err(error) => Some(Arc::new(error)),
        };
        let result = |entry: Result<Entry<'_>, BusError>| {
            let entry = entry?;
            failed.as_ref().map_or(Ok(()), |error| Err(entry.failed(error)))
        };
        entries.into_iter().map(result).collect()
    }

    async fn publish_apart(&self, entries: Vec<Result<Entry<'_>, BusError>>) -> Vec<Result<(), BusError>> {
        let (mut results, mut away) = (Vec::with_capacity(entries.len()), false);
        for entry in entries {
            let stored = match entry {
                // A later event of the key would overtake the one that was not stored.
                Ok(_) if away => Err(BusError::HeldBack),
                Ok(entry) => self.append(&[&entry]).await.map_err(|error| entry.failed(&Arc::new(error))),
                Err(refused) => Err(refused),
            };
            away |= matches!(&stored, Err(error) if !matches!(error, BusError::Refused { .. }));
            results.push(stored);
        }
        results
    }

    async fn append(&self, entries: &[&Entry<'_>]) -> Result<(), DbError> {
        if entries.is_empty() {
            return Ok(());
        }
        // Sorted, so that all publishers lock the heads in the same order and cannot deadlock.
        let mut partitions: BTreeMap<(&str, i64), Vec<Record<'_>>> = BTreeMap::new();
        for Entry { event, payload } in entries {
            let partition = (event.topic(), bucket(event.key(), PARTITIONS));
            let record = Record { dedup: event.event_id().to_string(), payload, dead_letter: None };
            partitions.entry(partition).or_default().push(record);
        }
        let mut tx = self.log.db.begin().await?;
        for ((topic, part), records) in &partitions {
            self.log.append(&mut tx, topic, *part, records).await?;
        }
        tx.commit().await?;
        self.log.wake();
        Ok(())
    }

    async fn join(&self, subscribe: Subscribe, handler: Arc<dyn Handler>) -> Result<Subscription, BusError> {
        let (log, subscribe) = (self.log.clone(), Arc::new(subscribe));
        // Before this returns, so that the group receives what is published from now on.
        let mut registered = match group::register(&log.db, &subscribe).await {
            Ok(()) => true,
            Err(error)
                if matches!(error.kind(), DbErrorKind::Unavailable | DbErrorKind::Timeout | DbErrorKind::Conflict) =>
            {
                tracing::warn!(group = subscribe.group, %error, "cannot reach the log; the group is joined later");
                false
            }
            Err(error) => return Err(error.into()),
        };
        let health = WorkerHealth::new(log.db.clock().clone());
        // Kept across restarts, so that the member finds its own partitions again.
        let (id, reports) = (Uuid::now_v7().to_string(), health.clone());
        let run = move |mut stop: Stop| {
            let (log, subscribe, reports) = (log.clone(), subscribe.clone(), reports.clone());
            let member = Member::new(log.clone(), subscribe.clone(), handler.clone(), id.clone());
            let known = std::mem::replace(&mut registered, true);
            async move {
                if known || register(&log, &subscribe, &mut stop, &reports).await {
                    member.run(stop, reports).await;
                }
            }
        };
        Ok(Subscription::new(Worker::supervised(health, run)))
    }
}

/// An event that can be stored.
struct Entry<'a> {
    event: &'a DomainEvent,
    payload: Vec<u8>,
}

impl<'a> Entry<'a> {
    fn new(event: &'a DomainEvent) -> Result<Self, BusError> {
        let payload = event.to_bytes().map_err(|error| BusError::refused(event, &error))?;
        Ok(Self { event, payload })
    }

    /// Tells a value that the database rejects from a database that is away or fails.
    fn failed(&self, error: &Arc<DbError>) -> BusError {
        match error.kind() {
            DbErrorKind::Data => {
                BusError::Refused { event_id: self.event.event_id(), reason: storable(Chain(&**error)) }
            }
            kind => BusError::of_kind(kind, Box::new(error.clone())),
        }
    }
}

/// Registers a group once its database is back. Returns false if it was stopped before.
async fn register<D: Database>(log: &Log<D>, subscribe: &Subscribe, stop: &mut Stop, health: &WorkerHealth) -> bool {
    for failures in 0.. {
        let Err(error) = group::register(&log.db, subscribe).await else { return true };
        health.failed(&error);
        tracing::warn!(group = subscribe.group, %error, "cannot join the group; retrying");
        tokio::select! {
            () = stop.wait() => return false,
            () = sleep(PAUSE.pause(failures, &mut fastrand::Rng::new())) => {}
        }
    }
    false
}

impl<D: Database> Clone for LogBus<D> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone() }
    }
}

impl<D: Database> EventBus for LogBus<D> {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        self.publish_all(events).boxed()
    }

    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>> {
        self.join(subscribe, handler).boxed()
    }

    fn dead_letters<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<DeadLettered>, BusError>> {
        dead_letters::list(&self.log, group, topic, limit).boxed()
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        dead_letters::redrive(&self.log, group, topic, (partition, offset)).boxed()
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        dead_letters::discard(&self.log, group, topic, (partition, offset)).boxed()
    }

    fn lag<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Lag>, BusError>> {
        async move { Ok(group::lag(&self.log.db, group).await?) }.boxed()
    }
}
