//! How far a group has come.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::bus::{KafkaBus, unavailable};
use super::config::{KafkaConfig, refused};
use super::context::Quiet;
use super::dead_letters::blocking;
use super::member::REQUEST_TIMEOUT;
use super::partition::Note;
use crate::bus::event_bus::BusError;
use crate::bus::lag::Lag;

/// Reads the committed offsets of a group on all topics of the cluster. Brokers cannot be asked for
/// the topics of a group that has no members.
pub(super) async fn lag(bus: &KafkaBus, group: &str) -> Result<Vec<Lag>, BusError> {
    let (config, group) = (bus.config().clone(), group.to_owned());
    blocking(move || read(&config, &group)).await
}

fn read(config: &KafkaConfig, group: &str) -> Result<Vec<Lag>, BusError> {
    let reader: BaseConsumer<Quiet> = config.consumer(group).create_with_context(Quiet).map_err(refused)?;
    let metadata = reader.fetch_metadata(None, REQUEST_TIMEOUT).map_err(unavailable)?;
    let mut partitions = TopicPartitionList::new();
    // Not those of other prefixes, nor internal ones.
    for topic in metadata.topics().iter().filter(|topic| config.local(topic.name()).is_some()) {
        for partition in topic.partitions().iter().filter(|_| !topic.name().starts_with("__")) {
            partitions.add_partition(topic.name(), partition.id());
        }
    }
    let committed = reader.committed_offsets(partitions, REQUEST_TIMEOUT).map_err(unavailable)?;
    let mut lags = Vec::new();
    for element in committed.elements() {
        let Offset::Offset(position) = element.offset() else { continue };
        let (wire, partition) = (element.topic(), element.partition());
        let (_, end) = reader.fetch_watermarks(wire, partition, REQUEST_TIMEOUT).map_err(unavailable)?;
        let tries = Note::of(&element).tries;
        lags.push(Lag {
            topic: config.local(wire).unwrap_or(wire).to_owned(),
            partition: partition.into(),
            position,
            end,
            attempts: tries.attempts,
            waiting_since: tries.waiting_since,
        });
    }
    lags.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    Ok(lags)
}
