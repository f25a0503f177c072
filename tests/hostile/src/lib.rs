//! Runs input from strangers through whole stacks: what a server gets from any client, what a
//! client gets from any server, and what a consumer gets from a broker.
//!
//! Each function takes any bytes. It panics where a promise is broken: a layer panics, a call does
//! not end, or an answer is none that HTTP knows. Every parser of headers that a layer has or will
//! have is on its way.
//!
//! The tests run the functions on the files in `corpus/` and on random changes of them. With
//! `cargo xtask fuzz` a fuzzer runs them, which looks for input that reaches new code.

mod event;
mod message;
mod request;
mod response;

pub use event::{event, priority};
pub use request::request;
pub use response::response;

use std::{future::Future, time::Duration};

/// The longest virtual time that a call may take: three attempts, and pauses that a server may ask
/// for, which are bounded by a minute each.
const LONGEST: Duration = Duration::from_secs(600);

/// Runs a call on virtual time, to its end.
fn run<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let call = async { tokio::time::timeout(LONGEST, call).await.expect("the call must end") };
    runtime.expect("a runtime without IO needs nothing from the system").block_on(call)
}
