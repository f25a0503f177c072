use super::{
    config::Config,
    event::{Cause, State},
};
use fastrand::Rng;
use std::time::{Duration, Instant};

/// Generations are counted in 29 bits, which are what a permit has room for.
const GENERATIONS: u64 = (1 << (32 - State::BITS)) - 1;

/// Everything about a circuit that changes seldom: its state, and the probes of a half-open round. Pure: stepped with
/// the time, under the breaker's lock.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) generation: u64,
    /// Openings since it was last closed.
    pub(super) openings: u32,
    /// The end of the open time; `None` for one that no clock reaches.
    open_until: Option<Instant>,
    round: Round,
    /// Leases that ended since somebody asked.
    pub(super) expired: u32,
    /// How many probes somebody else allows to be in flight here; `None` where nobody else is asked.
    allowed: Option<u32>,
    /// A probe was due and not allowed: nothing is admitted until that changes.
    pub(super) starved: bool,
    rng: Rng,
}

/// One half-open round.
#[derive(Debug, Default)]
struct Round {
    ends: Option<Instant>,
    leases: Vec<Lease>,
    next: u32,
    succeeded: u32,
    failed: u32,
}

#[derive(Debug)]
struct Lease {
    probe: Probe,
    started: Instant,
    ends: Option<Instant>,
    /// Whether its call has begun. A slot that was reserved for a call that never came says nothing when its lease ends.
    begun: bool,
}

/// The number of a probe. No two probes of a circuit share one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Probe(pub(super) u32);

/// A change of state, as the machine knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) from: State,
    pub(super) to: State,
    pub(super) cause: Cause,
    pub(super) generation: u64,
    pub(super) open_for: Option<Duration>,
}

/// Until when nothing can be admitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Until {
    Now,
    Moment(Instant),
    Forever,
}

impl Until {
    pub(super) fn from(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Moment(moment) => Some(moment.saturating_duration_since(now)),
            Self::Now | Self::Forever => None,
        }
    }
}

/// What a probe said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Succeeded,
    Failed,
    /// It said nothing, and its slot is free again.
    Nothing,
}

impl Machine {
    pub(super) fn new(config: Config, rng: Rng) -> Self {
        Self {
            config,
            state: State::Closed,
            generation: 0,
            openings: 0,
            open_until: None,
            round: Round::default(),
            expired: 0,
            allowed: None,
            starved: false,
            rng,
        }
    }

    /// When it is worth asking for admission again.
    pub(super) fn closed(&self) -> Until {
        let moment = |moment: Option<Instant>| moment.map_or(Until::Forever, Until::Moment);
        match self.state {
            State::ForcedOpen => Until::Forever,
            State::Open if self.starved => Until::Forever,
            State::Open => moment(self.open_until),
            State::HalfOpen if !self.has_free_slot() => {
                moment(self.round.leases.iter().filter_map(|lease| lease.ends).chain(self.round.ends).min())
            }
            _ => Until::Now,
        }
    }

    /// Opens a closed circuit. `hint` is how long the backend asked us to stay away.
    pub(super) fn trip(&mut self, cause: Cause, hint: Option<Duration>, now: Instant) -> Option<Step> {
        (self.state == State::Closed).then(|| self.open(cause, hint, now))
    }

    /// Brings the state up to `now`: revokes leases and ends a round that did not decide. Nobody may have looked for a long time, so what was due
    /// happens as of the moment at which it was.
    pub(super) fn roll(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while self.state == State::HalfOpen {
            let due = self.round.leases.iter().filter_map(|lease| lease.ends).filter(|ends| *ends <= now).min();
            let ends = self.round.ends.filter(|ends| *ends <= now);
            match (due, ends) {
                (Some(due), ends) if ends.is_none_or(|ends| due <= ends) => {
                    let Round { leases, failed, .. } = &mut self.round;
                    let ended = |lease: &Lease| lease.ends.is_some_and(|ends| ends <= due);
                    let expired = leases.iter().filter(|lease| lease.begun && ended(lease)).count() as u32;
                    *failed += expired;
                    self.expired = self.expired.saturating_add(expired);
                    leases.retain(|lease| !ended(lease));
                    steps.extend(self.decide(Cause::ProbeLeaseExpired, None, due));
                }
                (_, Some(ends)) => steps.push(self.open(Cause::HalfOpenTimedOut, None, ends)),
                (_, None) => return,
            }
        }
    }

    /// Takes a probe's slot, beginning a half-open round when the open time is over.
    pub(super) fn take_probe(&mut self, begun: bool, now: Instant, steps: &mut Vec<Step>) -> Option<Probe> {
        self.roll(now, steps);
        if self.state == State::Open && self.open_until.is_some_and(|until| now >= until) {
            if self.allowed == Some(0) {
                self.starved = true;
                return None;
            }
            self.round =
                Round { ends: now.checked_add(self.config.max_half_open), next: self.round.next, ..Round::default() };
            steps.push(self.enter(State::HalfOpen, Cause::OpenTimeElapsed, None));
        }
        if self.state != State::HalfOpen || !self.has_free_slot() {
            return None;
        }
        let probe = Probe(self.round.next);
        self.round.next = self.round.next.wrapping_add(1);
        self.round.leases.push(Lease { probe, started: now, ends: now.checked_add(self.config.probe_lease), begun });
        Some(probe)
    }

