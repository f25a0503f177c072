use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::EventError;
use super::name::{MAX_TOPIC, is_key, is_topic};
use super::trace_context::TraceContext;
use crate::clock::Timestamp;

/// An event of one aggregate. Its type is the topic and its aggregate id is the key.
///
/// Every event is valid: its type is a legal topic, its aggregate id a legal key. This includes
/// events deserialised from JSON, where unknown fields are ignored so that a newer producer does
/// not break an older consumer.
///
/// ```
/// use buttress_durable::{DomainEvent, Timestamp};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize, Serialize)]
/// struct OrderCreated { total_cents: i64 }
///
/// let now = Timestamp::from_millis(1_700_000_000_000);
/// let event = DomainEvent::new("OrderCreated", "order-7", now, &OrderCreated { total_cents: 790 })?;
/// assert_eq!((event.topic(), event.key()), ("OrderCreated", "order-7"));
/// assert_eq!(event.decode::<OrderCreated>()?.total_cents, 790);
/// # Ok::<(), buttress_durable::EventError>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "Wire")]
pub struct DomainEvent {
    event_id: Uuid,
    event_type: String,
    aggregate_id: String,
    occurred_at: Timestamp,
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<TraceContext>,
    data: serde_json::Value,
}

impl DomainEvent {
    /// Creates an event with a new id, schema version 1 and no trace context.
    ///
    /// # Errors
    ///
    /// If the type is not a legal topic (1 to 120 of `A-Za-z0-9._-`), the aggregate id is not a
    /// legal key (1 to 255 bytes, no control characters), or the data cannot be serialised.
    pub fn new(
        event_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        occurred_at: Timestamp,
        data: &impl Serialize,
    ) -> Result<Self, EventError> {
        Self::try_from(Wire {
            event_id: Uuid::now_v7(),
            event_type: event_type.into(),
            aggregate_id: aggregate_id.into(),
            occurred_at,
            schema_version: first_version(),
            trace: None,
            data: serde_json::to_value(data)?,
        })
    }

    /// Sets the trace context.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sets the version of the data's schema. Default: 1.
    #[must_use]
    pub fn with_schema_version(mut self, version: u32) -> Self {
        self.schema_version = version;
        self
    }

    /// Returns the unique id (UUID v7). It is the same on every delivery, so that an
    /// [`Inbox`](crate::Inbox) can recognise the event.
    pub fn event_id(&self) -> Uuid {
        self.event_id
    }

    /// Returns the type of the event. It is also the topic.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the topic: the type of the event.
    pub fn topic(&self) -> &str {
        &self.event_type
    }

    /// Returns the id of the aggregate. It is also the key.
    pub fn aggregate_id(&self) -> &str {
        &self.aggregate_id
    }

    /// Returns the key by which order is kept: the id of the aggregate.
    pub fn key(&self) -> &str {
        &self.aggregate_id
    }

    /// Returns when the event happened, by the producer's clock.
    pub fn occurred_at(&self) -> Timestamp {
        self.occurred_at
    }

    /// Returns the version of the data's schema.
    pub fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Returns the trace context in which the event happened.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Returns the data as JSON.
    pub fn data(&self) -> &serde_json::Value {
        &self.data
    }

