//! Kafka for the demo and the soak: existing brokers, or a mock cluster in this process.
//!
//! The mock speaks Kafka's protocol over real sockets to clients in other processes. It keeps
//! everything in memory and ends with this process. To use a real broker, pass its address.

/// The Kafka cluster, if the bus is not the embedded log.
pub(crate) struct Brokers {
    address: Option<String>,
    mock: Option<Mock>,
}

impl Brokers {
    /// A mock has one broker.
    pub(crate) fn new(brokers: Option<String>) -> anyhow::Result<Self> {
        Self::with_mock_of(1, brokers)
    }

    /// A mock has `count` brokers.
    pub(crate) fn with_mock_of(count: i32, brokers: Option<String>) -> anyhow::Result<Self> {
        // Checked here; otherwise the error would come from the first child that fails.
        crate::bus::Bus::new(brokers.clone())?;
        if brokers.as_deref() != Some("mock") {
            return Ok(Self { address: brokers, mock: None });
        }
        let mock = Mock::new(count)?;
        Ok(Self { address: Some(mock.address()), mock: Some(mock) })
    }

    pub(crate) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub(crate) fn mock(&self) -> Option<&Mock> {
        self.mock.as_ref()
    }

    pub(crate) fn describe(&self) -> &'static str {
        match (&self.mock, &self.address) {
            (Some(_), _) => "Kafka (a mock cluster)",
            (None, Some(_)) => "Kafka",
            (None, None) => "the embedded log",
        }
    }
}

/// A mock cluster. Dropping it stops the cluster.
#[cfg(feature = "kafka")]
pub(crate) struct Mock {
    cluster: rdkafka::mocking::MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
    brokers: i32,
}

#[cfg(feature = "kafka")]
impl Mock {
    fn new(brokers: i32) -> anyhow::Result<Self> {
        Ok(Self { cluster: rdkafka::mocking::MockCluster::new(brokers)?, brokers })
    }

    fn address(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Number of brokers. Their ids begin with 1.
    pub(crate) fn brokers(&self) -> i32 {
        self.brokers
    }

    pub(crate) fn down(&self, broker: i32) -> anyhow::Result<()> {
        Ok(self.cluster.broker_down(broker)?)
    }

    pub(crate) fn up(&self, broker: i32) -> anyhow::Result<()> {
        Ok(self.cluster.broker_up(broker)?)
    }

    /// Changes the leader of a partition.
    pub(crate) fn lead(&self, topic: &str, partition: i32, leader: i32) -> anyhow::Result<()> {
        Ok(self.cluster.partition_leader(topic, partition, Some(leader))?)
    }
}

/// Without the feature `kafka` there is no mock cluster.
#[cfg(not(feature = "kafka"))]
pub(crate) enum Mock {}

#[cfg(not(feature = "kafka"))]
impl Mock {
    fn new(_brokers: i32) -> anyhow::Result<Self> {
        Err(crate::bus::NoKafka.into())
    }

    fn address(&self) -> String {
        match *self {}
    }

    pub(crate) fn brokers(&self) -> i32 {
        match *self {}
    }

    pub(crate) fn down(&self, _broker: i32) -> anyhow::Result<()> {
        match *self {}
    }

    pub(crate) fn up(&self, _broker: i32) -> anyhow::Result<()> {
        match *self {}
    }

    pub(crate) fn lead(&self, _topic: &str, _partition: i32, _leader: i32) -> anyhow::Result<()> {
        match *self {}
    }
}
