//! Compares the circuit with a naive model: a list of all results that is evaluated anew for each
//! result, and one `match` over the rules.

use super::*;
use proptest::prelude::*;

const BUCKET: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
struct Rules {
    /// `None` for the calibrated rule.
    consecutive: Option<u32>,
    failure: Rate,
    slow: Option<u32>,
    minimum: usize,
    count_window: Option<u32>,
    probes: u32,
    concurrent: u32,
    needed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    Calibrated,
    Percent(u32),
    Off,
}

#[derive(Clone, Debug)]
enum Op {
    Wait(u32),
    Admit,
    Progress(usize),
    Settle(usize, usize),
    Drop(usize),
    Operator(usize),
    Reload,
}

/// The expected state of the circuit.
struct Model {
    rules: Rules,
    state: State,
    generation: u64,
    /// The results of this generation: the bucket, whether it failed, whether it was slow.
    results: Vec<(u32, bool, bool)>,
    streak: u32,
    open_until: Duration,
    round: Round,
    stale: u64,
}

#[derive(Default)]
struct Round {
    since: Duration,
    leases: Vec<Lease>,
    succeeded: u32,
    failed: u32,
}

struct Lease {
    id: usize,
    since: Duration,
    to_head: Option<Duration>,
}

/// A call in flight, in the model.
struct Call {
    id: usize,
    generation: u64,
    probe: bool,
    started: Duration,
    to_head: Option<Duration>,
}

const LEASE: Duration = Duration::from_secs(2);
const HALF_OPEN: Duration = Duration::from_secs(3);
const SLOW: Duration = Duration::from_millis(300);

impl Model {
    fn enter(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.results.clear();
        self.streak = 0;
    }

    /// Checks the bounds of the open time, which has jitter, and copies it from the circuit.
    fn open(&mut self, at: Duration, bench: &Bench, start: Instant) {
        self.enter(State::Open);
        let now = bench.now() - start;
        let rest = bench.breaker.snapshot().retry_after.expect("open for a time");
        assert!(
            rest <= 4 * SECOND && (now + rest - at >= SECOND),
            "{rest:?} left of an open time that began at {at:?}, now {now:?}"
        );
        assert!(rest.is_zero() || now + rest - at <= 4 * SECOND);
        self.open_until = now + rest;
    }

    fn roll(&mut self, now: Duration, bench: &Bench, start: Instant) {
        let mut revoked = Duration::ZERO;
        while self.state == State::HalfOpen {
            let due = self.round.leases.iter().map(|lease| lease.since + LEASE).filter(|end| *end <= now).min();
            let bound = (self.round.failed > 0).then_some(self.round.since + HALF_OPEN).filter(|bound| *bound <= now);
            if let Some(due) = due.filter(|due| bound.is_none_or(|bound| *due <= bound)) {
                let before = self.round.leases.len();
                self.round.leases.retain(|lease| lease.since + LEASE > due);
                self.round.failed += (before - self.round.leases.len()) as u32;
                revoked = due;
                self.decide(due, bench, start);
            } else if let Some(bound) = bound {
                self.open(bound.max(revoked), bench, start);
            } else {
                return;
            }
        }
    }

    fn progress(&mut self, call: &mut Call, now: Duration, bench: &Bench, start: Instant) {
        if call.probe {
            self.roll(now, bench, start);
            if let Some(lease) = self.round.leases.iter_mut().find(|lease| lease.id == call.id)
                && (lease.to_head.is_none() || now - lease.since >= LEASE / 16)
            {
                lease.to_head.get_or_insert(now - call.started);
                (lease.since, self.round.since) = (now, now);
            }
        } else {
            call.to_head.get_or_insert(now - call.started);
        }
    }

    fn decide(&mut self, at: Duration, bench: &Bench, start: Instant) {
        if self.round.succeeded >= self.rules.needed {
            self.enter(State::Closed);
        } else if self.round.failed > self.rules.probes - self.rules.needed {
            self.open(at, bench, start);
        }
    }

    fn admits_all(&self) -> bool {
        matches!(self.state, State::Closed | State::Disabled | State::MetricsOnly)
    }

    /// Returns whether an admitted call is a probe; `None` for a rejected call.
    fn admit(&mut self, now: Duration, id: usize, bench: &Bench, start: Instant) -> Option<bool> {
        self.roll(now, bench, start);
        if self.admits_all() {
            return Some(false);
        }
        if self.state == State::Open && now >= self.open_until {
            self.enter(State::HalfOpen);
            self.round = Round { since: now, ..Round::default() };
        }
        let live = self.round.leases.len() as u32;
        let free = live < self.rules.concurrent && live + self.round.succeeded + self.round.failed < self.rules.probes;
        (self.state == State::HalfOpen && free).then(|| {
            self.round.leases.push(Lease { id, since: now, to_head: None });
            true
        })
    }

