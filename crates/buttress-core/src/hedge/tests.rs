use super::*;
use crate::ManualClock;
use proptest::prelude::*;

const STEP: Duration = Duration::from_secs(3);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn p(percentile: f64) -> (ManualClock, Delay<ManualClock>) {
    let clock = ManualClock::new();
    let delay = Delay::<ManualClock>::percentile(percentile).clock(clock.clone()).build().unwrap();
    (clock, delay)
}

/// Records `times` latencies and ends a step.
fn record(clock: &ManualClock, delay: &Delay<ManualClock>, times: usize, latency: Duration) {
    (0..times).for_each(|_| delay.record(latency));
    clock.advance(STEP);
}

#[test]
fn a_percentile_is_unknown_until_there_are_enough_samples() {
    let (clock, delay) = p(95.0);
    assert_eq!(delay.current(), None);
    record(&clock, &delay, 99, millis(10));
    assert_eq!(delay.current(), None);
    record(&clock, &delay, 1, millis(10));
    assert!(delay.current().is_some());
}

#[test]
fn latencies_leave_the_window_also_without_further_calls() {
    let (clock, delay) = p(95.0);
    record(&clock, &delay, 100, millis(10));
    assert!(delay.current().is_some());
    clock.advance(9 * STEP);
    assert_eq!(delay.current(), None);

    record(&clock, &delay, 100, millis(10));
    clock.advance(Duration::from_secs(3600));
    assert_eq!(delay.current(), None, "what was recorded an hour ago is not new");
}

#[test]
fn a_latency_counts_for_nine_tenths_of_the_window_at_least() {
    let (clock, delay) = p(95.0);
    delay.record(millis(10));
    clock.advance(STEP);
    record(&clock, &delay, 100, millis(10));
    for _ in 0..8 {
        assert!(delay.current().is_some());
        clock.advance(STEP);
    }
    assert!(delay.current().is_some(), "27 s after the start of their step");
    clock.advance(STEP);
    assert_eq!(delay.current(), None);
}

#[test]
fn the_percentile_follows_a_backend_that_becomes_slow() {
    let (clock, delay) = p(95.0);
    record(&clock, &delay, 1000, millis(10));
    assert!(delay.current().unwrap() < millis(11));
    record(&clock, &delay, 100, millis(800));
    assert!(delay.current().unwrap() >= millis(800), "a tenth of the latencies is enough for the 95th percentile");
}

#[test]
fn a_percentile_below_the_minimum_is_raised_to_it() {
    let (clock, delay) = p(50.0);
    record(&clock, &delay, 100, Duration::from_micros(40));
    assert_eq!(delay.current(), Some(millis(1)));
}

#[test]
fn while_the_percentile_is_above_the_maximum_no_call_is_hedged() {
    let clock = ManualClock::new();
    let delay = Delay::<ManualClock>::percentile(90.0).clock(clock.clone()).max(millis(500)).build().unwrap();
    record(&clock, &delay, 100, millis(600));
    assert_eq!(delay.current(), None);
    record(&clock, &delay, 2000, millis(20));
    assert!(delay.current().is_some());
}

#[test]
fn a_latency_beyond_the_histogram_makes_the_percentile_unknown() {
    let (clock, delay) = p(50.0);
    record(&clock, &delay, 100, Duration::from_secs(68));
    assert_eq!(delay.current(), None);
}

#[test]
fn a_fixed_delay_learns_nothing() {
    let delay = Delay::<ManualClock>::fixed(millis(30));
    (0..1000).for_each(|_| delay.record(Duration::from_secs(1)));
    assert_eq!((delay.current(), delay.learns()), (Some(millis(30)), false));
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_the_percentile() {
    let (clock, delay) = p(50.0);
    let start = clock.now();
    clock.advance(Duration::from_secs(3600));
    record(&clock, &delay, 100, millis(10));
    clock.set(start);
    record(&clock, &delay, 1000, millis(200));
    record(&clock, &delay, 0, millis(10));
    assert!(delay.current().unwrap() >= millis(200));
}

#[test]
fn an_invalid_setting_is_named() {
    let builder = || Delay::<ManualClock>::percentile(95.0);
    for percentile in [0.0, 100.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(Delay::<ManualClock>::percentile(percentile).build().unwrap_err().field(), "percentile");
    }
    assert_eq!(builder().min(millis(2)).max(millis(1)).build().unwrap_err().field(), "max");
    assert_eq!(builder().window(millis(9)).build().unwrap_err().field(), "window");
    assert_eq!(builder().min_samples(0).build().unwrap_err().field(), "min_samples");
}

#[test]
fn threads_that_record_at_the_same_time_lose_nothing() {
    let clock = ManualClock::new();
    let delay = Delay::<ManualClock>::percentile(50.0).clock(clock.clone()).min_samples(4000).build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| delay.record(millis(10))));
        }
    });
    clock.advance(STEP);
    assert!(delay.current().is_some());
}

proptest! {
    #[test]
    fn the_percentile_is_that_of_the_sorted_latencies_within_a_sixteenth(
        mut latencies in proptest::collection::vec(0u64..5_000_000, 100..400),
        percentile in 1u32..1000,
    ) {
        let (clock, delay) = p(f64::from(percentile) / 10.0);
        latencies.iter().for_each(|micros| delay.record(Duration::from_micros(*micros)));
        clock.advance(STEP);
        latencies.sort_unstable();
        let rank = (latencies.len() as u64 * u64::from(percentile)).div_ceil(1000);
        let exact = Duration::from_micros(latencies[rank as usize - 1]);
        let got = delay.current().unwrap();
        prop_assert!(got >= exact, "{got:?} {exact:?}");
        prop_assert!(got <= (exact + exact / 16 + Duration::from_micros(1)).max(millis(1)), "{got:?} {exact:?}");
    }
}
