use super::*;
use crate::{
    Bulkhead, CircuitBreaker,
    circuit_breaker::{CircuitBreakerPermit, State},
    outcome::{Failure, FailureKind, Outcome},
    policy::Permit,
};
use std::{
    sync::{Barrier, atomic::AtomicUsize},
    time::Duration,
};
use tokio::time::sleep;

const S: Duration = Duration::from_secs(1);
const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));

type Key = fn(&u32) -> u32;
type Circuits = Keyed<u32, CircuitBreaker, Key>;

fn circuits(max: usize) -> Circuits {
    Keyed::builder((|key| *key) as Key, |_| CircuitBreaker::new("keyed")).max_keys(max).build().unwrap()
}

fn bulkheads(max: usize) -> Keyed<u32, Bulkhead, Key> {
    Keyed::builder((|key| *key) as Key, |_| Bulkhead::new(1)).max_keys(max).build().unwrap()
}

fn call(keyed: &Circuits, key: u32, outcome: &Outcome) -> bool {
    keyed.admit(&key).map(|mut permit| permit.settle(outcome)).is_ok()
}

fn open(keyed: &Circuits, key: u32) -> CircuitBreaker {
    assert!(call(keyed, key, &Outcome::Success));
    let breaker = keyed.get(&key).expect("the key was used");
    breaker.open_for(10 * S);
    breaker
}

#[test]
fn each_key_has_a_policy_of_its_own() {
    let keyed = circuits(100);
    open(&keyed, 1).force_open();
    assert!(keyed.admit(&1).is_err());
    assert!(keyed.admit(&2).is_ok());
}

#[test]
fn the_number_of_keys_is_bounded_exactly() {
    for max in [1, 7, 16, 100] {
        let keyed = circuits(max);
        for key in 0..10_000 {
            assert!(call(&keyed, key, &Outcome::Success));
            assert!(keyed.len() <= max);
        }
        assert_eq!((keyed.len(), keyed.evicted()), (max, 10_000 - max as u64));
        assert!(keyed.get(&9_999).is_some(), "the newest key has no policy");
    }
}

#[test]
fn threads_do_not_exceed_the_number_of_keys() {
    let keyed = circuits(50);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let keyed = &keyed;
            scope.spawn(move || {
                for n in 0..2_000 {
                    assert!(call(keyed, n * 4 + thread, &Outcome::Success));
                    assert!(keyed.len() <= 50);
                }
            });
        }
    });
    assert_eq!(lock(&keyed.0.ring).taken, keyed.len());
    assert_eq!(lock(&keyed.0.ring).keys.len(), keyed.len());
}

#[test]
fn no_keys_at_all_is_an_error() {
    let error = Keyed::builder((|key| *key) as Key, |_: &u32| Bulkhead::new(1)).max_keys(0).build().unwrap_err();
    assert_eq!(error.field(), "max_keys");
}

#[test]
fn keys_that_come_again_outlive_a_flood_of_keys_that_come_once() {
    let keyed = circuits(100);
    for key in 0..10_000 {
        for regular in 0..50 {
            call(&keyed, regular, &Outcome::Success);
        }
        call(&keyed, 1_000 + key, &Outcome::Success);
    }
    assert!((0..50).all(|key| keyed.get(&key).is_some()));
    assert_eq!(keyed.untracked(), 0);
}

