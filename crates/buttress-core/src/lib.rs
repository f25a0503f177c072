//! The algorithms behind the Tower layers of Buttress, and the vocabulary that they share.
//!
//! This crate has no I/O, no runtime and no clock of its own. Time comes from a [`Clock`], which is
//! a [`ManualClock`] in tests, and randomness is seeded, so that every algorithm can be stepped by
//! hand. The crate `buttress` puts these algorithms behind Tower layers of the same names; depend
//! on that one unless you need an algorithm without tokio.
//!
//! A protective policy answers three questions:
//!
//! * May this call start? A [`Policy`] returns a [`Permit`] or a [`Rejection`].
//! * What was its result? An [`Outcome`].
//! * What does the policy learn from it? [`Permit::settle`].
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `tracing` | changes of a circuit's state as events of the `tracing` crate |
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backoff;
pub mod bulkhead;
pub mod circuit_breaker;
mod clock;
mod config;
pub mod health;
mod label;
#[cfg(all(test, loom))]
mod loom_models;
pub mod outcome;
pub mod policy;
mod reason;
mod rejection;
pub mod report;
pub mod retry_budget;
// For the crates of this workspace.
#[doc(hidden)]
pub mod shard;
mod sync;
mod waiters;

pub use backoff::Backoff;
pub use clock::{Clock, ManualClock};
pub use config::{InvalidConfig, Ratio};
pub use label::{Label, Name};
pub use outcome::{Failure, FailureKind, Ignored, Outcome, Sent};
pub use policy::{Idle, Permit, Policy, Progress, Refused, Reserve};
pub use reason::{Class, Reason, TimeoutKind};
pub use rejection::Rejection;
pub use waiters::Waiters;

#[cfg(all(test, not(loom)))]
mod testing {
    use crate::report::{LabelValues, Metric, Report, Sink, Value};
    use std::collections::BTreeSet;

    type Reported = (&'static str, LabelValues, Value);

    /// All that a policy reports, by the names of its metrics. They are those that it says it has.
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
