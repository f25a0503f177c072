//! The algorithms of the Buttress layers, without I/O, a runtime or a clock.
//!
//! The crate [`buttress`](https://docs.rs/buttress) contains the Tower layers of the same names.
//! Depend on this crate only to use an algorithm without tokio, or to write a policy of your own.
//!
//! Time comes from a [`Clock`], which is a [`ManualClock`] in tests, and randomness can be seeded.
//! Every algorithm can therefore be tested step by step.
//!
//! | module or type | purpose |
//! |---|---|
//! | [`circuit_breaker`] | stops calling a backend that fails, and probes it until it has recovered |
//! | [`bulkhead`] | limits calls in flight, with a bounded queue |
//! | [`concurrency`] | limits calls in flight, and adapts the limit to the latency |
//! | [`Backoff`] | computes pauses between attempts |
//! | [`rate_limit`] | limits calls per time |
//! | [`adaptive_rate`] | follows the rate that a backend admits |
//! | [`AllOf`] | several policies on one call, all or nothing |
//! | [`retry_budget`] | limits retries to a share of the requests |
//! | [`hedge`] | when a call that has no answer yet is sent again |
//! | [`health`] | liveness, readiness and start-up of a service |
//! | [`load_shed`] | rejects calls while a service is overloaded, the least important ones first |
//! | [`throttle`] | rejects calls that an overloaded backend would reject |
//! | [`deadline`] | until when a call is of use, and whether it starts at all |
//! | [`priority`], [`context`] | the importance of a call, and what it hands on to further calls |
//! | [`policy`] | the traits of a policy, also for policies of your own |
//! | [`outcome`] | the outcomes of calls |
//! | [`report`] | the metrics of policies |
//!
//! # Example
//!
//! A [`Policy`] admits a call with a [`Permit`] or rejects it with a [`Rejection`]. The permit
//! reports the [`Outcome`] of the call, from which the policy learns:
//!
//! ```
//! use buttress_core::circuit_breaker::{CircuitBreaker, State};
//! use buttress_core::{Failure, FailureKind, ManualClock, Permit, Policy};
//!
//! let breaker = CircuitBreaker::<ManualClock>::builder("payments").consecutive_failures(2).build()?;
//! for _ in 0..2 {
//!     let mut permit = breaker.admit("a request")?;
//!     permit.settle(&Failure::new(FailureKind::Connect).into());
//! }
//! assert_eq!(breaker.state(), State::Open);
//!
//! let rejection = breaker.admit("a request").unwrap_err();
//! assert!(rejection.to_string().starts_with("circuit breaker `payments`: open; try again in"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `chaos` | no | `chaos`, the injection of faults |
//! | `tracing` | no | logs changes of a circuit's state as events of the `tracing` crate |
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod adaptive_rate;
mod all_of;
pub mod backoff;
mod beat;
mod buckets;
pub mod bulkhead;
#[cfg(feature = "chaos")]
pub mod chaos;
pub mod circuit_breaker;
mod clock;
pub mod concurrency;
mod config;
pub mod context;
mod cut;
pub mod deadline;
mod draws;
pub mod health;
pub mod hedge;
mod label;
pub mod load_shed;
#[cfg(all(test, loom))]
mod loom_models;
pub mod outcome;
pub mod policy;
pub mod priority;
pub mod rate_limit;
mod reason;
mod rejection;
pub mod report;
pub mod retry_budget;
// Public for the other crates of the workspace only.
#[doc(hidden)]
pub mod shard;
pub mod single_flight;
mod sync;
pub mod throttle;
mod timeline;
mod waiters;

pub use all_of::{AllOf, Both};
pub use backoff::Backoff;
pub use clock::{Clock, ManualClock};
pub use config::{InvalidConfig, Ratio};
pub use label::{Label, Name};
pub use outcome::{Failure, FailureKind, Ignored, Outcome, Sent};
pub use policy::{Idle, Permit, Policy, Progress, Refused, Reserve, Schedule, Scheduled};
pub use priority::{Criticality, Priority};
pub use reason::{Class, Reason, TimeoutKind};
pub use rejection::Rejection;
pub use waiters::Waiters;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
#[cfg(all(test, not(loom)))]
mod testing {
    use crate::report::{LabelValues, Metric, Report, Sink, Value};
    use std::{collections::BTreeSet, sync::mpsc, time::Duration};

    type Reported = (&'static str, LabelValues, Value);

    /// Runs `call` on another thread.
    ///
    /// # Panics
    /// If it does not end: it waits for a lock that this thread holds.
    pub(crate) fn without_waiting<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(call()));
        result.recv_timeout(Duration::from_secs(60)).expect("the call waits for a lock")
    }

    /// Returns the values that a policy reports, with the names of their metrics.
    ///
    /// # Panics
    /// If it reports a metric that `P::metrics` does not list.
    pub(crate) fn reported<P: Report>(policy: &P) -> Vec<Reported> {
        struct List(Vec<(Metric, LabelValues, Value)>);

        impl Sink for List {
            fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value) {
                self.0.push((*metric, labels, value));
            }
        }

        let mut list = List(Vec::new());
        policy.report(&mut list);
        let metrics: BTreeSet<_> = P::metrics().into_iter().collect();
        for (metric, ..) in &list.0 {
            assert!(metrics.contains(metric), "{metric:?} is not among its metrics");
        }
        list.0.into_iter().map(|(metric, labels, value)| (metric.name, labels, value)).collect()
    }
}
