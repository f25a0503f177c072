//! Runs the traces of `tests/conformance` against our circuit breaker, on virtual time. What a trace is, is written there.

#[path = "../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "the other runner uses the rest")]
mod trace;

use buttress_core::{
    Admit, CircuitBreaker, Failure, FailureKind, Ignored, Outcome, Permit, Progress,
    circuit_breaker::{Builder, CircuitBreakerPermit, CloseRule, FailureStreak, OnDrop, State, Window},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use trace::{Admission, Op, Operator, Part, Trace};

/// Names the traces, so that each is a test of its own.
macro_rules! traces {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { run(stringify!($name)); })*
    };
}

traces! {
    a_cancelled_probe_decides_nothing
    a_cancelled_probe_gives_its_place_back
    a_count_window_forgets_old_failures
    a_count_window_slides
    a_failed_probe_opens_it_again
    a_failed_round_opens_it_again
    a_hung_probe_does_not_keep_it_shut
    a_late_failure_does_not_reopen_it
    a_late_success_does_not_close_it
    a_lease_ends_on_time_without_calls
    a_probe_is_given_up_when_its_lease_ends
    a_rate_below_its_boundary_does_not_trip_it
    a_rate_is_exact_at_its_boundary
    a_reset_clears_the_results
    a_reset_closes_it
    a_round_takes_all_its_probes
    a_row_begins_anew_after_closing
    a_share_of_the_probes_decides_early
    a_stale_probe_does_not_complete_a_later_round
    a_stale_probe_does_not_decide_a_later_round
    a_success_ends_a_row_of_failures
    a_successful_probe_closes_it
    a_time_window_forgets_bit_by_bit
    a_time_window_forgets_without_calls
    an_operators_state_is_left_by_the_operator_only
    an_overloaded_probe_opens_it_again
    calls_dropped_early_teach_nothing
    calls_that_hang_and_are_dropped_trip_it
    dropped_calls_count_from_the_slow_threshold_on
    half_open_is_bounded_in_time
    half_open_lets_only_the_probes_through
    late_failures_do_not_trip_it_after_closing
    late_results_do_not_touch_an_open_circuit
    late_successes_do_not_close_a_round
    no_rate_counts_below_the_minimum_throughput
    open_ends_exactly_with_its_time
    open_refuses_until_its_time_is_over
    opened_by_hand_for_a_time_it_probes_afterwards
    overload_counts_in_the_rate
    overload_is_no_failure_in_a_row
    probes_far_apart_count_together
    probes_go_a_few_at_a_time
    slow_calls_trip_it
    slow_means_strictly_slower
    the_past_does_not_count_after_closing
    what_says_nothing_changes_nothing
}

#[test]
fn every_trace_is_run() {
    let files: Vec<_> = Trace::read_all(&directory()).unwrap().into_keys().collect();
    assert_eq!(NAMES, files, "name each file of {} above, in order", directory().display());
}

