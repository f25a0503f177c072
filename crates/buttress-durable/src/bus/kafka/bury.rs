//! Writing dead letters, in pieces if they are too large for the brokers.

use std::time::Duration;

use buttress_core::Backoff;
use serde_json::json;
use tokio::time::sleep;

use super::partition::Shared;
use super::producer::{Entry, PublishError};
use super::record::{Record, letter_headers};
use crate::bus::dead_letter::DeadLetter;
use crate::bus::event_bus::BusError;
use crate::bus::handler::HandlerError;
use crate::task::Stop;
use crate::text::storable;

/// Pauses between attempts to write a dead letter, which must succeed before the group continues.
const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));

/// Bytes of an error that remain when a letter is cut.
const SHORT: usize = 100;

/// How much of a dead letter is written. A letter is larger than its event, which may be as large
/// as the brokers permit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    /// Everything.
    Whole,
    /// The event, with the beginning of the error.
    Reason,
    /// A note instead of the event, which says where the event is.
    Payload,
}

/// Writes a record to the dead-letter topic, before the partition continues. Returns false if
/// stopped.
pub(super) async fn bury(
    shared: &Shared,
    record: &Record,
    attempts: u32,
    error: &HandlerError,
    stop: &mut Stop,
) -> bool {
    let Shared { config, producer, clock, subscribe, .. } = shared;
    let mut letter = DeadLetter {
        group: subscribe.group.clone(),
        topic: record.topic.clone(),
        partition: record.partition.into(),
        offset: record.offset,
        attempts,
        error: storable(error),
        failed_at: clock.now(),
    };
    let Record { topic, partition, offset, .. } = record;
    tracing::error!(group = letter.group, topic, partition, offset, %error, "event moved to the dead-letter topic");
    let (wire, mut cut, mut failures) = (config.wire(&DeadLetter::topic_of(&letter.group, topic)), Cut::Whole, 0);
    loop {
        let cause = serde_json::to_string(&letter).unwrap_or_default();
        let note = note(record);
        let entry = Entry {
            id: format!("{}/{topic}/{partition}/{offset}/{cut:?}", letter.group),
            topic: &wire,
            partition: None,
            key: record.key.as_deref().unwrap_or_default(),
            payload: Some(if cut == Cut::Payload { note.as_bytes() } else { &record.payload }),
            headers: letter_headers(record, &cause),
        };
        let error = match producer.publish_entry(entry).await {
            Ok(()) => return true,
            Err(PublishError::TooLarge) if cut != Cut::Payload => {
                cut = if cut == Cut::Whole { Cut::Reason } else { Cut::Payload };
                letter.error.truncate(letter.error.floor_char_boundary(SHORT));
                tracing::warn!(group = letter.group, topic, partition, offset, ?cut, "the dead letter is too large");
                continue;
            }
            Err(error) => BusError::from(error),
        };
        tracing::error!(
            topic,
            partition,
            offset,
            error = &error as &dyn std::error::Error,
            "cannot write the dead letter; retrying"
        );
        tokio::select! {
            biased;
            () = stop.wait() => return false,
            () = sleep(PAUSE.pause(failures, &mut fastrand::Rng::new())) => {}
        }
        failures = failures.saturating_add(1);
    }
}

/// Stands for an event that does not fit into its dead letter. It is not an event itself.
fn note(record: &Record) -> String {
    let Record { topic, partition, offset, payload, .. } = record;
    json!({
        "too_large_for_a_dead_letter": payload.len(),
        "original": { "topic": topic, "partition": partition, "offset": offset },
    })
    .to_string()
}

/// Returns whether a payload is such a note.
pub(super) fn is_note(payload: &[u8]) -> bool {
    let note = serde_json::from_slice::<serde_json::Value>(payload);
    note.is_ok_and(|note| note.get("too_large_for_a_dead_letter").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_where_the_event_is() {
        let record = Record {
            topic: "T".to_owned(),
            partition: 3,
            offset: 7,
            key: None,
            payload: vec![b'x'; 5_000],
            dead_letter: None,
            done: None,
        };
        let note = note(&record);
        let original = r#""original":{"offset":7,"partition":3,"topic":"T"}"#;
        assert_eq!(note, format!("{{{original},\"too_large_for_a_dead_letter\":5000}}"));
        assert!(is_note(note.as_bytes()) && !is_note(b"{}") && !is_note(&record.payload));
    }
}
