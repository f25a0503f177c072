//! Kafka for the demo: existing brokers, or a mock cluster in this process.
//!
//! The mock speaks Kafka's protocol over real sockets to clients in other processes. It keeps
//! everything in memory and ends with this process. To use a real broker, pass its address.

/// The Kafka cluster, if the bus is not the embedded log.
pub(crate) struct Brokers {
    address: Option<String>,
    /// Dropping it stops the cluster.
    #[cfg(feature = "kafka")]
    mock: Option<rdkafka::mocking::MockCluster<'static, rdkafka::producer::DefaultProducerContext>>,
}

impl Brokers {
    #[cfg(feature = "kafka")]
    pub(crate) fn new(brokers: Option<String>) -> anyhow::Result<Self> {
        if brokers.as_deref() != Some("mock") {
            return Ok(Self { address: brokers, mock: None });
        }
        let mock = rdkafka::mocking::MockCluster::new(1)?;
        Ok(Self { address: Some(mock.bootstrap_servers()), mock: Some(mock) })
    }

    #[cfg(not(feature = "kafka"))]
    pub(crate) fn new(brokers: Option<String>) -> anyhow::Result<Self> {
        // Checked here; otherwise the error would come from the first child that fails.
        crate::bus::Bus::new(brokers.clone())?;
        Ok(Self { address: brokers })
    }

    pub(crate) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub(crate) fn describe(&self) -> &'static str {
        #[cfg(feature = "kafka")]
        if self.mock.is_some() {
            return "Kafka (a mock cluster)";
        }
        if self.address.is_some() { "Kafka" } else { "the embedded log" }
    }
}