    fn live(&self, now: Duration) -> Vec<(bool, bool)> {
        let bucket = (now.as_millis() / BUCKET.as_millis()) as u32;
        let live: Vec<_> = match self.rules.count_window {
            Some(n) => self.results.iter().rev().take(n as usize).collect(),
            None => self.results.iter().filter(|(b, ..)| bucket - b < 10).collect(),
        };
        live.into_iter().map(|(_, failed, slow)| (*failed, *slow)).collect()
    }

    fn settle(&mut self, call: &Call, outcome: Outcome, now: Duration, bench: &Bench, start: Instant) {
        if call.probe {
            self.roll(now, bench, start);
        }
        let lease = self.round.leases.iter().find(|lease| lease.id == call.id);
        let to_head = lease.and_then(|lease| lease.to_head).or(call.to_head);
        let slow = to_head.unwrap_or(now - call.started) > SLOW;
        let evidence = match outcome {
            Outcome::Success => Some(false),
            Outcome::Failure(Failure { graceful: true, .. }) => None,
            Outcome::Failure(_) => Some(true),
            Outcome::Ignored(Ignored::Cancelled) if slow => Some(false),
            _ => None,
        };
        if call.probe {
            let held = self.state == State::HalfOpen && lease.is_some();
            self.round.leases.retain(|lease| lease.id != call.id);
            match evidence {
                _ if !held => self.stale += 1,
                None => {}
                Some(failed) => {
                    let bad = failed || (slow && self.rules.slow.is_some());
                    *(if bad { &mut self.round.failed } else { &mut self.round.succeeded }) += 1;
                    self.round.since = now;
                    self.decide(now, bench, start);
                }
            }
            return;
        }
        if call.generation != self.generation {
            self.stale += 1;
            return;
        }
        let (Some(failed), true) = (evidence, self.state != State::Disabled) else { return };
        self.results.push(((now.as_millis() / BUCKET.as_millis()) as u32, failed, slow));
        match outcome {
            Outcome::Failure(failure) if failure.overload => {}
            Outcome::Failure(_) => self.streak += 1,
            Outcome::Success => self.streak = 0,
            Outcome::Ignored(_) => {}
        }
        if self.state != State::Closed || !(failed || slow) {
            return;
        }
        let live = self.live(now);
        let reached = |percent: u32, part: usize| part * 100 >= percent as usize * live.len();
        let (failures, slow) =
            (live.iter().filter(|(failed, _)| *failed).count(), live.iter().filter(|(_, slow)| *slow).count());
        let failing = match self.rules.failure {
            Rate::Calibrated => {
                let (n, failures) = (live.len() as f64, failures as f64);
                failures >= n / 2.0 + 1.5 * n.sqrt()
            }
            Rate::Percent(percent) => reached(percent, failures),
            Rate::Off => false,
        };
        let needed = self.rules.consecutive.unwrap_or_else(|| self.calibrated(&live));
        let consecutive = self.streak >= needed && failed && !matches!(outcome, Outcome::Failure(f) if f.overload);
        let rates = live.len() >= self.rules.minimum
            && (failing || self.rules.slow.is_some_and(|percent| reached(percent, slow)));
        if consecutive || rates {
            self.open(now, bench, start);
        }
    }
}

