use super::name::{MAX_KEY, MAX_TOPIC};

/// An event or a trace context is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The type is not a legal topic of every broker.
    #[error("{0:?} is not an event type: must be 1 to {MAX_TOPIC} of the characters A-Z, a-z, 0-9, '.', '_' and '-'")]
    EventType(String),
    /// The aggregate id is not a legal key.
    #[error("{0:?} is not an aggregate id: must be 1 to {MAX_KEY} bytes without control characters")]
    AggregateId(String),
    /// The text is not a W3C trace context.
    #[error("{0:?} is not a W3C trace context")]
    Trace(String),
    /// The data does not match the type, or is not JSON.
    #[error("cannot convert the event's data")]
    Data(#[from] serde_json::Error),
}
