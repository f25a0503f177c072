use crate::clock::Timestamp;

/// How far a group has come in one partition, as [`EventBus::lag`](crate::EventBus::lag) returns
/// it.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::{EventBus, Lag, LogBus};
/// # use buttress_durable::Db;
///
/// # let dir = tempfile::tempdir()?;
/// # let bus = LogBus::new(Db::open(dir.path().join("bus.db")).await?);
/// let waiting: u64 = bus.lag("shipping").await?.iter().map(Lag::waiting).sum();
/// println!("{waiting} events wait for shipping");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Lag {
    /// The topic.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i64,
    /// The position of the next event to handle.
    pub position: i64,
    /// The position that the next published event will have.
    pub end: i64,
    /// Failed attempts at the next event.
    pub attempts: u32,
    /// Since when the next event waits for a database or a service that is away, or for a version
    /// that knows it. `None` if it does not.
    pub waiting_since: Option<Timestamp>,
}

impl Lag {
    /// Returns the number of events that wait. On Kafka an upper bound: transactions and compaction
    /// leave gaps between positions.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.end.saturating_sub(self.position)).unwrap_or(0)
    }
}
