//! Runs the traces of `tests/conformance` in the repository against the circuit breaker, on virtual
//! time. The README there specifies the format.

#[path = "../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "the other runner uses the rest")]
mod trace;

use buttress_core::{
    Clock, Failure, FailureKind, Ignored, ManualClock, Outcome, Permit, Policy, Progress, circuit_breaker::State,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};
use trace::{Admission, Feature, Op, Operator, Part, Trace};

type CircuitBreaker = buttress_core::circuit_breaker::CircuitBreaker<ManualClock>;
type CircuitBreakerPermit = buttress_core::circuit_breaker::CircuitBreakerPermit<ManualClock>;

/// Generates a test for each trace.
macro_rules! traces {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { run(stringify!($name)); })*
    };
}

traces! {
    a_call_a_minute_closes_it
    a_call_every_half_minute_closes_it
    a_call_every_ten_minutes_closes_it
    a_cancelled_probe_decides_nothing
    a_cancelled_probe_gives_its_place_back
    a_count_window_forgets_old_failures
    a_count_window_slides
    a_failed_probe_opens_it_again
    a_failed_round_opens_it_again
    a_fixed_number_stays_fixed
    a_graceful_refusal_is_no_failure
    a_graceful_refusal_of_a_probe_decides_nothing
    a_head_renews_the_lease_of_a_probe
    a_healthy_backend_trips_it_with_the_fifth_failure
    a_hung_probe_does_not_keep_it_shut
    a_hung_probe_is_bypassed_after_the_open_time
    a_late_failure_does_not_reopen_it
    a_late_head_is_slow_though_its_body_is_quick
    a_late_success_does_not_close_it
    a_lease_ends_on_time_without_calls
    a_long_probe_closes_it
    a_longer_window_counts_at_once
    a_lower_threshold_trips_it_at_once
    a_probe_is_given_up_when_its_lease_ends
    a_probe_that_falls_silent_is_given_up
    a_probe_without_a_sign_of_life_is_given_up
    a_rate_alone_bears_random_errors
    a_rate_below_its_boundary_does_not_trip_it
    a_rate_is_exact_at_its_boundary
    a_reset_clears_the_results
    a_reset_closes_it
    a_round_takes_all_its_probes
    a_round_without_a_failure_goes_on
    a_row_begins_anew_after_closing
    a_share_of_the_probes_decides_early
    a_stale_probe_does_not_complete_a_later_round
    a_stale_probe_does_not_decide_a_later_round
    a_success_ends_a_row_of_failures
    a_success_that_completes_the_minimum_is_judged
    a_successful_probe_closes_it
    a_time_window_forgets_bit_by_bit
    a_time_window_forgets_without_calls
    an_equal_reload_changes_nothing
    an_operators_state_is_left_by_the_operator_only
    an_outage_among_random_errors_trips_it
    an_overloaded_probe_opens_it_again
    another_lease_holds_for_the_probe_that_is_out
    calls_dropped_early_teach_nothing
    calls_that_hang_and_are_dropped_trip_it
    cancelled_probes_are_no_way_in_for_a_crowd
    dropped_calls_count_from_the_slow_threshold_on
    fewer_probes_than_have_succeeded_close_it
    five_are_enough_while_the_rate_is_unknown
    frames_renew_the_lease_of_a_probe
    frequent_random_errors_do_not_trip_it
    half_open_asks_for_no_more_than_the_open_time
    half_open_is_bounded_in_time
    half_open_lets_only_the_probes_through
    late_failures_do_not_trip_it_after_closing
    late_results_do_not_touch_an_open_circuit
    late_successes_do_not_close_a_round
    long_probes_close_a_round
    no_rate_counts_below_the_minimum_throughput
    one_call_in_ten_minutes_closes_it
    open_ends_exactly_with_its_time
    open_refuses_until_its_time_is_over
    open_says_when_to_come_back
    opened_by_hand_for_a_time_it_probes_afterwards
    overload_counts_in_the_rate
    overload_is_no_failure_in_a_row
    probes_far_apart_count_together
    probes_go_a_few_at_a_time
    random_errors_do_not_trip_it
    rare_failures_do_not_add_up
    signs_of_life_keep_a_round
    slow_calls_trip_it
    slow_means_strictly_slower
    slow_means_the_time_to_the_head
    the_past_does_not_count_after_closing
    the_rate_is_unknown_below_the_minimum
    what_says_nothing_changes_nothing
}

