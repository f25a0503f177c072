use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime;
use uuid::Uuid;

use super::config::{KafkaConfig, refused};
use super::context::Quiet;
use super::member::{Member, MemberConsumer, REQUEST_TIMEOUT};
use super::partition::Shared;
use super::producer::Producer;
use super::stop_signal::{AbortOnDrop, StopSignal};
use super::{allocator, dead_letters, lag};
use crate::bus::dead_letter::DeadLettered;
use crate::bus::event_bus::{BusError, EventBus};
use crate::bus::handler::Handler;
use crate::bus::lag::Lag;
use crate::bus::subscribe::{Start, Subscribe, Subscription};
use crate::clock::Clock;
use crate::event::DomainEvent;
use crate::task::{Worker, WorkerHealth};

/// The event bus over Kafka. The [module](super) lists its guarantees and its differences from the
/// embedded log.
///
/// Clones share one producer. Each subscription has its own consumer and thread.
///
/// ```no_run
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::{Delivery, EventBus, KafkaBus, KafkaConfig, Subscribe};
/// use buttress_durable::{Clock, DomainEvent};
/// use std::sync::Arc;
///
/// let bus = KafkaBus::new(KafkaConfig::new("localhost:9092"))?;
/// let handler = |delivery: Delivery| async move {
///     println!("{} is confirmed", delivery.event.key());
///     Ok(())
/// };
/// let shipping = bus.subscribe(Subscribe::new("shipping", ["OrderConfirmed"])?, Arc::new(handler)).await?;
///
/// bus.publish(&[DomainEvent::new("OrderConfirmed", "order-7", Clock::system().now(), &())?]).await?;
/// shipping.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct KafkaBus {
    config: Arc<KafkaConfig>,
    producer: Arc<Producer>,
    clock: Clock,
}

impl KafkaBus {
    /// Creates a bus over the brokers of `config`. It connects on first use.
    ///
    /// # Errors
    ///
    /// [`BusError::Config`] with the name of the wrong option.
    pub fn new(config: KafkaConfig) -> Result<Self, BusError> {
        config.check()?;
        let producer = Arc::new(Producer::new(&config)?);
        Ok(Self { config: Arc::new(config), producer, clock: Clock::system() })
    }

    /// Sets the clock for the times of failures and of next attempts. Default: the system clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    pub(super) fn config(&self) -> &KafkaConfig {
        &self.config
    }

    pub(super) fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Creates a consumer and subscribes it to the group's topics. Blocks.
    fn open(&self, shared: &Shared, runtime: runtime::Handle, stop: StopSignal) -> Result<MemberConsumer, BusError> {
        allocator::warn_once();
        let Subscribe { group, topics, start, .. } = &*shared.subscribe;
        let mut config = self.config.consumer(group);
        if *start == Start::Latest && !self.begin_with_latest(group, topics)? {
            config.set("auto.offset.reset", "latest");
        }
        let member = Member::new(shared.clone(), runtime, stop);
        let consumer: MemberConsumer = config.create_with_context(member).map_err(refused)?;
        let topics: Vec<_> = topics.iter().map(|topic| self.config.wire(topic)).collect();
        for topic in &topics {
            // The request also makes brokers create the topic, if they are configured to.
            consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(unavailable)?;
        }
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(unavailable)?;
        Ok(consumer)
    }

    /// Commits the end of each partition for which the group has no offset yet. Returns false if
    /// live members of the group prevent the commit.
    ///
    /// librdkafka applies "latest" when a partition is assigned, and again on each assignment
    /// before the first commit, so events published in between would be lost.
    fn begin_with_latest(&self, group: &str, topics: &[String]) -> Result<bool, BusError> {
        let consumer: BaseConsumer<Quiet> = self.config.consumer(group).create_with_context(Quiet).map_err(refused)?;
        let mut partitions = TopicPartitionList::new();
        for topic in &topics.iter().map(|topic| self.config.wire(topic)).collect::<Vec<_>>() {
            let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(unavailable)?;
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                partitions.add_partition(topic, partition.id());
            }
        }
        let committed = consumer.committed_offsets(partitions, REQUEST_TIMEOUT).map_err(unavailable)?;
        let mut ends = TopicPartitionList::new();
        for new in committed.elements().iter().filter(|element| !matches!(element.offset(), Offset::Offset(_))) {
            let (_, end) =
                consumer.fetch_watermarks(new.topic(), new.partition(), REQUEST_TIMEOUT).map_err(unavailable)?;
            ends.add_partition_offset(new.topic(), new.partition(), Offset::Offset(end)).map_err(unavailable)?;
        }
        if ends.count() == 0 {
            return Ok(true);
        }
        match consumer.commit(&ends, CommitMode::Sync) {
            Ok(()) => Ok(true),
            Err(KafkaError::ConsumerCommit(
                RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress,
            )) => Ok(false),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn join(&self, subscribe: Subscribe, handler: Arc<dyn Handler>) -> Result<Subscription, BusError> {
        let (bus, health) = (self.clone(), WorkerHealth::new(self.clock.clone()));
        let shared = Shared {
            config: self.config.clone(),
            producer: self.producer.clone(),
            clock: self.clock.clone(),
            subscribe: Arc::new(subscribe),
            handler,
            health: health.clone(),
            id: Uuid::now_v7().to_string(),
        };
        let (runtime, stop) = (runtime::Handle::current(), StopSignal::new());
        let abort_on_drop = AbortOnDrop(stop.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // The first time here, so that what is wrong with the settings is an error of the
            // caller, and a new group receives what is published from now on.
            let open = || bus.open(&shared, runtime.clone(), stop.clone());
            let consumer = match open() {
                Ok(consumer) => Some(consumer),
                Err(error @ BusError::Unavailable(_)) => {
                    shared.health.failed(&error);
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        group = shared.subscribe.group,
                        error,
                        "cannot reach Kafka; the group is joined later"
                    );
                    None
                }
                Err(error) => return Err(error),
            };
            let thread_stop = stop.clone();
            let reopen = move || match bus.open(&shared, runtime.clone(), stop.clone()) {
                Ok(consumer) => Some(consumer),
                Err(error) => {
                    shared.health.failed(&error);
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(group = shared.subscribe.group, error, "cannot create a consumer; retrying");
                    None
                }
            };
            Member::run(consumer, reopen, thread_stop).map_err(|error| BusError::Unavailable(error.into()))
        });
        let gone = opened.await.map_err(|error| BusError::Unavailable(error.into()))??;
        Ok(Subscription::new(Worker::observed(health, |mut stop| async move {
            stop.wait().await;
            abort_on_drop.0.stop();
            // The thread drops the sender when it ends; the result carries no other information.
            let _ = gone.await;
        })))
    }
}

pub(super) fn unavailable(error: KafkaError) -> BusError {
    BusError::Unavailable(Box::new(error))
}

impl EventBus for KafkaBus {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        self.producer.publish(events).boxed()
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
        dead_letters::list(self, group, topic, limit).boxed()
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        dead_letters::redrive(self, group, topic, (partition, offset)).boxed()
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        dead_letters::discard(self, group, topic, (partition, offset)).boxed()
    }

    fn lag<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Lag>, BusError>> {
        lag::lag(self, group).boxed()
    }
}

impl fmt::Debug for KafkaBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBus").field("config", &self.config).finish_non_exhaustive()
    }
}
