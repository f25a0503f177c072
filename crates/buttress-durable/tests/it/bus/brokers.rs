use std::sync::Arc;
use std::time::Duration;

use buttress_durable::Clock;
use buttress_durable::bus::{EventBus, KafkaBus, KafkaConfig, LogBus};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Broker;
use crate::support::{Backend, close, ints, offered};

/// The embedded log.
pub(crate) struct Log<D: Backend> {
    home: D::Home,
    pub(crate) bus: LogBus<D>,
}

/// Kafka's mock cluster: brokers in this process that speak the protocol and store records in
/// memory.
pub(crate) struct Mock {
    pub(crate) cluster: MockCluster<'static, DefaultProducerContext>,
    pub(crate) bus: KafkaBus,
}

/// A real broker.
pub(crate) struct Real {
    bus: KafkaBus,
    suffix: String,
}

/// The mock takes up to 3 s for a rebalance, or slightly less than the session timeout if that is
/// longer. A member must outlive it.
pub(crate) fn config(cluster: &MockCluster<'static, DefaultProducerContext>) -> KafkaConfig {
    KafkaConfig::new(cluster.bootstrap_servers()).session(Duration::from_secs(4))
}

impl<D: Backend> Broker for Log<D> {
    const AT_ONCE: u64 = 4;
    type Db = D;

    async fn start() -> Self {
        let home = D::create().await;
        let bus = LogBus::new(D::connect(&home).await);
        Self { home, bus }
    }

    async fn connect_at(&self, clock: Clock) -> Arc<dyn EventBus> {
        let bus = LogBus::new(D::connect(&self.home).await.with_clock(clock));
        Arc::new(bus.with_poll(Duration::from_millis(5)).with_lease(Duration::from_secs(1)))
    }

    fn bus(&self) -> &dyn EventBus {
        &self.bus
    }

    async fn committed(&self, _: &str, _: &str) -> i64 {
        ints(self.bus.db(), "SELECT CAST(COALESCE(SUM(position), 0) AS BIGINT) FROM buttress_group").await[0]
    }

    fn suffix(&self) -> &str {
        ""
    }

    async fn end(self) {
        close(self.bus.db().clone()).await;
        D::destroy(self.home).await;
    }
}

impl Broker for Mock {
    const AT_ONCE: u64 = 32;
    type Db = sqlx::Sqlite;

    async fn start() -> Self {
        let cluster = MockCluster::new(3).unwrap();
        let bus = KafkaBus::new(config(&cluster)).unwrap();
        Self { cluster, bus }
    }

    async fn connect_at(&self, clock: Clock) -> Arc<dyn EventBus> {
        Arc::new(KafkaBus::new(config(&self.cluster)).unwrap().with_clock(clock))
    }

    fn bus(&self) -> &dyn EventBus {
        &self.bus
    }

    async fn committed(&self, group: &str, topic: &str) -> i64 {
        committed(self.cluster.bootstrap_servers(), group, topic).await
    }

    fn suffix(&self) -> &str {
        ""
    }

    async fn end(self) {}
}

impl Broker for Real {
    const AT_ONCE: u64 = 32;
    type Db = sqlx::Sqlite;

    async fn start() -> Self {
        let bus = KafkaBus::new(KafkaConfig::new(real().unwrap())).unwrap();
        Self { bus, suffix: format!("-{}", uuid::Uuid::now_v7().simple()) }
    }

    async fn connect_at(&self, clock: Clock) -> Arc<dyn EventBus> {
        Arc::new(KafkaBus::new(KafkaConfig::new(real().unwrap())).unwrap().with_clock(clock))
    }

    fn bus(&self) -> &dyn EventBus {
        &self.bus
    }

    async fn committed(&self, group: &str, topic: &str) -> i64 {
        committed(real().unwrap(), group, topic).await
    }

    fn suffix(&self) -> &str {
        &self.suffix
    }

    async fn end(self) {}
}

/// The real broker to test on, if there is one: `host:port`.
pub(crate) fn real() -> Option<String> {
    offered("BUTTRESS_TEST_KAFKA")
}

async fn committed(brokers: String, group: &str, topic: &str) -> i64 {
    const ANSWER: Duration = Duration::from_secs(10);
    let (group, topic) = (group.to_owned(), topic.to_owned());
    let ask = move || {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer = config.set("bootstrap.servers", brokers).set("group.id", group).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), ANSWER).unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            partitions.add_partition(&topic, partition.id());
        }
        let committed = consumer.committed_offsets(partitions, ANSWER).unwrap();
        let offsets = committed.elements().into_iter().map(|element| match element.offset() {
            Offset::Offset(offset) => offset,
            _ => 0,
        });
        offsets.sum()
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}