/// Features that this circuit breaker does not have on purpose. Traces that require one are for
/// other implementations.
const LACKS: [Feature; 3] = [
    // The next probe is admitted when the previous one is settled or its lease has expired.
    Feature::HungProbeBypassed,
    // The slot of a cancelled probe is free at once.
    Feature::ProbesPaced,
    // Rates are evaluated after failed and slow calls only, so that a success costs nothing.
    Feature::RateAfterSuccess,
];

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
    if LACKS.iter().any(|feature| trace.requires(*feature)) {
        return;
    }
    let mut run = Run::new(&trace);
    let start = run.clock.now();
    for (number, step) in trace.steps.iter().enumerate() {
        run.clock.set(start + Duration::from_millis(step.at_ms));
        if let Err(deviation) = run.step(&step.op) {
            panic!("{}\nstep {} at {} ms: {deviation}", trace.rule, number + 1, step.at_ms);
        }
    }
}

struct Run {
    breaker: CircuitBreaker,
    clock: ManualClock,
    calls: HashMap<String, Vec<CircuitBreakerPermit>>,
}

impl Run {
    fn new(trace: &Trace) -> Self {
        let clock = ManualClock::new();
        let builder = trace::configure!(CircuitBreaker::builder(trace.name.clone()), &trace.config);
        Self { breaker: builder.clock(clock.clone()).build().unwrap(), clock, calls: HashMap::new() }
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Admit { call, count, expect, retry_within_ms } => (0..*count).try_for_each(|_| {
                let (answer, permit, retry_after) = self.admit();
                if let Some(within) = retry_within_ms
                    && retry_after.is_none_or(|after| after > Duration::from_millis(*within))
                {
                    return Err(format!("expected retry_after within {within} ms, got {retry_after:?}"));
                }
                if let (Some(call), Some(permit)) = (call, permit) {
                    self.calls.entry(call.clone()).or_default().push(permit);
                }
                same(*expect, answer)
            }),
            Op::Progress { call, part } => {
                let permits = self.calls.get_mut(call).ok_or_else(|| format!("no call is named {call}"))?;
                let progress = if *part == Part::Head { Progress::Head } else { Progress::Frame };
                permits.iter_mut().for_each(|permit| permit.progress(progress));
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
                match self.breaker.state() {
                    State::Closed | State::Disabled | State::MetricsOnly => trace::State::Closed,
                    State::Open | State::ForcedOpen => trace::State::Open,
                    State::HalfOpen => trace::State::HalfOpen,
                },
            ),
            Op::FailureRate { expect } => same(*expect, self.breaker.snapshot().failure_rate()),
            Op::Reload { config } => {
                let builder = trace::configure!(CircuitBreaker::builder(self.breaker.name().clone()), config);
                self.breaker.reload(&builder).map_err(|error| error.to_string())
            }
            Op::Operator(operator) => {
                let breaker = &self.breaker;
                match operator {
                    Operator::ForceOpen => breaker.force_open(),
                    Operator::Disable => breaker.disable(),
                    Operator::MetricsOnly => breaker.metrics_only(),
                    Operator::Reset => breaker.reset(),
                    Operator::OpenFor { ms } => breaker.open_for(Duration::from_millis(*ms)),
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

    /// Returns the admission, the permit, and the time after which a rejected call may retry.
    fn admit(&self) -> (Admission, Option<CircuitBreakerPermit>, Option<Duration>) {
        match self.breaker.admit(&()) {
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
        permit.settle(&outcome);
    }
}

fn same<T: PartialEq + std::fmt::Debug>(expected: T, actual: T) -> Result<(), String> {
    if expected == actual { Ok(()) } else { Err(format!("expected {expected:?}, got {actual:?}")) }
}
