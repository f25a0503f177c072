//! What the tests of this workspace share.
//!
//! * [`Inner`]: a backend whose readiness, answers and bodies are scripted, that records what it
//!   received, and that panics when an instance is called that was not polled ready;
//! * [`contract`]: what every layer has to keep, whatever its policy is;
//! * [`traffic`]: the shapes of traffic that every layer and every stack has to survive.

mod body;
pub mod contract;
mod inner;
mod subject;
pub mod traffic;

pub use body::{Part, TestBody};
pub use inner::{Answer, Inner, MakeError, Plan, Ready, Received};

/// Any error, as everywhere in tower.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
