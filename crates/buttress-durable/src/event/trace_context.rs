use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::EventError;

/// A W3C trace context (<https://www.w3.org/TR/trace-context/>): the trace that caused an event.
///
/// ```
/// use buttress_durable::TraceContext;
///
/// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let trace = TraceContext::new(parent, Some("vendor=1"))?;
/// assert_eq!((trace.traceparent(), trace.tracestate()), (parent, Some("vendor=1")));
/// assert!(TraceContext::new("00-0-0-01", None).is_err());
/// # Ok::<(), buttress_durable::EventError>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "WireTrace")]
pub struct TraceContext {
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
}

/// <https://www.w3.org/TR/trace-context/#tracestate-limits>
const MAX_TRACESTATE: usize = 512;

impl TraceContext {
    /// Creates a trace context from the values of the `traceparent` and `tracestate` headers.
    ///
    /// # Errors
    ///
    /// If `traceparent` is not `00-<32 hex>-<16 hex>-<2 hex>` with ids that are not all zero. A
    /// `tracestate` that is longer than 512 bytes or not printable ASCII is dropped, as the
    /// standard requires.
    pub fn new(traceparent: &str, tracestate: Option<&str>) -> Result<Self, EventError> {
        let mut this: Self = traceparent.parse()?;
        let legal = |state: &&str| state.len() <= MAX_TRACESTATE && state.bytes().all(|b| (0x20..0x7f).contains(&b));
        this.tracestate = tracestate.filter(legal).map(str::to_owned);
        Ok(this)
    }

    /// Returns the value of the `traceparent` header.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// Returns the value of the `tracestate` header.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent)
    }
}

impl FromStr for TraceContext {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        let hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let id = |part: &str, len| hex(part, len) && part.bytes().any(|b| b != b'0');
        match text.split('-').collect::<Vec<_>>()[..] {
            ["00", trace, span, flags] if id(trace, 32) && id(span, 16) && hex(flags, 2) => {
                Ok(Self { traceparent: text.to_owned(), tracestate: None })
            }
            _ => Err(EventError::Trace(text.to_owned())),
        }
    }
}

#[derive(Deserialize)]
struct WireTrace {
    traceparent: String,
    #[serde(default)]
    tracestate: Option<String>,
}

impl TryFrom<WireTrace> for TraceContext {
    type Error = EventError;

    fn try_from(wire: WireTrace) -> Result<Self, EventError> {
        Self::new(&wire.traceparent, wire.tracestate.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_w3c_trace_contexts_are_carried() {
        assert_eq!(PARENT.parse::<TraceContext>().unwrap().to_string(), PARENT);
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for wrong in ["", zero, &PARENT[1..], &PARENT.to_uppercase(), &PARENT.replacen("00-", "01-", 1)] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
        for wrong in
            [PARENT.replace("b7ad6b7169203331", "0000000000000000"), format!("{PARENT}-1"), format!("{PARENT}0")]
        {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
        let state = |state: &str| TraceContext::new(PARENT, Some(state)).unwrap().tracestate().map(str::to_owned);
        assert_eq!((state("a\nb"), state("\u{7f}"), state(&"s".repeat(513))), (None, None, None));
        assert_eq!((state("a=b ~"), state(&"s".repeat(512))), (Some("a=b ~".to_owned()), Some("s".repeat(512))));
    }
}