    /// Deserialises the data.
    ///
    /// # Errors
    ///
    /// If the data does not have the shape of `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, EventError> {
        Ok(T::deserialize(&self.data)?)
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, EventError> {
        Ok(serde_json::to_vec(self)?)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, EventError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// An event that has not been validated.
#[derive(Deserialize)]
struct Wire {
    event_id: Uuid,
    event_type: String,
    aggregate_id: String,
    occurred_at: Timestamp,
    #[serde(default = "first_version")]
    schema_version: u32,
    #[serde(default)]
    trace: Option<TraceContext>,
    #[serde(default)]
    data: serde_json::Value,
}

fn first_version() -> u32 {
    1
}

impl TryFrom<Wire> for DomainEvent {
    type Error = EventError;

    fn try_from(wire: Wire) -> Result<Self, EventError> {
        let Wire { event_id, event_type, aggregate_id, occurred_at, schema_version, trace, data } = wire;
        if !is_topic(&event_type, MAX_TOPIC) {
            return Err(EventError::EventType(event_type));
        }
        if !is_key(&aggregate_id) {
            return Err(EventError::AggregateId(aggregate_id));
        }
        Ok(Self { event_id, event_type, aggregate_id, occurred_at, schema_version, trace, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn event() -> DomainEvent {
        DomainEvent::new("OrderCreated", "order-7", Timestamp::from_millis(5), &serde_json::json!({"total": 1}))
            .unwrap()
    }

    #[test]
    fn an_event_tells_what_it_was_made_of() {
        let trace = TraceContext::new(PARENT, None).unwrap();
        let event = event().with_schema_version(3).with_trace(trace.clone());
        assert_eq!((event.event_type(), event.topic()), ("OrderCreated", "OrderCreated"));
        assert_eq!((event.aggregate_id(), event.key()), ("order-7", "order-7"));
        assert_eq!((event.occurred_at(), event.schema_version()), (Timestamp::from_millis(5), 3));
        assert_eq!((event.trace(), event.data()["total"].as_i64()), (Some(&trace), Some(1)));
        assert_ne!(event.event_id(), self::event().event_id());
    }

    /// Other programs read these names, and so do later versions of this one.
    #[test]
    fn the_names_on_the_wire_stay() {
        let event = event().with_trace(TraceContext::new(PARENT, Some("a=b")).unwrap());
        let expected = serde_json::json!({
            "event_id": event.event_id(),
            "event_type": "OrderCreated",
            "aggregate_id": "order-7",
            "occurred_at": 5,
            "schema_version": 1,
            "trace": { "traceparent": PARENT, "tracestate": "a=b" },
            "data": { "total": 1 },
        });
        assert_eq!(serde_json::to_value(&event).unwrap(), expected);
    }

    #[test]
    fn a_number_stays_the_same_however_often_an_event_is_read_and_written() {
        let number = "188888888888888888888888888888888888888888888888888888888888888888888888888.5e3";
        let data: serde_json::Value = serde_json::from_str(number).unwrap();
        let event = DomainEvent::new("OrderCreated", "order-7", Timestamp::from_millis(5), &data).unwrap();
        let read = DomainEvent::from_bytes(&event.to_bytes().unwrap()).unwrap();
        assert_eq!(read, event, "one digit in the last place was lost with each reading");
        assert_eq!(data.as_f64(), number.parse().ok());
    }

    #[test]
    fn an_event_survives_the_wire() {
        let event = event().with_schema_version(3).with_trace(TraceContext::new(PARENT, Some("a=b")).unwrap());
        assert_eq!(DomainEvent::from_bytes(&event.to_bytes().unwrap()).unwrap(), event);
    }

    #[test]
    fn a_newer_producer_does_not_stop_an_older_consumer() {
        let mut json = serde_json::to_value(event()).unwrap();
        json["added_later"] = 1.into();
        json.as_object_mut().unwrap().remove("schema_version");
        let read: DomainEvent = serde_json::from_value(json).unwrap();
        assert_eq!(read.schema_version(), 1);
    }

    #[test]
    fn what_no_broker_takes_is_no_event() {
        let make = |topic: &str, key: &str| DomainEvent::new(topic, key, Timestamp::default(), &());
        for topic in ["", "a b", "a/b", "\u{e9}", &"x".repeat(121)] {
            assert!(matches!(make(topic, "k"), Err(EventError::EventType(_))), "{topic:?}");
        }
        for key in ["", "a\0b", &"x".repeat(256)] {
            assert!(matches!(make("T", key), Err(EventError::AggregateId(_))), "{key:?}");
        }
        assert!(make(&"x".repeat(120), &"x".repeat(255)).is_ok(), "the longest names");
        assert!(make("A-Z.a_z-09", "customer 7, \u{e9}").is_ok());
        let mut json = serde_json::to_value(event()).unwrap();
        json["event_type"] = "a b".into();
        assert!(serde_json::from_value::<DomainEvent>(json).is_err(), "nor when it comes from outside");
    }
}
