use buttress::policy::Priority;
use buttress_durable::{DomainEvent, TraceContext, saga::SagaId};

/// Reads what a broker may hold: an event, or anything else. An event that is read is written and
/// read again as the same.
pub fn event(data: &[u8]) {
    if let Ok(event) = serde_json::from_slice::<DomainEvent>(data) {
        let bytes = serde_json::to_vec(&event).expect("an event that was read can be written");
        let again: DomainEvent = serde_json::from_slice(&bytes).expect("an event that was written can be read");
        assert_eq!(again, event);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(trace) = text.parse::<TraceContext>() {
            assert_eq!(trace.traceparent(), text);
        }
        if let Ok(id) = text.parse::<SagaId>() {
            assert_eq!(id.to_string(), text);
        }
    }
}

/// Reads a priority. One that is read is written and read again as the same.
pub fn priority(data: &[u8]) {
    let Some(priority) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<Priority>().ok()) else { return };
    assert_eq!(priority.to_string().parse(), Ok(priority));
}