#[tokio::test(start_paused = true)]
async fn open_circuits_and_policies_in_use_are_not_evicted() {
    let keyed = circuits(100);
    let _in_use: Vec<CircuitBreakerPermit> = (0..40).map(|key| keyed.admit(&key).unwrap()).collect();
    (40..45).for_each(|key| drop(open(&keyed, key)));
    (45..50).for_each(|key| open(&keyed, key).force_open());
    (50..55).for_each(|key| open(&keyed, key).disable());
    for key in 1_000..20_000 {
        call(&keyed, key, &Outcome::Success);
    }
    assert!((0..55).all(|key| keyed.get(&key).is_some()));
    assert_eq!(keyed.get(&40).unwrap().state(), State::Open);
    assert_eq!(keyed.get(&45).unwrap().state(), State::ForcedOpen);
    assert!(keyed.len() <= 100);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_whose_time_is_over_makes_room() {
    let keyed = circuits(1000);
    // These circuits open, and their hosts are not called again.
    for key in 0..3000 {
        assert!((0..5).all(|_| call(&keyed, key, &FAILURE)));
    }
    sleep(S * 30 * 86_400).await;
    let before = keyed.untracked();
    let admitted = (0..1000).filter(|_| call(&keyed, 1_000_000, &FAILURE)).count();
    assert!(admitted < 10, "the new host's circuit opened after {admitted} failures");
    assert!(keyed.get(&1_000_000).is_some());
    assert_eq!(keyed.untracked(), before);
}

#[test]
fn when_every_policy_is_in_use_calls_of_new_keys_are_untracked() {
    let keyed = bulkheads(10);
    let held: Vec<_> = (0..1000).map(|key| keyed.admit(&key).unwrap()).collect();
    assert_eq!((keyed.len(), keyed.untracked(), keyed.evicted()), (10, 990, 0));
    drop(held);
    drop(keyed.admit(&5_000));
    assert!(keyed.get(&5_000).is_some());
}

#[test]
fn a_policy_is_made_once_for_each_key() {
    let made = Arc::new(AtomicUsize::new(0));
    let (count, barrier) = (made.clone(), Barrier::new(4));
    let keyed: Keyed<u32, Bulkhead, Key> = Keyed::new((|key| *key) as Key, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Bulkhead::new(1000)
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                (0..100).for_each(|key| drop(keyed.admit(&key).unwrap()));
            });
        }
    });
    assert_eq!((made.load(Ordering::Relaxed), keyed.len()), (100, 100));
}

#[test]
fn policies_are_made_compact() {
    let keyed: Keyed<u32, Bulkhead, Key> = Keyed::new((|key| *key) as Key, |_| {
        assert_eq!(buttress_core::shard::shards(), 1);
        Bulkhead::new(1)
    });
    drop(keyed.admit(&1).unwrap());
    assert!(buttress_core::shard::shards() > 1);
}

#[test]
fn a_key_whose_policy_could_not_be_made_is_tried_again_and_can_be_evicted() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let keyed: Keyed<u32, Bulkhead, Key> = Keyed::builder((|key| *key) as Key, move |_| {
        assert!(!is_broken.load(Ordering::Relaxed), "no configuration for this key");
        Bulkhead::new(1)
    })
    .max_keys(2)
    .build()
    .unwrap();
    let ask = |key| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(keyed.admit(&key))));
    assert!(ask(1).is_err() && ask(2).is_err());
    broken.store(false, Ordering::Relaxed);
    assert!(ask(1).is_ok() && keyed.get(&1).is_some());
    assert!((3..6).all(|key| ask(key).is_ok() && keyed.get(&key).is_some()));
    assert_eq!(keyed.len(), 2);
}

/// A policy whose report panics while a flag is set.
struct Unreadable(Arc<AtomicBool>);

impl Report for Unreadable {
    fn metrics() -> Vec<Metric> {
        Vec::new()
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, _: &mut dyn Sink) {
        assert!(!self.0.load(Ordering::Relaxed), "no numbers");
    }
}

impl Policy<u32> for Unreadable {
    type Permit = ();

    fn admit(&self, _: &u32) -> Result<(), Rejection> {
        Ok(())
    }
}

impl Idle for Unreadable {
    fn is_idle(&self) -> bool {
        true
    }
}

#[test]
fn a_policy_whose_report_panics_gives_its_place_to_a_later_key() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let make = move |_: &u32| Unreadable(is_broken.clone());
    let keyed: Keyed<u32, Unreadable, Key> = Keyed::builder((|key| *key) as Key, make).max_keys(2).build().unwrap();
    let ask = |key| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| keyed.admit(&key))).is_ok();
    assert!(ask(1) && ask(2));
    assert!((3..9).any(|key| !ask(key)), "the evicted policy was not read");
    broken.store(false, Ordering::Relaxed);
    assert!((10..20).all(ask));
    assert_eq!((keyed.len(), keyed.untracked()), (2, 0));
}

/// A policy that uses other keys in `is_idle`, as a listener might.
struct UsesKeyedPolicy(Arc<OnceLock<Keyed<u32, UsesKeyedPolicy, Key>>>);

impl Report for UsesKeyedPolicy {
    fn metrics() -> Vec<Metric> {
        Vec::new()
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, _: &mut dyn Sink) {}
}

