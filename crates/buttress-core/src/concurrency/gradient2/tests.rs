use super::*;
use proptest::prelude::*;

/// A busy window: every call of the limit waits, for `rtt` milliseconds.
fn window(limit: usize, rtt: f64) -> Window {
    let mean_rtt = Duration::from_nanos((rtt * 1e6) as u64);
    let answered = (limit as f64 * 250.0 / rtt).round() as u64;
    Window { in_flight: limit, answered, rtt: mean_rtt, mean_rtt, ..Window::new(limit) }
}

fn published() -> Gradient2 {
    Gradient2::builder().average(600).tolerance(1.5).smoothing(0.2).growth(1.0).queue(4.0).build().unwrap()
}

/// The latency of a server with `workers` that takes 10 ms for a call, when `calls` wait.
fn latency(workers: f64, calls: usize) -> f64 {
    10.0 * (calls as f64 / workers).max(1.0)
}

/// Returns the limits after each of `windows` windows in front of an overloaded server.
fn overload(gradient: &mut Gradient2, start: usize, workers: f64, windows: usize) -> Vec<usize> {
    let mut limit = start;
    let step = |_| {
        limit = gradient.update(&window(limit, latency(workers, limit)));
        limit
    };
    (0..windows).map(step).collect()
}

#[test]
fn the_limit_moves_in_proportion_to_the_latency() {
    let mut gradient = Gradient2::default();
    // g = 1.3: 100 + 0.6 · (100 · 0.3 + 1) = 118.6.
    assert_eq!(gradient.update(&window(100, 10.0)), 118);
    // g = 0.5: 118.6 + 0.6 · (118 · -0.5 + 1) = 83.8.
    assert_eq!(gradient.update(&window(118, 26.0)), 83);
    // g is bounded by 0.5: 83.8 + 0.6 · (83 · -0.5 + 1) = 59.5.
    assert_eq!(gradient.update(&window(83, 1000.0)), 59);
    assert_eq!(gradient.baseline(), Some(Duration::from_millis(10)));
}

#[test]
fn with_the_published_parameters_it_grows_by_its_queue_and_averages_the_latency() {
    let mut gradient = published();
    // 100 + 0.2 · 4 = 100.8.
    assert_eq!(gradient.update(&window(100, 10.0)), 100);
    // The mean of 10 and 30 is 20: g = 1.5 · 20 / 30 = 1. 101.6.
    assert_eq!(gradient.update(&window(100, 30.0)), 101);
    // The mean of 10, 30 and 60 is 33.3: g = 0.833. 101.6 + 0.2 · (101 · -0.1667 + 4) = 99.03.
    assert_eq!(gradient.update(&window(101, 60.0)), 99);
    assert_eq!(gradient.baseline(), Some(Duration::from_nanos(33_333_333)));
    // As published, a long latency of more than twice the last one falls by 5 %: the mean of 10,
    // 30, 60 and 10 is 27.5, and becomes 26.1.
    gradient.update(&window(99, 10.0));
    assert_eq!(gradient.baseline(), Some(Duration::from_micros(26_125)));
}

#[test]
fn the_average_does_not_rise_while_the_limit_is_below_half_of_its_recent_maximum() {
    let mut gradient = published();
    gradient.update(&window(100, 10.0));
    gradient.update(&window(49, 40.0));
    assert_eq!(gradient.baseline(), Some(Duration::from_millis(10)));
    (0..8).for_each(|_| {
        gradient.update(&window(49, 40.0));
    });
    assert_eq!(gradient.baseline(), Some(Duration::from_millis(10)));
    gradient.update(&window(49, 40.0));
    assert!(gradient.baseline() > Some(Duration::from_millis(10)), "the maximum is more than 10 windows ago");
}

#[test]
fn drops_lower_the_limit_by_a_tenth_or_by_their_share() {
    let dropped = |dropped| {
        let mut gradient = Gradient2::default();
        gradient.update(&Window { dropped, answered: 100 - dropped, ..window(100, 10.0) })
    };
    assert_eq!([dropped(5), dropped(10), dropped(30), dropped(60), dropped(100)], [90, 90, 70, 50, 50]);
    assert!(dropped(4) >= 100, "callers leave");
}

#[test]
fn an_unused_limit_is_kept_and_windows_without_answers_say_nothing() {
    let mut gradient = Gradient2::default();
    gradient.update(&Window { in_flight: 0, ..window(100, 10.0) });
    assert_eq!(gradient.update(&Window { in_flight: 49, ..window(100, 500.0) }), 100);
    assert_eq!(gradient.update(&Window { answered: 0, ..window(100, 500.0) }), 100);
}

