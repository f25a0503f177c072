use super::*;
use crate::testing::reported;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize as Count, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

const MS: Duration = Duration::from_millis(1);

fn chaos(faults: Faults) -> Chaos {
    let chaos = Chaos::builder().seed(7).max_active(usize::MAX).build().unwrap();
    chaos.set(faults);
    chaos
}

/// Draws the faults of this many calls.
fn drawn(faults: FaultsBuilder, calls: usize) -> Vec<Option<Drawn>> {
    let chaos = chaos(faults.build().unwrap());
    (0..calls).map(|_| chaos.draw(None).map(|injection| *injection.drawn())).collect()
}

fn count(drawn: &[Option<Drawn>], is: impl Fn(&Drawn) -> bool) -> usize {
    drawn.iter().flatten().filter(|drawn| is(drawn)).count()
}

fn all(rate: f64) -> FaultsBuilder {
    let (latency, pause) = (MS..=100 * MS, 200 * MS..=300 * MS);
    let faults = Faults::builder().errors(rate).latency(rate, latency).hangs(rate).resets(rate);
    faults.truncations(rate).lost_trailers(rate).slow_bodies(rate, pause).strike(Strike::Either)
}

#[test]
fn each_fault_has_its_share_of_the_calls() {
    // The standard deviation of 100,000 draws at 30 % is 145.
    let drawn = drawn(all(0.3), 100_000);
    type Kind<'a> = (&'a str, &'a dyn Fn(&Drawn) -> bool);
    let kinds: [Kind<'_>; 7] = [
        ("error", &|drawn| drawn.error),
        ("latency", &|drawn| drawn.latency.is_some()),
        ("hang", &|drawn| drawn.hang),
        ("reset", &|drawn| drawn.reset),
        ("truncation", &|drawn| drawn.truncation),
        ("lost trailers", &|drawn| drawn.lost_trailers),
        ("slow body", &|drawn| drawn.pause.is_some()),
    ];
    for (name, kind) in kinds {
        let hits = count(&drawn, kind);
        assert!((29_300..30_700).contains(&hits), "{name}: {hits}");
    }
    let late = count(&drawn, |drawn| drawn.is_late);
    let suffering = count(&drawn, |_| true);
    assert!(late.abs_diff(suffering / 2) < 700, "{late} of {suffering}");
}

#[test]
fn faults_are_independent_of_each_other() {
    // 0.3 * 0.3 of the calls; the standard deviation is 90.
    let drawn = drawn(all(0.3), 100_000);
    let kinds: [fn(&Drawn) -> bool; 5] = [
        |drawn| drawn.error,
        |drawn| drawn.latency.is_some(),
        |drawn| drawn.hang,
        |drawn| drawn.reset,
        |drawn| drawn.pause.is_some(),
    ];
    for (i, one) in kinds.iter().enumerate() {
        for other in &kinds[..i] {
            let both = count(&drawn, |drawn| one(drawn) && other(drawn));
            assert!((8_550..9_450).contains(&both), "{both}");
        }
    }
}

#[test]
fn the_same_seed_draws_the_same_and_one_rate_does_not_shift_the_others() {
    let errors = |faults| drawn(faults, 1000).iter().map(|drawn| drawn.is_some_and(|drawn| drawn.error)).collect();
    let few: Vec<bool> = errors(all(0.3));
    assert_eq!(few, errors(all(0.3)));
    assert_eq!(few, errors(all(0.9).errors(0.3)));
    assert_eq!(few, errors(Faults::builder().errors(0.3)));
}

#[test]
fn times_are_spread_over_their_ranges() {
    let drawn = drawn(all(1.0), 1000);
    let times = |time: fn(&Drawn) -> Option<Duration>| {
        let times: Vec<_> = drawn.iter().flatten().filter_map(time).collect();
        (*times.iter().min().unwrap(), *times.iter().max().unwrap())
    };
    let (low, high) = times(|drawn| drawn.latency);
    assert!((MS..5 * MS).contains(&low) && (96 * MS..=100 * MS).contains(&high), "{low:?} {high:?}");
    let (low, high) = times(|drawn| drawn.pause);
    assert!((200 * MS..205 * MS).contains(&low) && (295 * MS..=300 * MS).contains(&high), "{low:?} {high:?}");
}

#[test]
fn rates_of_zero_and_one_are_exact() {
    assert_eq!(count(&drawn(all(0.0), 10_000), |_| true), 0);
    assert_eq!(count(&drawn(all(1.0), 10_000), |drawn| drawn.error && drawn.hang && drawn.reset), 10_000);
}

