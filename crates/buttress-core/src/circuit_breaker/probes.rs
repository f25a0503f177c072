use super::{
    event::{Cause, State},
    machine::{Machine, Step},
    round::{Lease, Probe, Round, Verdict},
};
use crate::Failure;
use std::time::{Duration, Instant};

impl Machine {
    /// Advances the state to `now`: revokes expired leases, and opens the circuit if a probe has
    /// failed and the time limit of the round has expired.
    ///
    /// There is no timer, so this may run long after that time. It acts as of the moment of the
    /// expiry: an open time starts then, and not now.
    ///
    /// A round without a failed probe has no time limit: with one, the circuit of a backend that is
    /// called once in ten minutes would never close.
    pub(super) fn roll(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let mut revoked = None;
        while self.state == State::HalfOpen {
            let ends = self.round.leases.iter().filter_map(|lease| self.lease_end(lease));
            let due = ends.filter(|end| *end <= now).min();
            let bound = self.time_limit().filter(|bound| *bound <= now);
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

    /// Takes the slot of a probe, if one is free. Begins a half-open round if the open time has
    /// elapsed.
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
        // Never 0: a permit whose upper bits are 0 ignores progress.
        self.round.last = self.round.last.checked_add(1).unwrap_or(1);
        let probe = Probe(self.round.last);
        self.round.leases.push(Lease { probe, started: now, since: now, to_head: None, begun });
        Some(probe)
    }

    /// Begins the call of a reserved slot, and restarts its lease. Returns false if the lease has
    /// expired or the round is over.
    pub(super) fn begin(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) -> bool {
        self.roll(now, steps);
        let lease = self.round.leases.iter_mut().find(|lease| lease.probe == probe);
        lease.map(|lease| (lease.started, lease.since, lease.begun) = (now, now, true)).is_some()
    }

    /// Returns whether a probe still has its slot.
    pub(super) fn has_lease(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) -> bool {
        self.roll(now, steps);
        self.round.leases.iter().any(|lease| lease.probe == probe)
    }

    /// Renews the lease of a probe and the time limit of the round, because a part of the probe's
    /// response has arrived.
    pub(super) fn progress(&mut self, probe: Probe, now: Instant, steps: &mut Vec<Step>) {
        self.roll(now, steps);
        let lease_time = self.config.probe_lease;
        let Some(lease) = self.round.leases.iter_mut().find(|lease| lease.probe == probe) else { return };
        let renewal = now.saturating_duration_since(lease.since);
        // At most sixteen renewals per lease time, not one for each frame of a stream: each renewal
        // writes the circuit's atomics.
        if lease.to_head.is_none() || renewal >= lease_time / 16 {
            lease.to_head.get_or_insert(now.saturating_duration_since(lease.started));
            (lease.since, lease.begun) = (now, true);
            self.round.since = Some(now);
        }
    }

    /// Returns the time to the head of a probe's response, or until now without a head.
    pub(super) fn elapsed(&self, probe: Probe, to_end: bool, now: Instant) -> Option<Duration> {
        let lease = self.round.leases.iter().find(|lease| lease.probe == probe)?;
        let to_head = lease.to_head.filter(|_| !to_end);
        Some(to_head.unwrap_or_else(|| now.saturating_duration_since(lease.started)))
    }

    /// Returns whether the call of a probe has begun.
    pub(super) fn has_begun(&self, probe: Probe) -> bool {
        self.round.leases.iter().any(|lease| lease.probe == probe && lease.begun)
    }

    /// Settles a probe. Returns false, and changes nothing, if its lease has expired or its round
    /// is over.
    pub(super) fn settle_probe(
        &mut self,
        probe: Probe,
        verdict: Verdict,
        failure: Option<Failure>,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> bool {
        // Revokes the lease first if it has expired, so that a late result is stale even if nothing
        // called `roll` since.
        self.roll(now, steps);
        if !self.release_slot(probe) {
            return false;
        }
        match verdict {
            Verdict::Ignored => return true,
            Verdict::Succeeded => self.round.succeeded += 1,
            Verdict::Failed => self.round.failed += 1,
        }
        self.round.since = Some(now);
        steps.extend(self.decide(Cause::ProbesFailed(self.round.failed), failure, now));
        true
    }

    /// Releases the slot of a probe. Returns false if it has none.
    pub(super) fn release_slot(&mut self, probe: Probe) -> bool {
        let before = self.round.leases.len();
        self.round.leases.retain(|lease| lease.probe != probe);
        self.state == State::HalfOpen && self.round.leases.len() < before
    }

    pub(super) fn lease_end(&self, lease: &Lease) -> Option<Instant> {
        lease.since.checked_add(self.config.probe_lease)
    }

    /// Returns when the round opens the circuit for lack of results; `None` if no probe has failed.
    pub(super) fn time_limit(&self) -> Option<Instant> {
        self.round.since.filter(|_| self.round.failed > 0)?.checked_add(self.config.max_half_open)
    }

    /// Revokes the leases that have expired by `due`. Those whose calls have begun count as failed.
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

    /// Closes or opens the circuit, as soon as the remaining probes cannot change the decision.
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
