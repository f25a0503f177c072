//! Events and dead letters as Kafka records.

use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

use crate::bus::dead_letter::DeadLetter;
use crate::bus::handler::{Delivery, HandlerError};
use crate::event::DomainEvent;

/// A record, copied from the consumer's buffer.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    /// Empty for a tombstone, which is not an event.
    pub(super) payload: Vec<u8>,
    /// The [`DeadLetter`] as JSON, on dead-letter topics.
    pub(super) dead_letter: Option<Vec<u8>>,
}

const EVENT_ID: &str = "event-id";
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const DEAD_LETTER: &str = "buttress-dead-letter";

// === impl Record ===

impl Record {
    pub(super) fn detach(message: &impl Message) -> Self {
        let headers = message.headers();
        let mut headers = headers.iter().flat_map(|headers| headers.iter());
        let dead_letter = headers.find(|header| header.key == DEAD_LETTER);
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().unwrap_or_default().to_vec(),
            dead_letter: dead_letter.and_then(|header| header.value).map(<[u8]>::to_vec),
        }
    }

    pub(super) fn delivery(&self, attempt: u32) -> Result<Delivery, HandlerError> {
        Ok(Delivery {
            event: DomainEvent::from_bytes(&self.payload).map_err(HandlerError::reject)?,
            topic: self.topic.clone(),
            partition: self.partition.into(),
            offset: self.offset,
            attempt,
            dead_letter: self.cause().map_err(HandlerError::reject)?,
        })
    }

    pub(super) fn cause(&self) -> Result<Option<DeadLetter>, serde_json::Error> {
        self.dead_letter.as_deref().map(serde_json::from_slice).transpose()
    }
}

pub(super) fn headers(event: &DomainEvent) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    headers = with(headers, EVENT_ID, &event.event_id().to_string());
    if let Some(trace) = event.trace() {
        headers = with(headers, TRACEPARENT, trace.traceparent());
        if let Some(state) = trace.tracestate() {
            headers = with(headers, TRACESTATE, state);
        }
    }
    headers
}

/// Returns the headers of a dead letter: those of the event, if it can be decoded, and the cause.
pub(super) fn letter_headers(record: &Record, cause: &str) -> OwnedHeaders {
    let event = DomainEvent::from_bytes(&record.payload).ok();
    with(event.as_ref().map(headers).unwrap_or_default(), DEAD_LETTER, cause)
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}