impl Policy<u32> for UsesKeyedPolicy {
    type Permit = ();

    fn admit(&self, _: &u32) -> Result<(), Rejection> {
        self.0.get().expect("the cell is set").len();
        Ok(())
    }
}

impl Idle for UsesKeyedPolicy {
    fn is_idle(&self) -> bool {
        let keyed = self.0.get().expect("the cell is set");
        keyed.stats();
        keyed.admit(&0).is_ok()
    }
}

#[test]
fn policies_and_their_makers_may_use_the_keyed_policy() {
    let cell = Arc::new(OnceLock::new());
    let (inside, (done, is_done)) = (cell.clone(), std::sync::mpsc::channel());
    let make = move |key: &u32| {
        let keyed: &Keyed<u32, UsesKeyedPolicy, Key> = inside.get().expect("the cell is set");
        if *key != 0 {
            keyed.admit(&0).unwrap();
        }
        UsesKeyedPolicy(inside.clone())
    };
    let keyed = Keyed::builder((|key| *key) as Key, make).max_keys(8).build().unwrap();
    assert!(cell.set(keyed.clone()).is_ok());
    std::thread::spawn(move || {
        (0..100).for_each(|key| keyed.admit(&key).unwrap());
        done.send(keyed.evicted()).unwrap();
    });
    let evicted = is_done.recv_timeout(Duration::from_secs(20)).expect("deadlock");
    assert!(evicted >= 90);
}

/// Returns the nonzero sums over all keys.
fn sums(keyed: &Circuits) -> Vec<(&'static str, LabelValues, Value)> {
    let mut sums = Sums::default();
    keyed.report(&mut sums);
    let mut sums: Vec<_> = sums.into_values().map(|(metric, labels, value)| (metric.name, labels, value)).collect();
    sums.retain(|(_, _, value)| !matches!(value, Value::Counter(0) | Value::Gauge(0.0) | Value::Rate { whole: 0, .. }));
    sums
}

#[tokio::test(start_paused = true)]
async fn sums_are_over_all_keys_and_their_counters_survive_eviction() {
    let keyed = circuits(4);
    open(&keyed, 1).force_open();
    open(&keyed, 2);
    let _in_flight = keyed.admit(&3).unwrap();
    for key in [1, 2, 2] {
        assert!(keyed.admit(&key).is_err());
    }
    let rejected = ("resilience.breaker.rejected", [""; 2], Value::Counter(3));
    let opened = ("resilience.breaker.transitions", ["closed", "open"], Value::Counter(2));
    let state = |state, keys| ("resilience.breaker.state", [state, ""], Value::Gauge(keys));
    let before = sums(&keyed);
    for expected in [state("closed", 1.0), state("open", 1.0), state("forced-open", 1.0), rejected, opened] {
        assert!(before.contains(&expected), "{expected:?} in {before:?}");
    }
    assert_eq!(keyed.stats(), Stats { keys: 3, evicted: 0, untracked: 0 });
    sleep(3600 * S).await;
    assert!((10..30).all(|key| call(&keyed, key, &Outcome::Success)));
    assert!(keyed.get(&2).is_none() && keyed.get(&1).is_some());
    let after = sums(&keyed);
    for expected in [state("closed", 3.0), state("forced-open", 1.0), rejected, opened] {
        assert!(after.contains(&expected), "{expected:?} in {after:?}");
    }
}

const CALLS: Metric = Metric::counter("calls", "calls", "Calls");

/// A policy with one call, which reads the sums over all keys when it is reported.
struct ReadsSums(Arc<OnceLock<Keyed<u32, ReadsSums, Key>>>, Arc<AtomicBool>);

impl ReadsSums {
    fn calls(keyed: &Keyed<u32, Self, Key>) -> Option<Value> {
        let mut sums = Sums::default();
        keyed.report(&mut sums);
        sums.find(&CALLS, [""; 2]).copied()
    }
}

impl Report for ReadsSums {
    fn metrics() -> Vec<Metric> {
        vec![CALLS]
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, sink: &mut dyn Sink) {
        if self.1.swap(false, Ordering::Relaxed) {
            assert_eq!(Self::calls(self.0.get().expect("the cell is set")), Some(Value::Counter(2)));
        }
        sink.counter(&CALLS, 1);
    }
}

impl Policy<u32> for ReadsSums {
    type Permit = ();

