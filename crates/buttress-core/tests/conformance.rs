//! Runs the traces of `tests/conformance` in the repository against the circuit breaker, on virtual
//! time. The README there specifies the format.

#[path = "../../../tests/conformance/ours.rs"]
mod ours;
#[path = "../../../tests/conformance/run.rs"]
mod run;
#[path = "../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "each runner uses a part")]
mod trace;

use run::Run;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use trace::{Feature, Trace};

/// Generates a test for each trace.
macro_rules! traces {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

traces! {
    a_call_a_minute_closes_it
    a_call_every_half_minute_closes_it
    a_call_every_ten_minutes_closes_it
    a_cancelled_probe_decides_nothing
    a_cancelled_probe_gives_its_place_back
    a_circuit_forced_open_stays_open
    a_circuit_that_only_measures_never_trips
    a_count_window_forgets_old_failures
    a_count_window_slides
    a_disabled_circuit_admits_everything
    a_dropped_probe_opens_it_again
    a_failed_probe_opens_it_again
    a_failed_round_opens_it_again
    a_fixed_number_stays_fixed
    a_graceful_refusal_is_no_failure
    a_graceful_refusal_of_a_probe_decides_nothing
    a_half_open_circuit_admits_everybody
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
    a_relapse_during_the_recovery_opens_it_again
    a_reset_clears_the_results
    a_reset_closes_it
    a_round_takes_all_its_probes
    a_round_without_a_failure_goes_on
    a_row_begins_anew_after_closing
    a_share_of_dropped_calls_trips_it
    a_share_of_the_probes_decides_early
    a_stale_probe_does_not_complete_a_later_round
    a_stale_probe_does_not_decide_a_later_round
    a_success_ends_a_row_of_failures
    a_success_that_completes_the_minimum_is_judged
    a_successful_probe_closes_it
    a_time_window_forgets_bit_by_bit
    a_time_window_forgets_without_calls
    an_equal_reload_changes_nothing
    an_error_that_is_no_failure_does_not_trip_it
    an_operators_state_is_left_by_the_operator_only
    an_outage_among_random_errors_trips_it
    an_overloaded_probe_opens_it_again
    another_lease_holds_for_the_probe_that_is_out
    callers_that_hang_up_do_not_trip_it_by_default
    calls_dropped_early_teach_nothing
    calls_that_hang_and_are_dropped_trip_it
    cancelled_probes_are_no_way_in_for_a_crowd
    dropped_calls_count_from_the_slow_threshold_on
    enough_good_probes_close_it
    fewer_probes_than_have_succeeded_close_it
    five_are_enough_while_the_rate_is_unknown
    frames_renew_the_lease_of_a_probe
    frequent_random_errors_do_not_trip_it
    half_open_asks_for_no_more_than_the_open_time
    half_open_is_bounded_in_time
    half_open_lets_only_the_probes_through
    hanging_calls_trip_it_by_default
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
    stale_probes_do_not_count_after_closing
    the_failure_rate_is_shown
    the_open_time_grows_while_probes_fail
    the_past_does_not_count_after_closing
    the_rate_is_unknown_below_the_minimum
    traffic_comes_back_in_parts
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
    let with = |fields: &str, config: &str, step: &str| {
        format!(
            r#"{{"format": 1, "name": "", "rule": "", "why": "", {fields}, "config": {{"open_ms": 1{config}}},
                "steps": [{{"at_ms": 0, {step}}}]}}"#
        )
    };
    const FIELDS: &str = r#""basis": {"judgement": ""}, "requires": []"#;
    const TRIP: &str = r#""op": "trip""#;
    assert_eq!(read(&with(FIELDS, "", TRIP)), Ok(()));
    for (fields, config, step, complaint) in [
        (r#""basis": {"opinion": ""}, "requires": []"#, "", TRIP, "unknown variant `opinion`"),
        (r#""requires": []"#, "", TRIP, "missing field `basis`"),
        (r#""basis": {"judgement": ""}, "requires": ["luck"]"#, "", TRIP, "unknown variant `luck`"),
        (FIELDS, r#", "tries": 1"#, TRIP, "unknown field `tries`"),
        (FIELDS, "", r#""op": "trip", "why": 1"#, "unknown field `why`"),
        (FIELDS, "", r#""op": "trip", "count": 1"#, "`trip` at 0 has no field `count`"),
        (FIELDS, "", r#""op": "settle", "call": "a""#, "`settle` at 0 needs the field `outcome`"),
        (FIELDS, "", r#""op": "explode""#, "no operation is called `explode`"),
    ] {
        let error = read(&with(fields, config, step)).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn a_trace_requires_what_its_steps_use() {
    let mut trace = Trace::read(&directory().join("a_reset_closes_it.json")).unwrap();
    trace.requires.clear();
    assert_eq!(trace.check(), Err("it uses `reset` and does not require it".into()));
}

/// The words in the first column of the table of requirements, and those of the traces.
#[test]
fn the_readme_explains_each_requirement_and_no_other() {
    let readme = fs::read_to_string(directory().join("README.md")).unwrap();
    let (_, table) = readme.split_once("| word |").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|') || line.contains("the implementation"));
    let words = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(", "));
    let explained: BTreeSet<_> =
        words.filter(|word| word.contains('`')).map(|word| word.trim().trim_matches('`').to_owned()).collect();
    let traces = Trace::read_all(&directory()).unwrap();
    let required: BTreeSet<_> = traces.values().flat_map(|trace| &trace.requires).map(Feature::to_string).collect();
    assert_eq!(explained, required);
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance")
}

fn check(name: &str) {
    let trace = Trace::read(&directory().join(name).with_extension("json")).unwrap();
    if !trace.requires.iter().all(|feature| *feature == Feature::ExactTime || ours::has(*feature)) {
        return;
    }
    let mut run = Run::new(ours::make(&trace));
    for (number, step) in trace.steps.iter().enumerate() {
        if let Err(deviation) = run.step(&step.op, Duration::from_millis(step.at_ms)) {
            panic!("{}\nstep {} at {} ms: {deviation}", trace.rule, number + 1, step.at_ms);
        }
    }
}
