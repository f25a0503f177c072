use super::name::{MAX_KEY, MAX_TOPIC};

/// Why something is not an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Topics must be legal for every broker.
    #[error("{0:?} is no event type: 1 to {MAX_TOPIC} of the characters A-Z, a-z, 0-9, '.', '_' and '-'")]
    EventType(String),
    /// Keys are stored as text.
    #[error("{0:?} is no aggregate id: 1 to {MAX_KEY} bytes without control characters")]
    AggregateId(String),
    /// Not a W3C trace context.
    #[error("{0:?} is no trace context")]
    Trace(String),
    /// The data does not fit the type, or is not JSON.
    #[error("the event's data cannot be converted")]
    Data(#[from] serde_json::Error),
}
