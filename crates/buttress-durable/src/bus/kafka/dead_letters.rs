//! Listing, redriving and discarding dead letters.

use std::collections::HashSet;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use super::bury::is_note;
use super::bus::{KafkaBus, unavailable};
use super::config::refused;
use super::context::Quiet;
use super::member::REQUEST_TIMEOUT;
use super::producer::Entry;
use super::record::{Record, done_headers, headers};
use crate::bus::dead_letter::{DeadLetter, DeadLettered};
use crate::bus::event_bus::BusError;
use crate::event::DomainEvent;

/// A reader that does not join the group, with the group's id, so that it needs the same
/// permissions as the group.
struct Letters {
    reader: BaseConsumer<Quiet>,
    /// The dead-letter topic, by its name on the brokers.
    topic: String,
}

pub(super) async fn list(bus: &KafkaBus, group: &str, topic: &str, limit: u32) -> Result<Vec<DeadLettered>, BusError> {
    let (config, from) = (reader(bus, group), bus.config().wire(&DeadLetter::topic_of(group, topic)));
    let mut letters = blocking(move || {
        let letters = Letters::open(&config, from)?;
        letters.open_ones(&letters.all()?)?.into_iter().map(letter).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    letters.sort_by_key(|letter| (letter.cause.failed_at, letter.cause.partition, letter.cause.offset));
    // A letter that was written twice, because of a crash after the first write, is listed once.
    let mut seen = HashSet::new();
    letters.retain(|letter| seen.insert((letter.cause.partition, letter.cause.offset)));
    letters.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(letters)
}

/// Publishes a letter on its original topic, and then marks it as done.
pub(super) async fn redrive(bus: &KafkaBus, group: &str, topic: &str, place: (i64, i64)) -> Result<(), BusError> {
    let mut record = find(bus, group, topic, place).await?;
    let key = record.key.clone();
    if is_note(&record.payload) {
        record = original(bus, group, topic, &record).await?;
    }
    let event = DomainEvent::from_bytes(&record.payload).ok();
    let entry = Entry {
        id: Uuid::now_v7().to_string(),
        topic: &bus.config().wire(topic),
        partition: None,
        key: key.as_deref().unwrap_or_default(),
        payload: Some(&record.payload),
        headers: event.as_ref().map_or_else(OwnedHeaders::new, headers),
    };
    bus.producer().publish_entry(entry).await?;
    mark(bus, group, topic, place).await
}

pub(super) async fn discard(bus: &KafkaBus, group: &str, topic: &str, place: (i64, i64)) -> Result<(), BusError> {
    find(bus, group, topic, place).await?;
    mark(bus, group, topic, place).await
}

/// Marks a letter as done, with a record behind it in its partition. Kafka cannot delete one
/// record.
async fn mark(bus: &KafkaBus, group: &str, topic: &str, (partition, offset): (i64, i64)) -> Result<(), BusError> {
    let entry = Entry {
        id: Uuid::now_v7().to_string(),
        topic: &bus.config().wire(&DeadLetter::topic_of(group, topic)),
        partition: i32::try_from(partition).ok(),
        key: &[],
        payload: None,
        headers: done_headers(offset),
    };
    Ok(bus.producer().publish_entry(entry).await?)
}

/// Reads a letter that is not done.
async fn find(bus: &KafkaBus, group: &str, topic: &str, (partition, offset): (i64, i64)) -> Result<Record, BusError> {
    let (config, from) = (reader(bus, group), DeadLetter::topic_of(group, topic));
    let (unknown, wire) =
        (BusError::Unknown(format!("dead letter {partition}/{offset} on {from}")), bus.config().wire(&from));
    let Ok(part) = i32::try_from(partition) else { return Err(unknown) };
    let found = blocking(move || {
        let letters = Letters::open(&config, wire)?;
        // Its mark is behind it, if there is one.
        let rest = letters.from(part, offset)?;
        Ok(letters.open_ones(&rest)?.into_iter().find(|record| record.offset == offset))
    })
    .await?;
    found.ok_or(unknown)
}

/// Reads the event that was too large for its letter.
async fn original(bus: &KafkaBus, group: &str, topic: &str, letter: &Record) -> Result<Record, BusError> {
    let unreadable = |error: serde_json::Error| BusError::Unknown(format!("dead letter without a cause: {error}"));
    let cause = letter.cause().map_err(unreadable)?;
    let place = cause.and_then(|cause| Some((i32::try_from(cause.partition).ok()?, cause.offset)));
    let unknown = BusError::Unknown(format!("the original of dead letter {}/{}", letter.partition, letter.offset));
    let Some((partition, offset)) = place else { return Err(unknown) };
    let (config, wire) = (reader(bus, group), bus.config().wire(topic));
    let found = blocking(move || {
        let letters = Letters::open(&config, wire)?;
        letters.one(partition, offset)
    })
    .await?;
    found.ok_or(unknown)
}

/// Configures a consumer that reads without joining the group.
fn reader(bus: &KafkaBus, group: &str) -> ClientConfig {
    let mut config = bus.config().consumer(group);
    config.set("enable.partition.eof", "true").set("allow.auto.create.topics", "false");
    config
}

// === impl Letters ===

impl Letters {
    fn open(config: &ClientConfig, topic: String) -> Result<Self, BusError> {
        Ok(Self { reader: config.create_with_context(Quiet).map_err(refused)?, topic })
    }

    /// All partitions, from their beginning.
    fn all(&self) -> Result<TopicPartitionList, BusError> {
        let mut partitions = TopicPartitionList::new();
        let metadata = self.reader.fetch_metadata(Some(&self.topic), REQUEST_TIMEOUT).map_err(unavailable)?;
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            let add = partitions.add_partition_offset(&self.topic, partition.id(), Offset::Beginning);
            add.map_err(unavailable)?;
        }
        Ok(partitions)
    }

    /// One partition, from an offset on. Empty if it does not have that offset.
    fn from(&self, partition: i32, offset: i64) -> Result<TopicPartitionList, BusError> {
        let mut one = TopicPartitionList::new();
        match self.reader.fetch_watermarks(&self.topic, partition, REQUEST_TIMEOUT) {
            Ok((low, high)) if (low..high).contains(&offset) => {
                one.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).map_err(unavailable)?;
            }
            Ok(_) => {}
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(unavailable(error)),
        }
        Ok(one)
    }

    /// Reads to the ends of the partitions, and returns the letters that are not done.
    fn open_ones(&self, partitions: &TopicPartitionList) -> Result<Vec<Record>, BusError> {
        let mut records = Vec::new();
        self.read(partitions, |record| {
            records.push(record);
            true
        })?;
        let done: HashSet<_> = records.iter().filter_map(|record| Some((record.partition, record.done?))).collect();
        records.retain(|record| record.done.is_none() && !done.contains(&(record.partition, record.offset)));
        Ok(records)
    }

    fn one(&self, partition: i32, offset: i64) -> Result<Option<Record>, BusError> {
        let mut found = None;
        self.read(&self.from(partition, offset)?, |record| {
            found = Some(record).filter(|record| record.offset == offset);
            false
        })?;
        Ok(found)
    }

    /// Reads to the ends of the partitions, or until `take` returns false.
    fn read(&self, partitions: &TopicPartitionList, mut take: impl FnMut(Record) -> bool) -> Result<(), BusError> {
        self.reader.assign(partitions).map_err(unavailable)?;
        let mut left = partitions.count();
        while left > 0 {
            match self.reader.poll(REQUEST_TIMEOUT) {
                Some(Ok(message)) if !take(Record::detach(&message, &self.topic)) => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
                Some(Err(error)) => return Err(unavailable(error)),
                None => return Err(unavailable(KafkaError::NoMessageReceived)),
            }
        }
        Ok(())
    }
}

fn letter(record: Record) -> Result<DeadLettered, BusError> {
    let unreadable = |reason: String| {
        BusError::Unavailable(format!("{}/{} is not a dead letter: {reason}", record.partition, record.offset).into())
    };
    let cause = record.cause().map_err(|error| unreadable(error.to_string()))?;
    Ok(DeadLettered {
        event: DomainEvent::from_bytes(&record.payload).ok(),
        partition: record.partition.into(),
        offset: record.offset,
        cause: cause.ok_or_else(|| unreadable("it has no cause".to_owned()))?,
    })
}

fn is_unknown(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    let codes = [UnknownPartition, UnknownTopic, UnknownTopicOrPartition];
    error.rdkafka_error_code().is_some_and(|code| codes.contains(&code))
}

/// Runs calls that block the thread until the brokers answer.
pub(super) async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, BusError> + Send + 'static,
) -> Result<T, BusError> {
    tokio::task::spawn_blocking(ask).await.map_err(|error| BusError::Unavailable(error.into()))?
}