#[test]
fn what_the_format_does_not_know_is_an_error() {
    let read = |json: &str| serde_json::from_str::<Trace>(json).map(drop).map_err(|error| error.to_string());
    let with = |config: &str, step: &str| {
        format!(
            r#"{{"format": 1, "name": "", "rule": "", "why": "", "requires": [], "config": {{"open_ms": 1{config}}},
                "steps": [{{"at_ms": 0, {step}}}]}}"#
        )
    };
    assert_eq!(read(&with("", r#""op": "trip""#)), Ok(()));
    for (config, step, complaint) in [
        (r#", "tries": 1"#, r#""op": "trip""#, "unknown field `tries`"),
        ("", r#""op": "trip", "why": 1"#, "unknown field `why`"),
        ("", r#""op": "trip", "count": 1"#, "`trip` at 0 has no field `count`"),
        ("", r#""op": "settle", "call": "a""#, "`settle` at 0 needs the field `outcome`"),
        ("", r#""op": "explode""#, "no operation is called `explode`"),
    ] {
        let error = read(&with(config, step)).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance")
}

fn run(name: &str) {
    let trace = Trace::read(&directory().join(name).with_extension("json")).unwrap();
    let mut run = Run::new(&trace);
    for (number, step) in trace.steps.iter().enumerate() {
        run.now = run.start + Duration::from_millis(step.at_ms);
        if let Err(deviation) = run.step(&step.op) {
            panic!("{}\nstep {} at {} ms: {deviation}", trace.rule, number + 1, step.at_ms);
        }
    }
}

/// What a trace's configuration is in ours.
fn builder(name: &str, config: &trace::Config) -> Builder {
    let millis = Duration::from_millis;
    CircuitBreaker::builder(name.to_owned())
        .consecutive_failures(match config.consecutive_failures {
            None => FailureStreak::Off,
            Some(trace::Streak::Fixed(failures)) => FailureStreak::Fixed(failures),
            Some(trace::Streak::Rule(trace::StreakRule::Calibrated)) => FailureStreak::Calibrated,
        })
        .failure_rate(config.failure_rate)
        .slow_rate(config.slow_rate)
        .slow_threshold(config.slow_threshold_ms.map(millis))
        .minimum_throughput(config.minimum_throughput)
        .window(match config.window {
            trace::Window::TimeMs(time) => Window::Time(millis(time)),
            trace::Window::Count(calls) => Window::Count(calls),
        })
        .open_time(millis(config.open_ms)..=millis(config.open_ms))
        .probes(config.probes)
        .concurrent_probes(config.concurrent_probes)
        .close_rule(match config.close_rule {
            trace::CloseRule::All => CloseRule::AllProbes,
            trace::CloseRule::Share(share) => CloseRule::Share(share),
        })
        .probe_lease(millis(config.lease_ms))
        .max_half_open(millis(config.max_half_open_ms))
        .on_drop(match config.on_drop {
            trace::OnDrop::Ignore => OnDrop::Ignore,
            trace::OnDrop::Slow => OnDrop::Slow,
            trace::OnDrop::Failure => OnDrop::Failure,
        })
}

struct Run {
    breaker: CircuitBreaker,
    start: Instant,
    now: Instant,
    calls: HashMap<String, Vec<CircuitBreakerPermit>>,
}

impl Run {
    fn new(trace: &Trace) -> Self {
        #[allow(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
        let start = Instant::now();
        Self { breaker: builder(&trace.name, &trace.config).build().unwrap(), start, now: start, calls: HashMap::new() }
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Admit { call, count, expect, retry_within_ms } => (0..*count).try_for_each(|_| {
                let (answer, permit, retry_after) = self.admit();
                if let Some(within) = retry_within_ms
                    && retry_after.is_none_or(|after| after > Duration::from_millis(*within))
                {
                    return Err(format!("expected to be asked back within {within} ms, but it is {retry_after:?}"));
                }
                if let (Some(call), Some(permit)) = (call, permit) {
                    self.calls.entry(call.clone()).or_default().push(permit);
                }
                same(*expect, answer)
            }),
            Op::Progress { call, part } => {
                let permits = self.calls.get_mut(call).ok_or_else(|| format!("no call is named {call}"))?;
                let progress = if *part == Part::Head { Progress::Head } else { Progress::Frame };
                permits.iter_mut().for_each(|permit| permit.progress(progress, &self.now));
                Ok(())
            }
            Op::Settle { call, outcome } => {
                let permits = self.calls.remove(call).ok_or_else(|| format!("no call is named {call}"))?;
                permits.into_iter().for_each(|permit| self.settle(permit, *outcome));
                Ok(())
            }
            Op::Drop { call } => self.calls.remove(call).map(drop).ok_or_else(|| format!("no call is named {call}")),
            Op::Calls { count, outcome } => (0..*count).try_for_each(|_| self.call(*outcome)),
            Op::Results { outcomes } => outcomes.iter().try_for_each(|outcome| self.call(*outcome)),
            Op::Attempt { outcome } => {
                self.admit().1.into_iter().for_each(|permit| self.settle(permit, *outcome));
                Ok(())
            }
            Op::Trip => {
                let refuses = (0..Trace::TRIP_LIMIT).any(|_| match self.admit().1 {
                    Some(permit) => {
                        self.settle(permit, trace::Outcome::Failure);
                        false
                    }
                    None => true,
                });
                if refuses { Ok(()) } else { Err(format!("{} failures did not trip it", Trace::TRIP_LIMIT)) }
            }
            Op::State { expect } => same(
                *expect,
                match self.breaker.state(&self.now) {
                    State::Closed | State::Disabled | State::MetricsOnly => trace::State::Closed,
                    State::Open | State::ForcedOpen => trace::State::Open,
                    State::HalfOpen => trace::State::HalfOpen,
                },
            ),
            Op::FailureRate { expect } => same(*expect, self.breaker.snapshot(&self.now).failure_rate()),
            Op::Reload { config } => {
                let builder = builder(self.breaker.name(), config);
                self.breaker.reload(&builder, &self.now).map_err(|error| error.to_string())
            }
            Op::Operator(operator) => {
                let (breaker, now) = (&self.breaker, &self.now);
                match operator {
                    Operator::ForceOpen => breaker.force_open(now),
                    Operator::Disable => breaker.disable(now),
                    Operator::MetricsOnly => breaker.metrics_only(now),
                    Operator::Reset => breaker.reset(now),
                    Operator::OpenFor { ms } => breaker.open_for(Duration::from_millis(*ms), now),
                }
                Ok(())
            }
        }
    }

    fn call(&self, outcome: trace::Outcome) -> Result<(), String> {
        let (answer, permit, _) = self.admit();
        permit.into_iter().for_each(|permit| self.settle(permit, outcome));
        same(Admission::Admitted, answer)
    }

    /// The answer, the permit, and when a rejection asks its caller to come back.
    fn admit(&self) -> (Admission, Option<CircuitBreakerPermit>, Option<Duration>) {
        match self.breaker.admit(&(), &self.now) {
            Ok(permit) => (if permit.is_probe() { Admission::Probe } else { Admission::Admitted }, Some(permit), None),
            Err(rejection) => (Admission::Rejected, None, rejection.retry_after()),
        }
    }

    fn settle(&self, mut permit: CircuitBreakerPermit, outcome: trace::Outcome) {
        let failure = Failure::new(FailureKind::Http(503));
        let outcome = match outcome {
            trace::Outcome::Success => Outcome::Success,
            trace::Outcome::Failure => failure.into(),
            trace::Outcome::Overload => Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into(),
            trace::Outcome::Graceful => Failure { graceful: true, ..failure }.into(),
            trace::Outcome::Cancelled => Outcome::CANCELLED,
            trace::Outcome::Ignored => Outcome::Ignored(Ignored::Classified),
        };
        permit.settle(&outcome, &self.now);
    }
}

fn same<T: PartialEq + std::fmt::Debug>(expected: T, actual: T) -> Result<(), String> {
    if expected == actual { Ok(()) } else { Err(format!("expected {expected:?}, but it is {actual:?}")) }
}