    fn admit(&self, _: &u32) -> Result<(), Rejection> {
        Ok(())
    }
}

impl Idle for ReadsSums {
    fn is_idle(&self) -> bool {
        true
    }
}

#[test]
fn counters_do_not_fall_while_a_policy_is_evicted() {
    let (cell, reads) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (inside, flag) = (cell.clone(), reads.clone());
    let make = move |_: &u32| ReadsSums(inside.clone(), flag.clone());
    let keyed = Keyed::builder((|key| *key) as Key, make).max_keys(2).build().unwrap();
    assert!(cell.set(keyed.clone()).is_ok());
    (1..=2).for_each(|key| keyed.admit(&key).unwrap());
    assert_eq!(ReadsSums::calls(&keyed), Some(Value::Counter(2)));
    reads.store(true, Ordering::Relaxed);
    keyed.admit(&3).unwrap();
    assert!(!reads.load(Ordering::Relaxed), "the evicted policy was not read");
    assert_eq!((ReadsSums::calls(&keyed), keyed.evicted()), (Some(Value::Counter(3)), 1));
}

#[test]
fn keys_evictions_and_untracked_calls_are_reported_each_under_its_own_name() {
    let keyed =
        Keyed::builder(|key: &u32| *key, |_: &u32| Bulkhead::new(1)).name("tenants").max_keys(3).build().unwrap();
    assert!(keyed.is_empty());
    let held: Vec<_> = (0..8).map(|key| keyed.admit(&key).unwrap()).collect();
    drop(held);
    assert!(!keyed.is_empty());
    drop(keyed.admit(&9).unwrap());
    assert_eq!(keyed.stats(), Stats { keys: 3, evicted: 1, untracked: 5 });
    let mut sums = Sums::default();
    keyed.report(&mut sums);
    let own: Vec<_> = sums.into_values().map(|(metric, _, value)| (metric.name, value)).take(3).collect();
    let keys = ("resilience.keyed.keys", Value::Gauge(3.0));
    let [evicted, untracked] =
        [("resilience.keyed.evicted", 1), ("resilience.keyed.untracked", 5)].map(|(name, n)| (name, Value::Counter(n)));
    assert_eq!(own[..], [keys, evicted, untracked]);
    assert_eq!(Report::name(&keyed), Some("tenants"));
    let described = Keyed::<u32, Bulkhead, Key>::metrics();
    assert_eq!(described, [own_metrics(), Bulkhead::metrics()].concat());
    assert_eq!(own_metrics().len(), own.len());
}

#[test]
fn a_thousand_keys_have_a_policy_by_default() {
    let keyed: Keyed<u32, Bulkhead, Key> = Keyed::new((|key| *key) as Key, |_| Bulkhead::new(1));
    let built = Keyed::builder((|key| *key) as Key, |_: &u32| Bulkhead::new(1)).build().unwrap();
    for keyed in [keyed, built] {
        (0..1001).for_each(|key| drop(keyed.admit(&key).unwrap()));
        assert_eq!((keyed.len(), keyed.evicted()), (1000, 1));
    }
}

#[test]
fn a_policy_is_evicted_only_when_no_less_used_one_is_near() {
    let keyed = bulkheads(17);
    (0..17).for_each(|key| drop(keyed.admit(&key).unwrap()));
    // All are used again but the last, so that 16 candidates have a second chance before it.
    (0..16).for_each(|key| drop(keyed.admit(&key).unwrap()));
    drop(keyed.admit(&100).unwrap());
    assert!(keyed.get(&0).is_none(), "after 16 candidates the first idle one goes");
    drop(keyed.admit(&101).unwrap());
    assert!(keyed.get(&16).is_none(), "the next candidate was not used");
    assert!((1..16).all(|key| keyed.get(&key).is_some()));
}

#[test]
fn a_limit_can_be_changed_for_all_keys() {
    let keyed = bulkheads(100);
    (0..10).for_each(|key| drop(keyed.admit(&key).unwrap()));
    keyed.for_each(|_, bulkhead| bulkhead.set_limit(7));
    let mut limits: Vec<_> = keyed.policies().iter().map(|(key, bulkhead)| (*key, bulkhead.limit())).collect();
    limits.sort_unstable();
    assert_eq!(limits, (0..10).map(|key| (key, 7)).collect::<Vec<_>>());
}
