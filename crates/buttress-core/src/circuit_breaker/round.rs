use std::time::{Duration, Instant};

/// A half-open round: its leases and results. Only probes end it; see [`Machine::roll`] for its
/// time limit.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// When the round began, or when the last result or part of a response of a probe arrived.
    pub(super) since: Option<Instant>,
    pub(super) leases: Vec<Lease>,
    /// The number of the last probe.
    pub(super) last: u32,
    pub(super) succeeded: u32,
    pub(super) failed: u32,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) probe: Probe,
    pub(super) started: Instant,
    /// When the lease began, or when the last part of the response arrived. The start and not the
    /// end, so that a reload of the length takes effect at once.
    pub(super) since: Instant,
    /// The time to the head of the response.
    pub(super) to_head: Option<Duration>,
    /// Whether its call has begun. The expiry of a reserved lease whose call has not begun is not
    /// counted.
    pub(super) begun: bool,
}

/// The number of a probe, from 1. Different for all probes of a circuit that are in flight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Probe(pub(super) u32);

/// The result of a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Succeeded,
    Failed,
    /// No evidence: only the slot is released.
    Ignored,
}