#[test]
fn a_probe_halves_the_waiting_calls_for_two_windows_and_measures_in_the_second() {
    let mut gradient = Gradient2::builder().growth(1.0).queue(0.5).probe_every(20).seed(1).build().unwrap();
    // The first latency is 10 ms, which then is 20 ms without a queue.
    let mut limit = 100;
    for n in 1..8 {
        limit = gradient.update(&window(limit, if n == 1 { 10.0 } else { 13.0 }));
        assert!(limit >= 100, "{limit}");
    }
    let before = limit;
    limit = gradient.update(&window(limit, 13.0));
    assert_eq!(limit, before - before / 2, "a probe");
    assert_eq!(gradient.update(&window(limit, 50.0)), limit, "the calls before the probe end");
    assert_eq!(gradient.baseline(), Some(Duration::from_millis(10)));
    assert_eq!(gradient.update(&window(limit, 20.0)), before, "back");
    assert_eq!(gradient.baseline(), Some(Duration::from_millis(20)));
    let next = (1..40).find(|_| gradient.update(&window(before, 20.0)) < 60);
    assert!((17..=23).contains(&next.unwrap()), "20 windows and 15 %: {next:?}");
}

#[test]
fn a_limit_that_falls_by_a_quarter_leads_to_a_probe() {
    let mut gradient = Gradient2::builder().seed(1).probe_every(10_000).build().unwrap();
    let calm = overload(&mut gradient, 40, 32.0, 60);
    let before = *calm.last().unwrap();
    assert!((36..50).contains(&before), "{calm:?}");
    // Every call takes twice as long, without a queue.
    let mut limit = before;
    let limits: Vec<_> = (0..20)
        .map(|_| {
            limit = gradient.update(&window(limit, 2.0 * latency(32.0, limit)));
            limit
        })
        .collect();
    assert!(*limits.last().unwrap() > 34, "it would stay below 32: {limits:?}");
    let baseline = gradient.baseline().unwrap();
    assert!(baseline >= Duration::from_millis(20), "{baseline:?}");
}

#[test]
fn sustained_overload_does_not_become_the_baseline() {
    let mut gradient = Gradient2::builder().seed(1).build().unwrap();
    let limits = overload(&mut gradient, 20, 32.0, 4000);
    let late = &limits[3000..];
    assert!(late.iter().all(|limit| (18..50).contains(limit)), "{late:?}");
}

proptest! {
    /// Whatever it starts with, and whatever the first latency was.
    #[test]
    fn it_reaches_the_capacity_of_an_overloaded_server(workers in 4u32..300, start in 4usize..1000, seed in 0u64..50) {
        let mut gradient = Gradient2::builder().seed(seed).build().unwrap();
        let limits = overload(&mut gradient, start, workers.into(), 600);
        let busy: Vec<_> = limits[400..].iter().map(|limit| *limit as f64 / f64::from(workers)).collect();
        let enough = busy.iter().filter(|share| **share >= 0.95).count();
        prop_assert!(enough as f64 >= 0.9 * busy.len() as f64, "{busy:?}");
        let most = busy.iter().copied().fold(0.0, f64::max);
        prop_assert!(most <= 1.3 + 6.0 / f64::from(workers).sqrt(), "{most}");
    }

    /// No sequence of windows leads out of the bounds, or to a panic.
    #[test]
    fn the_limit_stays_within_its_bounds(
        windows in prop::collection::vec((1usize..2000, 0.001f64..1e6, 0u64..50, 0usize..2000), 1..200),
    ) {
        for mut gradient in [Gradient2::builder().seed(1).build().unwrap(), published()] {
            for (limit, rtt, dropped, in_flight) in &windows {
                let window = Window { min: 4, dropped: *dropped, in_flight: *in_flight, ..window(*limit, *rtt) };
                let next = gradient.update(&window);
                prop_assert!((4..=1000).contains(&next) || next == *limit, "{next}");
            }
        }
    }
}

#[test]
fn an_error_names_the_field() {
    let field = |builder: Builder| builder.build().err().map(|error| error.field());
    assert_eq!(field(Gradient2::builder().tolerance(0.9)), Some("tolerance"));
    assert_eq!(field(Gradient2::builder().smoothing(0.0)), Some("smoothing"));
    assert_eq!(field(Gradient2::builder().growth(f64::NAN)), Some("growth"));
    assert_eq!(field(Gradient2::builder().queue(0.0)), Some("queue"));
    assert_eq!(field(Gradient2::builder().probe_every(7)), Some("probe_every"));
    assert_eq!(field(Gradient2::builder().average(9)), Some("average"));
    assert_eq!(field(Gradient2::builder()), None);
}
