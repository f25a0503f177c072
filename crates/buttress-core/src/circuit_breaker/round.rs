use super::{
    event::{Cause, State},
    machine::{Machine, Step},
};
use crate::Failure;
use std::time::{Duration, Instant};

/// One half-open round. It ends by its probes alone; see [`Machine::roll`] for the bound on its
/// time.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Its beginning, or the last result or sign of life of a probe.
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
    /// Its beginning, or the last sign of life. The lease runs from here, so that a reload of its
    /// length takes effect at once.
    pub(super) since: Instant,
    /// How long the head of the response took.
    pub(super) to_head: Option<Duration>,
    /// Whether its call has begun. A slot that was reserved for a call that never came says nothing
    /// when its lease ends.
    pub(super) begun: bool,
}

/// The number of a probe, from 1 on. No two probes of a circuit that are in flight share one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Probe(pub(super) u32);

/// The result of a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Succeeded,
    Failed,
    /// No evidence: its slot is free again.
    Nothing,
}

impl Machine {
    /// Brings the state up to `now`: revokes leases, and ends a round that has gone quiet after
    /// something failed in it. Both happen as of the moment at which they were due, which may be
    /// long ago, as they are evaluated with the next look only.
    ///
    /// A round in which nothing failed goes on for as long as it takes: a backend that is called
    /// once in ten minutes has to be able to close its circuit.
    pub(super) fn roll(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let mut revoked = None;
        while self.state == State::HalfOpen {
            let ends = self.round.leases.iter().filter_map(|lease| self.lease_end(lease));
            let due = ends.filter(|end| *end <= now).min();
            let bound = self.bound().filter(|bound| *bound <= now);
            match (due, bound) {
                (Some(due), bound) if bound.is_none_or(|bound| due <= bound) => {
                    self.revoke(due);
                    revoked = Some(due);
                    steps.extend(self.decide(Cause::ProbeLeaseExpired, None, due));
                }
                (_, Some(bound)) => {
                    let at = revoked.map_or(bound, |revoked: Instant| revoked.max(bound));
                    steps.push(self.open(Cause::HalfOpenTimedOut, None, at));
                }
                (_, None) => return,
            }
        }
    }

    /// Takes a probe's slot, beginning a half-open round when the open time is over.
    pub(super) fn take_probe(&mut self, begun: bool, now: Instant, steps: &mut Vec<Step>) -> Option<Probe> {
        self.roll(now, steps);
        if self.state == State::Open && self.open_until.is_some_and(|until| now >= until) {
            if self.allowed == Some(0) {
                self.probe_denied = true;
                return None;
            }
            self.round = Round { since: Some(now), last: self.round.last, ..Round::default() };
            steps.push(self.enter(State::HalfOpen, Cause::OpenTimeElapsed, None, None));
        }
        if self.state != State::HalfOpen || !self.has_free_slot() {
            return None;
        }
        // Never 0: a permit whose upper half is 0 is not asked for progress.
        self.round.last = self.round.last.checked_add(1).unwrap_or(1);
        let probe = Probe(self.round.last);
        self.round.leases.push(Lease { probe, started: now, since: now, to_head: None, begun });
        Some(probe)
    }

    /// The call of a reserved slot begins, and its lease with it. `false` when the slot is gone.
    pub(super) fn begin(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) -> bool {
        self.roll(now, steps);
        let lease = self.round.leases.iter_mut().find(|lease| lease.probe == probe);
        lease.map(|lease| (lease.started, lease.since, lease.begun) = (now, now, true)).is_some()
    }

    /// Whether a probe still has its slot.
    pub(super) fn has_lease(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) -> bool {
        self.roll(now, steps);
        self.round.leases.iter().any(|lease| lease.probe == probe)
    }

