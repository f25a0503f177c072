use super::{
    config::Recovery,
    event::{Cause, State},
    round::Round,
};
use crate::Failure;
use fastrand::Rng;
use std::time::{Duration, Instant};

/// The longest step back that is not a clock that was set back: threads may read the clock in one
/// order and take the lock in the other.
const MAX_STEP_BACK: Duration = Duration::from_secs(1);

/// The state machine of a circuit: its state, and the probes of a half-open round. The time is an
/// argument, and the circuit's lock protects it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) config: Recovery,
    pub(super) state: State,
    pub(super) generation: u64,
    /// How often it has opened since it was last closed.
    pub(super) openings: u32,
    /// The end of the open time; `None` if it overflows an [`Instant`].
    pub(super) open_until: Option<Instant>,
    /// When a trip rule or probes opened it; `None` if an operator or another instance did.
    opened: Option<Instant>,
    pub(super) round: Round,
    /// Leases that were revoked and whose events have not been emitted.
    pub(super) expired: u32,
    /// How many probes may be in flight in this instance, if instances share them; `None` for no
    /// such limit.
    pub(super) allowed: Option<u32>,
    /// Whether a probe was due and not allowed. No call is admitted until `allowed` changes.
    pub(super) probe_denied: bool,
    /// The latest time seen.
    latest: Option<Instant>,
    /// The number of changes of state, by the state before and after.
    changes: [[u32; State::ALL.len()]; State::ALL.len()],
    rng: Rng,
}

/// A change of state: a [`Transition`](super::event::Transition) without the circuit's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) from: State,
    pub(super) to: State,
    pub(super) cause: Cause,
    pub(super) generation: u64,
    pub(super) open_for: Option<Duration>,
    pub(super) last_failure: Option<Failure>,
}

/// The end of the time in which every call is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Until {
    Now,
    Moment(Instant),
    Forever,
}

impl Machine {
    pub(super) fn new(config: Recovery, rng: Rng) -> Self {
        Self {
            config,
            state: State::Closed,
            generation: 0,
            openings: 0,
            open_until: None,
            opened: None,
            round: Round::default(),
            expired: 0,
            allowed: None,
            probe_denied: false,
            latest: None,
            changes: Default::default(),
            rng,
        }
    }

    /// Detects a clock that was set back, and moves all times of the machine back with it.
    /// Otherwise, after an hour's step an open time of 5 seconds would last an hour longer.
    pub(super) fn observe(&mut self, now: Instant) {
        let latest = self.latest.map_or(now, |latest| latest.max(now));
        let back = latest.saturating_duration_since(now);
        self.latest = Some(if back > MAX_STEP_BACK { now } else { latest });
        if back <= MAX_STEP_BACK {
            return;
        }
        let moved = |moment: Instant| moment.checked_sub(back).unwrap_or(now);
        self.open_until = self.open_until.map(moved);
        self.opened = self.opened.map(moved);
        self.round.since = self.round.since.map(moved);
        for lease in &mut self.round.leases {
            (lease.started, lease.since) = (moved(lease.started), moved(lease.since));
        }
    }

    /// Returns until when every call is refused, if nothing else happens before.
    pub(super) fn refuses_until(&self) -> Until {
        let moment = |moment: Option<Instant>| moment.map_or(Until::Forever, Until::Moment);
        match self.state {
            State::ForcedOpen => Until::Forever,
            State::Open if self.probe_denied => Until::Forever,
            State::Open => moment(self.open_until),
            State::HalfOpen if !self.has_free_slot() => moment(
                self.round.leases.iter().filter_map(|lease| self.lease_end(lease)).chain(self.time_limit()).min(),
            ),
            _ => Until::Now,
        }
    }

    /// Returns the time until a call may be admitted; `None` if it may be now, or if the time is
    /// unknown. In a half-open circuit, at most the first open time: a result may free a slot long
    /// before a lease expires.
    pub(super) fn retry_after(&self, now: Instant) -> Option<Duration> {
        let first = self.config.open_time.base();
        match (self.refuses_until(), self.state) {
            (Until::Now, _) => None,
            (Until::Moment(moment), State::HalfOpen) => Some(moment.saturating_duration_since(now).min(first)),
            (Until::Forever, State::HalfOpen) => Some(first),
            (Until::Moment(moment), _) => Some(moment.saturating_duration_since(now)),
            (Until::Forever, _) => None,
        }
    }