#[test]
fn it_is_off_until_it_is_set_and_after_it_was_switched_off() {
    let chaos = Chaos::new();
    assert!(!chaos.is_on() && chaos.draw(Some(&all(1.0).build().unwrap())).is_none());
    chaos.set(all(1.0).build().unwrap());
    assert!(chaos.is_on() && chaos.draw(None).is_some());
    chaos.off();
    assert!(!chaos.is_on() && chaos.draw(None).is_none());
    assert!(chaos.faults().is_none());
    assert!(chaos.draw(Some(&all(1.0).build().unwrap())).is_none(), "the kill switch holds for all faults");
}

#[test]
fn a_call_may_have_faults_of_its_own() {
    let chaos = chaos(Faults::default());
    assert!(chaos.draw(None).is_none());
    let own = Faults::builder().errors(1.0).status(500).grpc_status(13).build().unwrap();
    let injection = chaos.draw(Some(&own)).unwrap();
    assert_eq!((injection.drawn().status, injection.drawn().grpc_status), (500, 13));
}

#[test]
fn no_more_calls_suffer_than_its_bound_allows() {
    let chaos = Chaos::builder().max_active(2).build().unwrap();
    chaos.set(all(1.0).build().unwrap());
    let (one, two) = (chaos.draw(None), chaos.draw(None));
    assert!(one.is_some() && two.is_some() && chaos.draw(None).is_none());
    assert_eq!((chaos.active(), chaos.spared()), (2, 1));
    drop(one);
    assert!(chaos.draw(None).is_some());
    drop(two);
    assert_eq!(chaos.active(), 0);
}

#[test]
fn threads_do_not_exceed_the_bound_together() {
    let chaos = Chaos::builder().max_active(3).build().unwrap();
    chaos.set(all(1.0).build().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let injection = chaos.draw(None);
                    assert!(chaos.active() <= 3);
                    drop(injection);
                }
            });
        }
    });
    assert_eq!(chaos.active(), 0);
}

#[derive(Default)]
struct Woken(Count);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_call_hangs_until_the_faults_change_or_it_is_switched_off() {
    for change in [Chaos::off as fn(&Chaos), |chaos| chaos.set(Faults::default())] {
        let chaos = chaos(Faults::builder().hangs(1.0).build().unwrap());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut injection = chaos.draw(None).unwrap();
        let mut dropped = chaos.draw(None).unwrap();
        assert!(injection.poll_hang(&mut cx).is_pending() && dropped.poll_hang(&mut cx).is_pending());
        drop(dropped);
        assert_eq!(woken.0.load(SeqCst), 0);
        change(&chaos);
        assert_eq!(woken.0.load(SeqCst), 1, "the call that was dropped is not woken");
        assert!(injection.poll_hang(&mut cx).is_ready());
    }
}

#[test]
fn a_configuration_names_the_field_and_the_rule() {
    let field = |faults: FaultsBuilder| faults.build().unwrap_err().field();
    assert_eq!(field(Faults::builder().errors(-0.1)), "errors");
    assert_eq!(field(Faults::builder().errors(f64::NAN)), "errors");
    assert_eq!(field(Faults::builder().latency(1.1, MS..=MS)), "latency");
    assert_eq!(field(Faults::builder().latency(0.1, 2 * MS..=MS)), "latency");
    assert_eq!(field(Faults::builder().hangs(2.0)), "hangs");
    assert_eq!(field(Faults::builder().resets(2.0)), "resets");
    assert_eq!(field(Faults::builder().truncations(2.0)), "truncations");
    assert_eq!(field(Faults::builder().lost_trailers(2.0)), "lost_trailers");
    assert_eq!(field(Faults::builder().slow_bodies(0.1, 2 * MS..=MS)), "slow_bodies");
    assert_eq!(field(Faults::builder().status(200)), "status");
    assert_eq!(field(Faults::builder().grpc_status(0)), "grpc_status");
}

#[test]
fn what_is_injected_is_reported_by_kind() {
    let chaos = chaos(all(1.0).build().unwrap());
    let injection = chaos.draw(None).unwrap();
    injection.count(Fault::Hang);
    injection.count(Fault::Hang);
    injection.count(Fault::SlowBody);
    let reported = reported(&chaos);
    assert!(reported.contains(&("resilience.chaos.injected", ["hang", ""], Value::Counter(2))));
    assert!(reported.contains(&("resilience.chaos.injected", ["slow_body", ""], Value::Counter(1))));
    assert!(reported.contains(&("resilience.chaos.active", ["", ""], Value::Gauge(1.0))));
    assert!(Fault::ALL.iter().enumerate().all(|(n, fault)| *fault as usize == n));
}
