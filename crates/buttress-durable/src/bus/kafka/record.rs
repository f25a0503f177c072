//! Events and dead letters as Kafka records.

use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};

use crate::bus::dead_letter::DeadLetter;
use crate::bus::handler::{Delivery, HandlerError};
use crate::event::DomainEvent;

/// A record, copied from the consumer's buffer.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Without the prefix of the bus.
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    /// Empty for a tombstone, which is not an event.
    pub(super) payload: Vec<u8>,
    /// The [`DeadLetter`] as JSON, on dead-letter topics.
    pub(super) dead_letter: Option<Vec<u8>>,
    /// On dead-letter topics: the offset of a letter of this partition that was redriven or
    /// discarded. Such a record is no letter itself.
    pub(super) done: Option<i64>,
}

const EVENT_ID: &str = "event-id";
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const DEAD_LETTER: &str = "buttress-dead-letter";
const DONE: &str = "buttress-done";

// === impl Record ===

impl Record {
    pub(super) fn detach(message: &impl Message, topic: &str) -> Self {
        let header = |key: &str| {
            let mut headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            headers.find(|header| header.key == key).and_then(|header| header.value)
        };
        let done = header(DONE).and_then(|offset| std::str::from_utf8(offset).ok()?.parse().ok());
        Self {
            topic: topic.to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().unwrap_or_default().to_vec(),
            dead_letter: header(DEAD_LETTER).map(<[u8]>::to_vec),
            done,
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

/// Returns the headers of a record that marks a letter as redriven or discarded.
pub(super) fn done_headers(offset: i64) -> OwnedHeaders {
    with(OwnedHeaders::new(), DONE, &offset.to_string())
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp as KafkaTime;
    use rdkafka::message::OwnedMessage;

    use super::*;
    use crate::{Timestamp, TraceContext};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn event() -> DomainEvent {
        DomainEvent::new("OrderCreated", "order-7", Timestamp::from_millis(5), &1).unwrap()
    }

    fn record(payload: Vec<u8>, headers: OwnedHeaders) -> Record {
        let (topic, key, time) = ("dead.g.OrderCreated".to_owned(), b"order-7".to_vec(), KafkaTime::NotAvailable);
        Record::detach(&OwnedMessage::new(Some(payload), Some(key), topic.clone(), time, 3, 11, Some(headers)), &topic)
    }

    #[test]
    fn a_mark_names_the_letter_that_is_done() {
        assert_eq!(record(Vec::new(), done_headers(7)).done, Some(7));
        assert_eq!(record(Vec::new(), OwnedHeaders::new()).done, None);
    }

    fn shown(headers: &OwnedHeaders) -> Vec<(String, String)> {
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    }

    #[test]
    fn headers_repeat_what_tools_look_for() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let plain = event();
        let id = pair("event-id", &plain.event_id().to_string());
        assert_eq!(shown(&headers(&plain)), std::slice::from_ref(&id));
        let traced = plain.with_trace(TraceContext::new(PARENT, Some("a=b")).unwrap());
        assert_eq!(shown(&headers(&traced)), [id, pair("traceparent", PARENT), pair("tracestate", "a=b")]);
    }

    #[test]
    fn a_record_is_delivered_with_its_place() {
        let event = event();
        let record = record(event.to_bytes().unwrap(), headers(&event));
        let Delivery { event: read, topic, partition, offset, attempt, dead_letter } = record.delivery(4).unwrap();
        assert_eq!((read, topic.as_str()), (event, "dead.g.OrderCreated"));
        assert_eq!((partition, offset, attempt, dead_letter), (3, 11, 4, None));
        assert_eq!(record.key.as_deref(), Some(&b"order-7"[..]));
    }

    #[test]
    fn a_dead_letter_keeps_its_cause_and_what_is_no_event_is_rejected() {
        let (topic, failed_at) = ("OrderCreated".to_owned(), Timestamp::from_millis(9));
        let cause = DeadLetter {
            group: "g".to_owned(),
            topic,
            partition: 1,
            offset: 2,
            attempts: 5,
            error: "no".to_owned(),
            failed_at,
        };
        let json = serde_json::to_string(&cause).unwrap();
        let original = record(event().to_bytes().unwrap(), OwnedHeaders::new());
        let letter = record(original.payload.clone(), letter_headers(&original, &json));
        assert_eq!(letter.cause().unwrap(), Some(cause.clone()));
        assert_eq!(letter.delivery(1).unwrap().dead_letter, Some(cause));
        let broken = record(b"no event".to_vec(), letter_headers(&record(Vec::new(), OwnedHeaders::new()), "no JSON"));
        assert!(broken.cause().is_err());
        assert!(broken.delivery(1).is_err_and(|error| error.is_reject()));
    }
}