    /// The call of a reserved slot begins, and its lease with it. `false` when the slot is gone.
    pub(super) fn begin(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) -> bool {
        self.roll(now, steps);
        let ends = now.checked_add(self.config.probe_lease);
        let lease = self.round.leases.iter_mut().find(|lease| lease.probe == probe);
        lease.map(|lease| (lease.started, lease.ends, lease.begun) = (now, ends, true)).is_some()
    }

    /// How long a probe has been out.
    pub(super) fn elapsed(&self, probe: Probe, now: Instant) -> Option<Duration> {
        let lease = self.round.leases.iter().find(|lease| lease.probe == probe)?;
        Some(now.saturating_duration_since(lease.started))
    }

    pub(super) fn is_slow(&self, elapsed: Option<Duration>) -> bool {
        elapsed.zip(self.config.slow_threshold).is_some_and(|(elapsed, slow)| elapsed > slow)
    }

    /// Settles a probe. `false` when its lease had been revoked or its round was over: then nothing changes.
    pub(super) fn settle_probe(
        &mut self,
        probe: Probe,
        verdict: Verdict,
        hint: Option<Duration>,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> bool {
        // A lease that ran out before its probe came back has been revoked, also when nobody looked in between.
        self.roll(now, steps);
        if !self.give_back(probe) {
            return false;
        }
        match verdict {
            Verdict::Nothing => return true,
            Verdict::Succeeded => self.round.succeeded += 1,
            Verdict::Failed => self.round.failed += 1,
        }
        steps.extend(self.decide(Cause::ProbesFailed(self.round.failed), hint, now));
        true
    }

    /// Frees the slot of a probe that was dropped. `false` when it held none.
    pub(super) fn give_back(&mut self, probe: Probe) -> bool {
        let before = self.round.leases.len();
        self.round.leases.retain(|lease| lease.probe != probe);
        self.state == State::HalfOpen && self.round.leases.len() < before
    }

    /// An operator's choice. Choosing the state it is in already changes nothing, except that [`State::Closed`] always clears the windows.
    pub(super) fn set(&mut self, state: State) -> Option<Step> {
        if self.state == state && state != State::Closed {
            return None;
        }
        self.openings = 0;
        Some(self.enter(state, Cause::Operator, None))
    }

    /// Opens for `time`, by an operator.
    pub(super) fn open_for(&mut self, time: Duration, now: Instant) -> Step {
        self.open_until = now.checked_add(time);
        let to = if self.open_until.is_some() { State::Open } else { State::ForcedOpen };
        self.enter(to, Cause::Operator, Some(time))
    }

    /// Opens or closes because another instance did. An operator's state stays.
    pub(super) fn follow(&mut self, open: Option<Duration>, now: Instant) -> Option<Step> {
        match (self.state, open) {
            (State::Closed | State::Open | State::HalfOpen, Some(time)) => {
                self.open_until = now.checked_add(time);
                Some(self.enter(State::Open, Cause::Peer, Some(time)))
            }
            (State::Open | State::HalfOpen, None) => {
                self.openings = 0;
                Some(self.enter(State::Closed, Cause::Peer, None))
            }
            _ => None,
        }
    }

    /// Changes how many probes may be in flight here. Those that are stay.
    pub(super) fn allow_probes(&mut self, allowed: Option<u32>) {
        self.starved &= allowed == Some(0);
        self.allowed = allowed;
    }

    /// Begins a new generation in the same state, because old results do not fit a new window.
    pub(super) fn renew(&mut self) -> Step {
        self.enter(self.state, Cause::Reloaded, None)
    }

    fn has_free_slot(&self) -> bool {
        let Round { leases, succeeded, failed, .. } = &self.round;
        let live = leases.len() as u32;
        live < self.config.concurrent_probes.min(self.allowed.unwrap_or(u32::MAX))
            && live + succeeded + failed < self.config.probes
    }

    /// Decides as soon as the probes that are left cannot change it.
    fn decide(&mut self, cause: Cause, hint: Option<Duration>, now: Instant) -> Option<Step> {
        let (config, round) = (&self.config, &self.round);
        if round.succeeded >= config.successes_needed {
            let succeeded = round.succeeded;
            self.openings = 0;
            Some(self.enter(State::Closed, Cause::ProbesSucceeded(succeeded), None))
        } else if round.failed > config.probes - config.successes_needed {
            Some(self.open(cause, hint, now))
        } else {
            None
        }
    }

    fn open(&mut self, cause: Cause, hint: Option<Duration>, now: Instant) -> Step {
        let backoff = self.config.open_time;
        let drawn = backoff.pause(self.openings, &mut self.rng);
        let time = drawn.max(hint.unwrap_or_default()).clamp(backoff.base(), backoff.cap());
        self.openings = self.openings.saturating_add(1);
        self.open_until = now.checked_add(time);
        self.enter(State::Open, cause, Some(time))
    }

    fn enter(&mut self, to: State, cause: Cause, open_for: Option<Duration>) -> Step {
        let from = std::mem::replace(&mut self.state, to);
        self.starved = false;
        self.generation = (self.generation + 1) & GENERATIONS;
        // Probes of an earlier generation are stale, also in a new round.
        if from != to || to != State::HalfOpen {
            self.round.leases.clear();
        }
        Step { from, to, cause, generation: self.generation, open_for }
    }
}