impl Model {
    fn calibrated(&self, live: &[(bool, bool)]) -> u32 {
        let failures = live.iter().filter(|(failed, _)| *failed).count();
        let streak = failures.min(self.streak as usize);
        let (failures, others) = (failures - streak, live.len() - streak);
        if others < 10 {
            return 5;
        }
        let rate = failures as f64 / others as f64;
        (5..100).find(|n| rate.powi(*n as i32) <= 1e-9).unwrap_or(100)
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let failure = prop_oneof![Just(Rate::Calibrated), (1u32..=100).prop_map(Rate::Percent), Just(Rate::Off)];
    let slow = prop::option::of(1u32..=100);
    (prop::option::of(1u32..6), failure, slow, 1usize..8, prop::option::of(9u32..13), 1u32..4, 1u32..4, 1u32..4)
        .prop_map(|(consecutive, failure, slow, minimum, count_window, probes, concurrent, needed)| Rules {
            consecutive,
            failure,
            slow,
            minimum,
            count_window,
            probes,
            concurrent: concurrent.min(probes),
            needed: needed.min(probes),
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u32..1500).prop_map(Op::Wait),
        8 => Just(Op::Admit),
        4 => (0usize..16).prop_map(Op::Progress),
        8 => (0usize..16, 0usize..7).prop_map(|(which, outcome)| Op::Settle(which, outcome)),
        1 => (0usize..16).prop_map(Op::Drop),
        1 => (0usize..24).prop_map(Op::Operator),
        1 => Just(Op::Reload),
    ]
}

fn build(rules: &Rules) -> Builder {
    let share = |percent: u32| f64::from(percent) / 100.0;
    CircuitBreaker::builder("model")
        .seed(7)
        .consecutive_failures(rules.consecutive.map_or(FailureStreak::Calibrated, FailureStreak::Fixed))
        .failure_rate(match rules.failure {
            Rate::Calibrated => FailureRate::Calibrated,
            Rate::Percent(percent) => FailureRate::Exact(share(percent)),
            Rate::Off => FailureRate::Off,
        })
        .slow_threshold(SLOW)
        .slow_rate(rules.slow.map(share))
        .minimum_throughput(rules.minimum as u32)
        .window(rules.count_window.map_or(Window::Time(10 * BUCKET), Window::Count))
        .open_time(SECOND..=4 * SECOND)
        .probes(rules.probes)
        .concurrent_probes(rules.concurrent)
        .close_rule(CloseRule::Share(f64::from(rules.needed) / f64::from(rules.probes)))
        .probe_lease(LEASE)
        .max_half_open(HALF_OPEN)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_circuit_is_what_the_model_says(rules in rules(), ops in prop::collection::vec(op(), 1..120)) {
        let bench = Bench::of(build(&rules));
        let start = bench.now();
        // The first reading of the clock sets the origin of the circuit's buckets.
        bench.breaker.snapshot();
        let mut model = Model {
            rules: rules.clone(), state: State::Closed, generation: 0, results: Vec::new(), streak: 0,
            open_until: Duration::ZERO, round: Round::default(), stale: 0,
        };
        let (mut out, mut next): (Vec<(CircuitBreakerPermit, Call)>, usize) = (Vec::new(), 0);
        for op in ops {
            let now = bench.now() - start;
            match op {
                Op::Wait(ms) => bench.wait(ms * MS),
                Op::Admit => {
                    let admitted = bench.try_admit();
                    let expected = model.admit(now, next, &bench, start);
                    prop_assert_eq!(admitted.as_ref().ok().map(CircuitBreakerPermit::is_probe), expected, "{:?}", model.state);
                    if let Ok(permit) = admitted {
                        let call = Call { id: next, generation: model.generation, probe: expected == Some(true), started: now, to_head: None };
                        out.push((permit, call));
                        next += 1;
                    }
                }
                Op::Progress(which) if !out.is_empty() => {
                    let which = which % out.len();
                    let (permit, call) = &mut out[which];
                    permit.progress(Progress::Head);
                    model.progress(call, now, &bench, start);
                }
                Op::Settle(which, outcome) if !out.is_empty() => {
                    let (permit, call) = out.swap_remove(which % out.len());
                    let outcome = [Outcome::Success, Outcome::Success, FAILURE, FAILURE, OVERLOAD, GRACEFUL, Outcome::CANCELLED][outcome];
                    bench.settle(permit, outcome);
                    model.settle(&call, outcome, now, &bench, start);
                }
                Op::Drop(which) if !out.is_empty() => {
                    let (permit, call) = out.swap_remove(which % out.len());
                    drop(permit);
                    model.round.leases.retain(|lease| lease.id != call.id);
                }
                Op::Operator(which) => match which {
                    0 => { bench.breaker.force_open(); if model.state != State::ForcedOpen { model.enter(State::ForcedOpen); } }
                    1 => { bench.breaker.disable(); if model.state != State::Disabled { model.enter(State::Disabled); } }
                    2 => { bench.breaker.metrics_only(); if model.state != State::MetricsOnly { model.enter(State::MetricsOnly); } }
                    3 => {
                        bench.breaker.open_for(2 * SECOND);
                        model.enter(State::Open);
                        model.open_until = now + 2 * SECOND;
                    }
                    4..10 => { bench.breaker.reset(); model.enter(State::Closed); }
                    _ => {}
                },
                // A reload of equal settings changes nothing.
                Op::Reload => bench.breaker.reload(&build(&rules)).unwrap(),
                _ => {}
            }
            let now = bench.now() - start;
            let snapshot = bench.breaker.snapshot();
            model.roll(now, &bench, start);
            prop_assert_eq!(snapshot.state, model.state);
            prop_assert_eq!(snapshot.generation, model.generation);
            prop_assert_eq!(snapshot.stale, model.stale);
            prop_assert_eq!(snapshot.consecutive_failures, model.streak);
            let live = model.live(now);
            // The window contains exactly the results of this generation. Without a rate rule there
            // is no window.
            if rules.failure != Rate::Off || rules.slow.is_some() || rules.consecutive.is_none() {
                prop_assert_eq!(snapshot.counts.total(), live.len() as u64);
                prop_assert_eq!(snapshot.counts.failures(), live.iter().filter(|(failed, _)| *failed).count() as u64);
                prop_assert_eq!(snapshot.counts.slow_calls(), live.iter().filter(|(_, slow)| *slow).count() as u64);
            }
            // Probes never exceed their limit, and every permit is counted exactly once.
            prop_assert!(model.round.leases.len() as u32 <= rules.concurrent || model.state != State::HalfOpen);
            prop_assert_eq!(bench.breaker.in_flight(), out.len());
        }
    }
}
