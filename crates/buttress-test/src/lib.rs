//! What the tests of this workspace share.
//!
//! * [`Inner`]: a service whose readiness, answer and body are scripted, and that panics when an instance is called that
//!   was not polled ready;
//! * [`contract`]: what every layer has to keep, whatever its policy is.

mod body;
pub mod contract;
mod inner;

pub use body::{Part, TestBody};
pub use inner::{Answer, Inner, Plan, Ready};

/// Any error, as everywhere in tower.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
