//! When a call is settled and with which outcome, frame by frame, and the responses of the endings.

mod answers;
#[cfg(feature = "chaos")]
mod chaos;
mod fallback;
mod hedges;
mod limits;
mod outcomes;
mod overload;
mod recorder;
mod retries;
