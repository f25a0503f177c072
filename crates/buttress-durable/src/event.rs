//! Domain events: what happened, to which aggregate, and when.
//!
//! An event's type is its topic and its aggregate id is its key. Order is kept for each key, not
//! across keys.

mod domain_event;
mod error;
mod name;
mod trace_context;

pub use domain_event::DomainEvent;
pub use error::EventError;
pub(crate) use name::is_topic;
pub use trace_context::TraceContext;
