use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::member::Member;
use super::store::{Log, PARTITIONS, Record};
use crate::bus::event_bus::{BusError, EventBus};
use crate::bus::handler::Handler;
use crate::bus::subscribe::{Subscribe, Subscription};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db};
use crate::event::DomainEvent;
use crate::hash::bucket;
use crate::task::{Worker, WorkerHealth};

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
    /// Use at least 3 times the longest pause of a healthy process (swapping, a slow disk).
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

    /// Deletes records that were published before a moment and that every group has handled.
    /// Returns their number.
    ///
    /// A topic without any group keeps its records. That includes dead-letter topics.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn trim(&self, topic: &str, before: Timestamp) -> Result<u64, BusError> {
        let trimmed = self
            .log
            .db
            .write(
                "DELETE FROM buttress_log WHERE topic = $1 AND published_at < $2 AND position <
                     (SELECT MIN(g.position) FROM buttress_group g
                      WHERE g.topic = buttress_log.topic AND g.part = buttress_log.part)",
                args![topic, before],
            )
            .await?;
        Ok(trimmed)
    }

    async fn publish_all(&self, events: &[DomainEvent]) -> Result<(), BusError> {
        if events.is_empty() {
            return Ok(());
        }
        let payloads: Vec<_> = events
            .iter()
            .map(|event| event.to_bytes().map_err(|error| BusError::refused(event, &error)))
            .collect::<Result<_, _>>()?;
        // Sorted, so that all publishers lock the heads in the same order and cannot deadlock.
        let mut partitions: BTreeMap<(&str, i64), Vec<Record<'_>>> = BTreeMap::new();
        for (event, payload) in events.iter().zip(&payloads) {
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
}

impl<D: Database> Clone for LogBus<D> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone() }
    }
}

impl<D: Database> EventBus for LogBus<D> {
    fn publish<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Result<(), BusError>> {
        self.publish_all(events).boxed()
    }

    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>> {
        async move {
            let member = Member::join(self.log.clone(), subscribe, handler).await?;
            let health = WorkerHealth::new(self.log.db.clock().clone());
            Ok(Subscription::new(Worker::observed(health.clone(), |stop| member.run(stop, health))))
        }
        .boxed()
    }
}