    /// Returns whether a new circuit would decide in the same way, apart from permits that are
    /// held.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        match self.state {
            State::Closed | State::HalfOpen => true,
            State::Open => self.open_until.is_some_and(|until| until <= now),
            State::MetricsOnly | State::Disabled | State::ForcedOpen => false,
        }
    }

    /// Opens a closed circuit. `failure` is the failure that tripped it, if one did.
    pub(super) fn trip(&mut self, cause: Cause, failure: Option<Failure>, now: Instant) -> Option<Step> {
        (self.state == State::Closed).then(|| self.open(cause, failure, now))
    }

    /// Sets the state, by an operator. Setting the current state changes nothing, except that
    /// [`State::Closed`] always begins a new generation and so clears the results.
    pub(super) fn set(&mut self, state: State) -> Option<Step> {
        if self.state == state && state != State::Closed {
            return None;
        }
        self.openings = 0;
        Some(self.enter(state, Cause::Operator, None, None))
    }

    /// Opens for `time`, by an operator.
    pub(super) fn open_for(&mut self, time: Duration, now: Instant) -> Step {
        (self.open_until, self.opened) = (now.checked_add(time), None);
        let to = if self.open_until.is_some() { State::Open } else { State::ForcedOpen };
        self.enter(to, Cause::Operator, Some(time), None)
    }

    /// Opens or closes because another instance did. A state that an operator set stays.
    pub(super) fn follow(&mut self, open: Option<Duration>, now: Instant) -> Option<Step> {
        match (self.state, open) {
            (State::Closed | State::Open | State::HalfOpen, Some(time)) => {
                (self.open_until, self.opened) = (now.checked_add(time), None);
                Some(self.enter(State::Open, Cause::Peer, Some(time), None))
            }
            (State::Open | State::HalfOpen, None) => {
                self.openings = 0;
                Some(self.enter(State::Closed, Cause::Peer, None, None))
            }
            _ => None,
        }
    }

    /// Returns the numbers of changes of state that are not 0, by the state before and after.
    pub(super) fn changes(&self) -> Vec<(State, State, u32)> {
        let pairs = State::ALL.into_iter().flat_map(|from| State::ALL.map(|to| (from, to)));
        pairs
            .map(|(from, to)| (from, to, self.changes[from as usize][to as usize]))
            .filter(|change| change.2 > 0)
            .collect()
    }

    /// Sets how many probes may be in flight in this instance. Probes in flight are not cancelled.
    pub(super) fn allow_probes(&mut self, allowed: Option<u32>) {
        self.probe_denied &= allowed == Some(0);
        self.allowed = allowed;
    }

    /// Begins a new generation in the same state, because the results do not fit a window of
    /// another length.
    pub(super) fn renew(&mut self) -> Step {
        self.enter(self.state, Cause::Reloaded, None, None)
    }

    /// Replaces the configuration. It may decide a round at once, and shortens an open time that is
    /// longer than its maximum.
    pub(super) fn reload(&mut self, config: Recovery, now: Instant, steps: &mut Vec<Step>) {
        self.roll(now, steps);
        self.config = config;
        match self.state {
            State::HalfOpen => steps.extend(self.decide(Cause::ProbesFailed(self.round.failed), None, now)),
            State::Open => {
                let longest = self.opened.and_then(|opened| opened.checked_add(self.config.open_time.cap()));
                self.open_until = self.open_until.map(|until| longest.map_or(until, |longest| until.min(longest)));
            }
            _ => {}
        }
    }

    pub(super) fn open(&mut self, cause: Cause, failure: Option<Failure>, now: Instant) -> Step {
        let backoff = self.config.open_time;
        let drawn = backoff.pause(self.openings, &mut self.rng);
        let hint = failure.and_then(|failure| failure.retry_after).unwrap_or_default();
        let time = drawn.max(hint).clamp(backoff.base(), backoff.cap());
        self.openings = self.openings.saturating_add(1);
        (self.open_until, self.opened) = (now.checked_add(time), Some(now));
        self.enter(State::Open, cause, Some(time), failure)
    }

    pub(super) fn enter(
        &mut self,
        to: State,
        cause: Cause,
        open_for: Option<Duration>,
        last_failure: Option<Failure>,
    ) -> Step {
        let from = std::mem::replace(&mut self.state, to);
        let times = &mut self.changes[from as usize][to as usize];
        *times = times.saturating_add(1);
        self.probe_denied = false;
        self.generation += 1;
        // Probes of an earlier generation are stale.
        if from != to || to != State::HalfOpen {
            self.round.leases.clear();
        }
        Step { from, to, cause, generation: self.generation, open_for, last_failure }
    }
}
