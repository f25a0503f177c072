use std::collections::HashSet;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use super::bus::{KafkaBus, unavailable};
use super::config::refused;
use super::context::Quiet;
use super::member::REQUEST_TIMEOUT;
use super::producer::Entry;
use super::record::{Record, headers};
use crate::bus::dead_letter::{DeadLetter, DeadLettered};
use crate::bus::event_bus::BusError;
use crate::event::DomainEvent;

impl KafkaBus {
    /// Lists the events of a topic that a group could not handle, oldest first, at most `limit`.
    ///
    /// Reads the whole dead-letter topic, with the group's id but without joining the group, so
    /// that it needs the same permissions as the group.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the brokers do not answer.
    pub async fn dead_letters(&self, group: &str, topic: &str, limit: u32) -> Result<Vec<DeadLettered>, BusError> {
        let (config, from) = (self.reader(group), DeadLetter::topic_of(group, topic));
        let mut letters = blocking(move || {
            let reader: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(refused)?;
            let mut partitions = TopicPartitionList::new();
            let metadata = reader.fetch_metadata(Some(&from), REQUEST_TIMEOUT).map_err(unavailable)?;
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                let add = partitions.add_partition_offset(&from, partition.id(), Offset::Beginning);
                add.map_err(unavailable)?;
            }
            read(&reader, &partitions)?.into_iter().map(letter).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        letters.sort_by_key(|letter| (letter.cause.failed_at, letter.cause.partition, letter.cause.offset));
        // A letter that was written twice, because of a crash after the first write, is listed
        // once.
        let mut seen = HashSet::new();
        letters.retain(|letter| seen.insert((letter.cause.partition, letter.cause.offset)));
        letters.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(letters)
    }

    /// Publishes a dead letter on its original topic for another attempt.
    ///
    /// It is not idempotent: each call publishes the letter again. Every group of the topic
    /// receives it; groups that have handled the event recognise it by their
    /// [`Inbox`](crate::Inbox).
    ///
    /// # Errors
    ///
    /// [`BusError::Unknown`] if there is no such letter, [`BusError::Unavailable`] if the brokers
    /// do not answer.
    pub async fn redrive(&self, group: &str, topic: &str, partition: i64, offset: i64) -> Result<(), BusError> {
        let (config, from) = (self.reader(group), DeadLetter::topic_of(group, topic));
        let unknown = BusError::Unknown(format!("dead letter {partition}/{offset} on {from}"));
        let Ok(part) = i32::try_from(partition) else { return Err(unknown) };
        let found = blocking(move || {
            let reader: BaseConsumer<Quiet> = config.create_with_context(Quiet).map_err(refused)?;
            match reader.fetch_watermarks(&from, part, REQUEST_TIMEOUT) {
                Ok((low, high)) if (low..high).contains(&offset) => {}
                Ok(_) => return Ok(None),
                Err(error) if is_unknown(&error) => return Ok(None),
                Err(error) => return Err(unavailable(error)),
            }
            let mut one = TopicPartitionList::new();
            one.add_partition_offset(&from, part, Offset::Offset(offset)).map_err(unavailable)?;
            Ok(read(&reader, &one)?.into_iter().find(|record| record.offset == offset))
        })
        .await?;
        let Some(record) = found else { return Err(unknown) };
        let event = DomainEvent::from_bytes(&record.payload).ok();
        let entry = Entry {
            id: Uuid::now_v7().to_string(),
            topic,
            key: record.key.as_deref().unwrap_or_default(),
            payload: &record.payload,
            headers: event.as_ref().map_or_else(OwnedHeaders::new, headers),
        };
        self.producer().publish_entry(entry).await
    }

    /// Configures a consumer that reads without joining the group.
    fn reader(&self, group: &str) -> ClientConfig {
        let mut config = self.config().consumer(group);
        config.set("enable.partition.eof", "true").set("allow.auto.create.topics", "false");
        config
    }
}

/// Reads from the offsets in `partitions` to the ends of the partitions.
fn read(reader: &BaseConsumer<Quiet>, partitions: &TopicPartitionList) -> Result<Vec<Record>, BusError> {
    reader.assign(partitions).map_err(unavailable)?;
    let (mut records, mut left) = (Vec::new(), partitions.count());
    while left > 0 {
        match reader.poll(REQUEST_TIMEOUT) {
            Some(Ok(message)) => records.push(Record::detach(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
            Some(Err(error)) => return Err(unavailable(error)),
            None => return Err(unavailable(KafkaError::NoMessageReceived)),
        }
    }
    Ok(records)
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
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, BusError> + Send + 'static,
) -> Result<T, BusError> {
    tokio::task::spawn_blocking(ask).await.map_err(|error| BusError::Unavailable(error.into()))?
}