    /// A part of a probe's response arrived: its lease begins anew, and so does the bound of the
    /// round.
    pub(super) fn progress(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) {
        self.roll(now, steps);
        let lease_time = self.config.probe_lease;
        let Some(lease) = self.round.leases.iter_mut().find(|lease| lease.probe == probe) else { return };
        let renewal = now.saturating_duration_since(lease.since);
        // A stream of many frames renews its lease sixteen times in it, and not with every frame.
        if lease.to_head.is_none() || renewal >= lease_time / 16 {
            lease.to_head.get_or_insert(now.saturating_duration_since(lease.started));
            (lease.since, lease.begun) = (now, true);
            self.round.since = Some(now);
        }
    }

    /// How long a probe took to the head of its response, or has been out.
    pub(super) fn elapsed(&self, probe: Probe, to_end: bool, now: Instant) -> Option<Duration> {
        let lease = self.round.leases.iter().find(|lease| lease.probe == probe)?;
        let to_head = lease.to_head.filter(|_| !to_end);
        Some(to_head.unwrap_or_else(|| now.saturating_duration_since(lease.started)))
    }

    /// Whether the call of a probe has begun.
    pub(super) fn has_begun(&self, probe: Probe) -> bool {
        self.round.leases.iter().any(|lease| lease.probe == probe && lease.begun)
    }

    /// Settles a probe. `false` when its lease had been revoked or its round was over: then nothing
    /// changes.
    pub(super) fn settle_probe(
        &mut self,
        probe: Probe,
        verdict: Verdict,
        failure: Option<Failure>,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> bool {
        // A lease that ran out before its probe came back has been revoked, also when there was no
        // look in between.
        self.roll(now, steps);
        if !self.give_back(probe) {
            return false;
        }
        match verdict {
            Verdict::Nothing => return true,
            Verdict::Succeeded => self.round.succeeded += 1,
            Verdict::Failed => self.round.failed += 1,
        }
        self.round.since = Some(now);
        steps.extend(self.decide(Cause::ProbesFailed(self.round.failed), failure, now));
        true
    }

    /// Frees the slot of a probe that was dropped. `false` when it held none.
    pub(super) fn give_back(&mut self, probe: Probe) -> bool {
        let before = self.round.leases.len();
        self.round.leases.retain(|lease| lease.probe != probe);
        self.state == State::HalfOpen && self.round.leases.len() < before
    }

    pub(super) fn lease_end(&self, lease: &Lease) -> Option<Instant> {
        lease.since.checked_add(self.config.probe_lease)
    }

    /// When a round in which something failed opens the circuit again for lack of results.
    pub(super) fn bound(&self) -> Option<Instant> {
        self.round.since.filter(|_| self.round.failed > 0)?.checked_add(self.config.max_half_open)
    }

    /// Takes back the leases that have ended by `due`. Those of calls count as failed.
    fn revoke(&mut self, due: Instant) {
        let lease_time = self.config.probe_lease;
        let ended = |lease: &Lease| lease.since.checked_add(lease_time).is_some_and(|end| end <= due);
        let expired = self.round.leases.iter().filter(|lease| lease.begun && ended(lease)).count() as u32;
        self.round.leases.retain(|lease| !ended(lease));
        self.round.failed += expired;
        self.expired = self.expired.saturating_add(expired);
    }

    pub(super) fn has_free_slot(&self) -> bool {
        let Round { leases, succeeded, failed, .. } = &self.round;
        let live = leases.len() as u32;
        live < self.config.concurrent_probes.min(self.allowed.unwrap_or(u32::MAX))
            && live + succeeded + failed < self.config.probes
    }

    /// Decides as soon as the probes that are left cannot change it.
    pub(super) fn decide(&mut self, cause: Cause, failure: Option<Failure>, now: Instant) -> Option<Step> {
        let (config, round) = (&self.config, &self.round);
        if round.succeeded >= config.successes_needed {
            let succeeded = round.succeeded;
            self.openings = 0;
            Some(self.enter(State::Closed, Cause::ProbesSucceeded(succeeded), None, None))
        } else if round.failed > config.probes - config.successes_needed {
            Some(self.open(cause, failure, now))
        } else {
            None
        }
    }
}
