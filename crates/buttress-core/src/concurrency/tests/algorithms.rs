//! Every algorithm with any window, and with its settings at their bounds.

use super::*;

/// Short, usual and long times, and the longest.
fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        2 => Just(Duration::ZERO),
        6 => (0..10_000_000_000_u64).prop_map(Duration::from_nanos),
        1 => (0..u64::MAX).prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
    ]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 6 => 0..10_000_u64, 1 => 0..=u64::from(u32::MAX)]
}

type Algorithms = Vec<Box<dyn LimitAlgorithm>>;

fn algorithms(seed: u64) -> Algorithms {
    let envoy = |interval| EnvoyGradient::builder().jitter(1.0).requests(1).interval(interval).seed(seed);
    let gradient2 = || Gradient2::builder().seed(seed);
    vec![
        Box::new(Fixed),
        Box::new(Aimd::default()),
        Box::new(Aimd::new(0.5, Duration::MAX).unwrap()),
        Box::new(Vegas::default().seed(seed)),
        Box::new(Vegas::new(f64::MIN_POSITIVE, f64::MAX, f64::MIN_POSITIVE).unwrap().seed(seed)),
        Box::new(envoy(Duration::from_secs(1)).build().unwrap()),
        Box::new(envoy(Duration::MAX).buffer(10.0).min_concurrency(usize::MAX).build().unwrap()),
        Box::new(gradient2().probe_every(8).build().unwrap()),
        Box::new(gradient2().tolerance(1.0).growth(1.0).queue(100.0).average(10).build().unwrap()),
        Box::new(Pid::default()),
        Box::new(Pid::builder().tolerance(3.0).gains(2.0, 2.0).memory(10).build().unwrap()),
    ]
}

proptest! {
    #[test]
    fn no_window_makes_an_algorithm_panic(
        seed in any::<u64>(),
        (min, max) in (1..100_usize, prop_oneof![100..2_000_usize, Just(u32::MAX as usize)]),
        windows in prop::collection::vec((time(), time(), time(), count(), count(), 0..3_000_usize), 1..60),
    ) {
        for mut algorithm in algorithms(seed) {
            let mut limit = min;
            for (rtt, mean_rtt, duration, answered, dropped, in_flight) in &windows {
                let window = Window {
                    min,
                    max,
                    in_flight: *in_flight,
                    answered: *answered,
                    dropped: *dropped,
                    rtt: *rtt,
                    mean_rtt: *mean_rtt,
                    duration: *duration,
                    ..Window::new(limit)
                };
                limit = algorithm.update(&window).max(min).min(max);
                let _ = algorithm.baseline();
            }
        }
    }
}
