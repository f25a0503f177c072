use super::*;

const MS: u64 = 1_000_000;

fn summary(latencies: impl IntoIterator<Item = u64>) -> Summary {
    let samples = Samples::new(2);
    for (shard, nanos) in latencies.into_iter().enumerate() {
        samples.answer(shard, 1, 1 + nanos, 1, || 7);
    }
    let mut summary = Summary::new();
    samples.drain_into(&mut summary);
    summary
}

#[test]
fn each_latency_is_in_its_bucket() {
    for exponent in 0..42 {
        for nanos in [1 << exponent, (1 << exponent) + (1 << exponent) / 3, (2 << exponent) - 1] {
            let (low, width) = span(bucket(nanos));
            assert!((low..low + width).contains(&nanos), "{nanos} in {low}+{width}");
            assert!(width <= (low / 8).max(1 << UNIT), "{low}+{width}");
        }
    }
    assert_eq!(bucket(u64::MAX), BUCKETS - 1);
}

#[test]
fn quantiles_are_within_a_sixteenth_and_the_mean_is_exact() {
    let summary = summary((1..=1000).map(|n| n * MS));
    assert_eq!((summary.answered(), summary.mean(), summary.waiting), (1000, 1001 * MS / 2, 7));
    for (share, exact) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
        let found = summary.quantile(share) as f64 / MS as f64;
        assert!((found / exact - 1.0).abs() < 1.0 / 16.0, "{share}: {found}");
    }
    assert_eq!((Summary::new().quantile(0.5), Summary::new().mean()), (0, 0));
}

#[test]
fn draining_leaves_nothing_behind() {
    let samples = Samples::new(2);
    samples.answer(0, 0, MS, 4, || 1);
    samples.drop_call(1, MS, 2);
    let mut first = Summary::new();
    samples.drain_into(&mut first);
    assert_eq!((first.answered(), first.dropped, first.mean()), (4, 2, MS));
    let mut second = Summary::new();
    samples.drain_into(&mut second);
    assert_eq!((second.answered(), second.dropped, second.waiting), (0, 0, 0));
}

#[test]
fn the_first_calls_of_a_window_are_timed_and_then_one_in_eight() {
    let samples = Samples::new(1);
    let mut timed = 0;
    for call in 0..(TIME_ALL + 800) {
        if samples.begin(0) != Timing::Untimed {
            timed += 1;
            samples.answer(0, 0, u64::from(call), 1, || 1);
        }
    }
    assert_eq!(timed, TIME_ALL + 100);
    samples.drain_into(&mut Summary::new());
    assert_eq!(samples.begin(0), Timing::All, "a new window");
}

#[test]
fn a_gap_is_a_stall_if_calls_were_in_flight_through_it_and_many_calls_were_answered() {
    let stall = |answers: u32, started: u64| {
        let samples = Samples::new(1);
        samples.mark(0, MS);
        samples.mark(0, 100 * MS);
        (0..answers).for_each(|_| samples.answer(0, started, 101 * MS, 1, || 1));
        let mut summary = Summary::new();
        samples.drain_into(&mut summary);
        summary.stall
    };
    assert_eq!(stall(STALL_EVIDENCE, MS), Some(99 * MS));
    assert_eq!(stall(STALL_EVIDENCE, 100 * MS), Some(0), "no call was in flight");
    assert_eq!(stall(STALL_EVIDENCE - 1, MS), None, "too few to tell");
}
