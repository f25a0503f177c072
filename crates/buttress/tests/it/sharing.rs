//! Tests of shared circuits.

use crate::{MS, SECOND};
use buttress::circuit_breaker::sharing::{
    Announcement, BoxFuture, MemoryStore, Mode, ProbeLease, SharedState, Sharing, SharingBuilder, Stamp, StoreHealth,
    View, Written,
};
use buttress::circuit_breaker::{Cause, State};
use buttress::{
    BoxError, CircuitBreaker,
    outcome::{Failure, FailureKind, Outcome},
    policy::{Permit, Policy},
};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use tokio::time::sleep;

const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));

/// An instance of the service, with its circuit and its sharing.
struct Instance {
    breaker: CircuitBreaker,
    sharing: Option<Sharing>,
    transitions: Arc<Mutex<Vec<(State, Cause)>>>,
}

impl Instance {
    fn new(node: u64, share: Option<(Arc<dyn SharedState>, Mode)>) -> Self {
        let breaker = CircuitBreaker::builder("payments")
            .consecutive_failures(2)
            .failure_rate(0.5)
            .minimum_throughput(10)
            .open_time(SECOND..=60 * SECOND)
            .probes(2)
            .seed(node)
            .build()
            .unwrap();
        let transitions = Arc::new(Mutex::new(Vec::new()));
        let list = transitions.clone();
        breaker.on_transition(move |change| list.lock().unwrap().push((change.to, change.cause)));
        let sharing =
            share.map(|(store, mode)| Sharing::builder(breaker.clone(), store).node(node).mode(mode).start().unwrap());
        Self { breaker, sharing, transitions }
    }

    fn call(&self, outcome: Outcome) -> bool {
        let permit = self.breaker.admit(&());
        permit.map(|mut permit| permit.settle(&outcome)).is_ok()
    }

    fn fail(&self, times: u32) {
        (0..times).for_each(|_| assert!(self.call(FAILURE)));
    }

    fn state(&self) -> State {
        self.breaker.state()
    }

    fn health(&self) -> StoreHealth {
        *self.sharing.as_ref().unwrap().health().borrow()
    }

    fn last_cause(&self) -> Option<Cause> {
        self.transitions.lock().unwrap().last().map(|(_, cause)| *cause)
    }
}

/// Returns two instances with a common store.
async fn two(mode: Mode) -> (Arc<Store>, Instance, Instance) {
    let store = Arc::new(Store::default());
    let [a, b] = [1, 2].map(|node| Instance::new(node, Some((store.clone(), mode))));
    settled().await;
    (store, a, b)
}

/// Waits until all instances have read the store. Short compared to an open time.
async fn settled() {
    sleep(300 * MS).await;
}

/// A store that can fail, hang or be slow.
#[derive(Default)]
struct Store {
    inner: Arc<MemoryStore>,
    trouble: AtomicU8,
}

const FAILS: u8 = 1;
const HANGS: u8 = 2;
const IS_SLOW: u8 = 3;
/// Another instance writes first.
const OVERTAKES: u8 = 4;

impl Store {
    fn trouble(&self, trouble: u8) {
        self.trouble.store(trouble, Ordering::SeqCst);
    }

    async fn pass(&self) -> Result<(), BoxError> {
        match self.trouble.load(Ordering::SeqCst) {
            FAILS => Err("the store fails".into()),
            HANGS => std::future::pending().await,
            IS_SLOW => {
                sleep(400 * MS).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl SharedState for Store {
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>> {
        Box::pin(async move {
            self.pass().await?;
            self.inner.read(name).await
        })
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>> {
        Box::pin(async move {
            self.pass().await?;
            if self.trouble.load(Ordering::SeqCst) == OVERTAKES {
                let first = Announcement { node: 9, open: Some(7 * SECOND), failures: 1, total: 1 };
                self.inner.write(name, expected, first).await?;
            }
            self.inner.write(name, expected, announcement).await
        })
    }

    fn lease_probe<'a>(
        &'a self,
        name: &'a str,
        expected: Stamp,
        lease: ProbeLease,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move {
            self.pass().await?;
            self.inner.lease_probe(name, expected, lease).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_opens_on_one_instance_opens_on_all_for_the_same_time() {
    let (_store, a, b) = two(Mode::Shared).await;
    a.fail(2);
    assert_eq!(b.state(), State::Closed, "sharing is not on the path of a call");
    settled().await;
    assert_eq!((b.state(), b.last_cause()), (State::Open, Some(Cause::Peer)));
    let [a, b] = [&a, &b].map(|instance| instance.breaker.snapshot().retry_after.unwrap());
    assert!(a.abs_diff(b) < 5 * MS, "{a:?}, {b:?}");
}

#[tokio::test(start_paused = true)]
async fn one_instance_probes_at_a_time_and_what_it_finds_holds_for_all() {
    let (_store, a, b) = two(Mode::Shared).await;
    a.fail(2);
    sleep(3 * SECOND).await;
    assert_eq!((a.call(FAILURE), b.call(FAILURE)), (false, false), "no instance has a lease yet");
    settled().await;
    let probe = a.breaker.admit(&()).ok().or_else(|| b.breaker.admit(&()).ok());
    let mut probe = probe.expect("one of them may probe");
    assert_eq!((a.call(FAILURE), b.call(FAILURE)), (false, false), "only the holder of the lease may probe");
    probe.settle(&Outcome::Success);
    settled().await;
    assert!(a.call(Outcome::Success) ^ b.call(Outcome::Success), "one instance makes the second probe");
    settled().await;
    assert_eq!((a.state(), b.state()), (State::Closed, State::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_opens_all_of_them_again_and_for_longer() {
    let (_store, a, b) = two(Mode::Shared).await;
    a.fail(2);
    sleep(3 * SECOND).await;
    assert!(!b.call(FAILURE));
    settled().await;
    assert!(b.call(FAILURE), "only b had a call, so b has the lease");
    settled().await;
    assert_eq!((a.state(), b.state()), (State::Open, State::Open));
    assert!(a.breaker.snapshot().retry_after.is_some(), "a new open time has begun");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_dies_with_its_lease_holds_the_others_up_until_it_has_run_out() {
    let (_store, mut a, b) = two(Mode::Shared).await;
    a.fail(2);
    sleep(3 * SECOND).await;
    assert!(!a.call(FAILURE));
    settled().await;
    let _probe = a.breaker.admit(&()).unwrap();
    a.sharing = None;
    assert!(!b.call(FAILURE));
    sleep(3 * SECOND).await;
    assert!(!b.call(FAILURE));
    sleep(3 * SECOND).await;
    assert!(b.call(Outcome::Success));
}

#[tokio::test(start_paused = true)]
async fn an_instance_without_calls_does_not_keep_the_others_from_probing() {
    let (_store, a, b) = two(Mode::Shared).await;
    a.fail(2);
    sleep(60 * SECOND).await;
    assert!(!b.call(FAILURE));
    settled().await;
    assert!(b.call(Outcome::Success));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_late_starts_open() {
    let (store, a, _b) = two(Mode::Shared).await;
    a.fail(2);
    settled().await;
    let late = Instance::new(3, Some((store, Mode::Shared)));
    settled().await;
    assert_eq!(late.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_word_that_was_overtaken_is_not_said() {
    let (store, a, b) = two(Mode::Shared).await;
    let first = Announcement { node: 9, open: Some(7 * SECOND), failures: 1, total: 1 };
    // Another instance wrote, and `a` has not read since.
    store.inner.write("payments", None, first).await.unwrap();
    a.fail(2);
    settled().await;
    for instance in [&a, &b] {
        let left = instance.breaker.snapshot().retry_after.unwrap();
        assert!(left > 6 * SECOND, "{left:?}");
    }
    assert_eq!(store.inner.read("payments").await.unwrap().unwrap().stamp, Stamp { version: 1, node: 9 });
}

#[tokio::test(start_paused = true)]
async fn advice_makes_the_others_careful_and_no_more() {
    let (_store, a, b) = two(Mode::Advisory).await;
    let mix =
        |instance: &Instance| (0..3).for_each(|_| assert!(instance.call(Outcome::Success) && instance.call(FAILURE)));
    mix(&b);
    assert_eq!(b.state(), State::Closed, "6 calls are below the minimum throughput");
    b.breaker.reset();
    a.fail(2);
    settled().await;
    assert_eq!(b.state(), State::Closed);
    (0..2).for_each(|_| assert!(b.call(Outcome::Success) && b.call(FAILURE)));
    assert!(b.call(Outcome::Success) && b.call(FAILURE));
    assert_eq!(b.state(), State::Open, "half of the minimum throughput is enough");
    b.breaker.reset();
    sleep(5 * SECOND).await;
    mix(&b);
    assert_eq!(b.state(), State::Closed, "the open time of a is over");
    assert!(a.call(Outcome::Success), "a probes without a lease");
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_does_stays_on_the_instance() {
    let (_store, a, b) = two(Mode::Shared).await;
    a.breaker.force_open();
    settled().await;
    assert_eq!(b.state(), State::Closed);
    b.fail(2);
    settled().await;
    assert_eq!((a.state(), b.state()), (State::ForcedOpen, State::Open));
}

/// Makes the same calls at the same times on a local circuit and on one whose store is broken.
async fn as_if_alone(trouble: u8) {
    let store = Arc::new(Store::default());
    store.trouble(trouble);
    let (alone, shared) = (Instance::new(1, None), Instance::new(1, Some((store, Mode::Shared))));
    let mut rng = fastrand::Rng::with_seed(3);
    for step in 0..3_000 {
        let outcome = if rng.u8(..) < 90 { Outcome::Success } else { FAILURE };
        assert_eq!(alone.call(outcome), shared.call(outcome), "step {step}");
        assert_eq!(alone.state(), shared.state(), "step {step}");
        sleep(MS * rng.u32(..100)).await;
    }
    let transitions = alone.transitions.lock().unwrap();
    assert!(transitions.len() > 10, "{}", transitions.len());
    assert_eq!(*transitions, *shared.transitions.lock().unwrap());
    assert_eq!(shared.health(), StoreHealth::Degraded);
}

#[tokio::test(start_paused = true)]
async fn with_a_store_that_fails_a_circuit_is_as_if_it_were_alone() {
    as_if_alone(FAILS).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_store_that_hangs_a_circuit_is_as_if_it_were_alone() {
    as_if_alone(HANGS).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_is_told_what_it_has_missed() {
    let (store, a, b) = two(Mode::Shared).await;
    let mut health = a.sharing.as_ref().unwrap().health();
    store.trouble(HANGS);
    assert_eq!(*health.wait_for(|health| *health == StoreHealth::Degraded).await.unwrap(), StoreHealth::Degraded);
    a.fail(2);
    assert_eq!(a.state(), State::Open);
    store.trouble(0);
    health.wait_for(|health| *health == StoreHealth::Connected).await.unwrap();
    settled().await;
    assert_eq!((a.state(), b.state()), (State::Open, State::Open));
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_is_not_shared_any_more_probes_by_itself() {
    let (_store, mut a, _b) = two(Mode::Shared).await;
    a.fail(2);
    sleep(3 * SECOND).await;
    assert!(!a.call(Outcome::Success));
    a.sharing = None;
    sleep(MS).await;
    assert!(a.call(Outcome::Success));
}

#[tokio::test]
async fn bad_values_are_named() {
    let builder = || Sharing::builder(CircuitBreaker::new("x"), Arc::new(MemoryStore::default()));
    assert_eq!(builder().refresh(std::time::Duration::ZERO).start().unwrap_err().field(), "refresh");
    assert_eq!(builder().patience(std::time::Duration::ZERO).start().unwrap_err().field(), "patience");
    assert_eq!(builder().probes(0).start().unwrap_err().field(), "probes");
    assert_eq!(builder().lease(250 * MS).start().unwrap_err().field(), "lease");
    assert_eq!(builder().lease(std::time::Duration::MAX).start().unwrap_err().field(), "lease");
}

/// With real sockets and in real time. Polls until the expected states are reached.
#[cfg(feature = "gossip")]
#[tokio::test]
async fn instances_tell_each_other_over_udp() {
    use buttress::circuit_breaker::sharing::Gossip;
    let sockets = [
        tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    ];
    let addrs = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let mut node = 0;
    let [a, b] = sockets.map(|socket| {
        node += 1;
        let gossip = Gossip::builder().peers(addrs).round(20 * MS).on(socket);
        assert!(addrs.contains(&gossip.local_addr().unwrap()));
        Instance::new(node, Some((Arc::new(gossip), Mode::Shared)))
    });
    while (a.health(), b.health()) != (StoreHealth::Connected, StoreHealth::Connected) {
        sleep(MS).await;
    }
    a.fail(2);
    while b.state() != State::Open {
        sleep(MS).await;
    }
    assert_eq!(b.last_cause(), Some(Cause::Peer));
    // Both probe after the open time. The first success closes both.
    while (a.state(), b.state()) != (State::Closed, State::Closed) {
        b.call(Outcome::Success);
        sleep(MS).await;
    }
}

/// A store that can be emptied, as by a restart.
#[derive(Default)]
struct Forgetful(Mutex<Arc<MemoryStore>>);

impl Forgetful {
    fn inner(&self) -> Arc<MemoryStore> {
        self.0.lock().unwrap().clone()
    }
}

impl SharedState for Forgetful {
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>> {
        let inner = self.inner();
        Box::pin(async move { inner.read(name).await })
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>> {
        let inner = self.inner();
        Box::pin(async move { inner.write(name, expected, announcement).await })
    }

    fn lease_probe<'a>(
        &'a self,
        name: &'a str,
        expected: Stamp,
        lease: ProbeLease,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        let inner = self.inner();
        Box::pin(async move { inner.lease_probe(name, expected, lease).await })
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_whose_store_forgot_it_closes_all_the_same() {
    let store = Arc::new(Forgetful::default());
    let a = Instance::new(1, Some((store.clone(), Mode::Shared)));
    settled().await;
    a.fail(2);
    settled().await;
    assert_eq!(a.state(), State::Open);
    *store.0.lock().unwrap() = Arc::default();
    let mut admitted = 0;
    for _ in 0..600 {
        sleep(SECOND).await;
        admitted += u32::from(a.call(Outcome::Success));
    }
    assert_eq!(a.state(), State::Closed, "{admitted} calls of 600 were admitted");
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_an_operator_opened_here_for_a_time_closes_afterwards() {
    let (_, a, b) = two(Mode::Shared).await;
    for known in [false, true] {
        if known {
            // The store has an announcement now: closed.
            b.fail(2);
            settled().await;
            assert_eq!(closes(&a, &b).await, [State::Closed; 2]);
        }
        a.breaker.open_for(5 * SECOND);
        settled().await;
        assert_eq!(closes(&a, &b).await, [State::Closed; 2], "{known}");
    }
}

/// Returns the states after one minute of successful calls.
async fn closes(a: &Instance, b: &Instance) -> [State; 2] {
    for _ in 0..60 {
        sleep(SECOND).await;
        a.call(Outcome::Success);
        b.call(Outcome::Success);
    }
    [a.state(), b.state()]
}

/// Returns the last announcement in the store.
async fn announced(store: &Store) -> View {
    store.inner.read("payments").await.unwrap().expect("a circuit was announced")
}

#[tokio::test(start_paused = true)]
async fn an_announcement_has_the_numbers_and_the_node_that_opened_the_circuit() {
    let (store, a, b) = two(Mode::Advisory).await;
    a.fail(2);
    settled().await;
    let view = announced(&store).await;
    assert_eq!((view.stamp.node, view.failures, view.total), (1, 2, 2), "two failures in a row");
    a.breaker.reset();

    // Advice halves the minimum: 3 failures of 5 calls open the circuit.
    assert!([FAILURE, Outcome::Success, FAILURE, Outcome::Success].into_iter().all(|outcome| b.call(outcome)));
    assert!(b.call(FAILURE));
    settled().await;
    let view = announced(&store).await;
    assert_eq!((view.stamp.node, view.failures, view.total), (2, 3, 5), "a rate");

    let streaks = CircuitBreaker::new("payments");
    let _sharing = Sharing::builder(streaks.clone(), store.clone()).node(3).start().unwrap();
    settled().await;
    let call = |outcome| streaks.admit(&()).unwrap().settle(outcome);
    (0..15).for_each(|_| call(&Outcome::Success));
    call(&FAILURE);
    call(&Outcome::Success);
    let mut in_a_row = 0;
    while streaks.state() == State::Closed {
        call(&FAILURE);
        in_a_row += 1;
    }
    settled().await;
    let view = announced(&store).await;
    let expected = (3, in_a_row + 1, in_a_row + 17);
    assert_eq!((view.stamp.node, view.failures, view.total), expected, "a streak, and the calls around it");

    while streaks.admit(&()).map(|mut probe| probe.settle(&FAILURE)).is_err() {
        settled().await;
    }
    while streaks.state() == State::HalfOpen {
        assert!(streaks.admit(&()).map(|mut probe| probe.settle(&FAILURE)).is_ok());
    }
    settled().await;
    let view = announced(&store).await;
    assert_eq!((view.failures, view.total), (2, 2), "2 of 3 probes failed");

    while streaks.state() != State::Closed {
        let _ = streaks.admit(&()).map(|mut probe| probe.settle(&Outcome::Success));
        settled().await;
    }
    let view = announced(&store).await;
    assert_eq!((view.stamp.node, view.open, view.failures, view.total), (3, None, 0, 0), "closed");
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_is_overtaken_in_the_store_gives_way_to_the_first() {
    let (store, a, _b) = two(Mode::Shared).await;
    store.trouble(OVERTAKES);
    a.fail(2);
    let own = a.breaker.snapshot().retry_after.unwrap();
    assert!(own < 3 * SECOND);
    settled().await;
    let left = a.breaker.snapshot().retry_after.unwrap();
    assert!(left > 6 * SECOND, "the announcement of the other instance counts, which is open for {left:?}");
    store.trouble(0);
    settled().await;
    assert_eq!(announced(&store).await.stamp, Stamp { version: 1, node: 9 });
}

#[tokio::test(start_paused = true)]
async fn only_an_open_circuit_of_another_instance_makes_careful() {
    let (store, a, b) = two(Mode::Advisory).await;
    let is_careful = |instance: &Instance| {
        // 6 calls are below the minimum of 10 and above half of it.
        (0..3).for_each(|_| assert!(instance.call(Outcome::Success) && instance.call(FAILURE)));
        let is_open = instance.state() == State::Open;
        instance.breaker.reset();
        is_open
    };
    for (node, open, careful) in [(9, Some(60 * SECOND), true), (9, None, false), (2, Some(60 * SECOND), false)] {
        let last = store.inner.read("payments").await.unwrap().map(|view| view.stamp);
        let announcement = Announcement { node, open, failures: 1, total: 1 };
        store.inner.write("payments", last, announcement).await.unwrap();
        settled().await;
        assert_eq!(is_careful(&b), careful, "{announcement:?}");
    }
    drop(a);
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_lease_went_to_another_one_meanwhile_stops_probing() {
    let stores = [(); 2].map(|()| Store::default());
    let store = stores[0].inner.clone();
    let stores = stores.map(|other| Arc::new(Store { inner: store.clone(), ..other }));
    let [(a, _of_a), (b, _of_b)] =
        [(0, 1), (1, 2)].map(|(place, node)| shared(&stores[place], node, |builder| builder));
    settled().await;
    a.admit(&()).unwrap().settle(&FAILURE);
    sleep(2 * SECOND).await;
    assert!(a.admit(&()).is_err());
    settled().await;
    let _slow_probe = a.admit(&()).unwrap();
    stores[0].trouble(HANGS);
    sleep(6 * SECOND).await;
    assert!(b.admit(&()).is_err());
    settled().await;
    let _probe_of_b = b.admit(&()).unwrap();
    stores[0].trouble(0);
    sleep(2 * SECOND).await;
    assert_eq!((a.state(), b.state()), (State::Open, State::HalfOpen));
    assert!(a.admit(&()).is_err());
}

#[tokio::test(start_paused = true)]
async fn the_health_of_a_store_is_announced_when_it_changes_and_only_then() {
    let store = Arc::new(Store::default());
    let (_, sharing) = shared(&store, 1, |builder| builder);
    let mut health = sharing.health();
    for (trouble, expected) in
        [(0, StoreHealth::Connected), (FAILS, StoreHealth::Degraded), (0, StoreHealth::Connected)]
    {
        store.trouble(trouble);
        health.changed().await.unwrap();
        assert_eq!(*health.borrow_and_update(), expected);
        sleep(10 * SECOND).await;
        assert!(!health.has_changed().unwrap(), "{expected:?} was announced again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_for_the_last_announcement_and_ends_with_its_time() {
    let store = MemoryStore::default();
    let lease = ProbeLease { node: 1, time: 5 * SECOND, of: 1 };
    let other = ProbeLease { node: 2, ..lease };
    let opened = Announcement { node: 1, open: Some(SECOND), failures: 1, total: 1 };
    let none = Stamp { version: 1, node: 1 };
    assert!(!store.lease_probe("payments", none, lease).await.unwrap(), "nothing was announced");
    let Written::Accepted(first) = store.write("payments", None, opened).await.unwrap() else { panic!() };
    assert!(store.lease_probe("payments", first, lease).await.unwrap());
    sleep(5 * SECOND - MS).await;
    assert!(!store.lease_probe("payments", first, other).await.unwrap());
    sleep(MS).await;
    assert!(store.lease_probe("payments", first, other).await.unwrap(), "the lease has ended");
    let Written::Accepted(second) = store.write("payments", Some(first), opened).await.unwrap() else { panic!() };
    assert!(!store.lease_probe("payments", first, other).await.unwrap(), "the announcement is not the last");
    assert!(store.lease_probe("payments", second, lease).await.unwrap(), "an announcement ends all leases");
}

/// Returns a circuit that opens on the first failure, and its sharing as `set` changes it.
fn shared(
    store: &Arc<Store>,
    node: u64,
    set: impl FnOnce(SharingBuilder) -> SharingBuilder,
) -> (CircuitBreaker, Sharing) {
    let builder = CircuitBreaker::builder("payments").consecutive_failures(1).open_time(SECOND..=SECOND).probes(3);
    let breaker = builder.build().unwrap();
    let sharing = set(Sharing::builder(breaker.clone(), store.clone()).mode(Mode::Shared).node(node)).start().unwrap();
    (breaker, sharing)
}

#[tokio::test(start_paused = true)]
async fn a_store_is_read_once_in_each_refresh() {
    let store = Arc::new(Store::default());
    for (refresh, set) in [(250 * MS, None), (9 * SECOND, Some(9 * SECOND))] {
        let lease = 2 * refresh;
        let (breaker, _sharing) = shared(&store, 1, |builder| {
            match set {
                Some(time) => builder.refresh(time),
                None => builder,
            }
            .lease(lease)
        });
        sleep(MS).await;
        let opened = Announcement { node: 9, open: Some(60 * SECOND), failures: 1, total: 1 };
        let last = store.inner.read("payments").await.unwrap().map(|view| view.stamp);
        store.inner.write("payments", last, opened).await.unwrap();
        sleep(refresh - 2 * MS).await;
        assert_eq!(breaker.state(), State::Closed, "{refresh:?}");
        sleep(4 * MS).await;
        assert_eq!(breaker.state(), State::Open, "{refresh:?}");
        let closed = Announcement { open: None, ..opened };
        let last = store.inner.read("payments").await.unwrap().map(|view| view.stamp);
        store.inner.write("payments", last, closed).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_has_as_long_to_answer_as_its_patience() {
    for (patience, set) in [(SECOND, None), (7 * SECOND, Some(7 * SECOND))] {
        let store = Arc::new(Store::default());
        store.trouble(HANGS);
        let (_, sharing) = shared(&store, 1, |builder| match set {
            Some(time) => builder.patience(time),
            None => builder,
        });
        sleep(patience - 2 * MS).await;
        assert_eq!(*sharing.health().borrow(), StoreHealth::Unknown, "{patience:?}");
        sleep(4 * MS).await;
        assert_eq!(*sharing.health().borrow(), StoreHealth::Degraded, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_instances_probe_at_once_as_there_are_leases() {
    for (leases, expected) in [(None, 1), (Some(2), 2), (Some(3), 3)] {
        let store = Arc::new(Store::default());
        let instances = [1, 2, 3].map(|node| {
            shared(&store, node, |builder| match leases {
                Some(n) => builder.probes(n),
                None => builder,
            })
        });
        settled().await;
        instances[0].0.admit(&()).unwrap().settle(&FAILURE);
        sleep(2 * SECOND).await;
        // Their calls ask for a lease.
        assert!(instances.iter().all(|(breaker, _)| breaker.admit(&()).is_err()));
        settled().await;
        let probes: Vec<_> = instances.iter().filter_map(|(breaker, _)| breaker.admit(&()).ok()).collect();
        assert_eq!(probes.len(), expected, "{leases:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_lasts_as_long_as_it_is_set_and_a_slow_probe_renews_it() {
    for (lease, set) in [(5 * SECOND, None), (20 * SECOND, Some(20 * SECOND))] {
        let store = Arc::new(Store::default());
        let [(a, sharing), (b, _of_b)] = [1, 2].map(|node| {
            shared(&store, node, |builder| match set {
                Some(time) => builder.lease(time),
                None => builder,
            })
        });
        settled().await;
        a.admit(&()).unwrap().settle(&FAILURE);
        sleep(2 * SECOND).await;
        assert!(a.admit(&()).is_err());
        settled().await;
        let _slow_probe = a.admit(&()).unwrap();
        sleep(3 * lease).await;
        assert!(b.admit(&()).is_err(), "the lease of a slow probe is not renewed");
        settled().await;
        assert!(b.admit(&()).is_err());
        drop(sharing);
        sleep(lease / 2).await;
        assert!(b.admit(&()).is_err(), "a lease of {lease:?} is over after half of it");
        sleep(lease / 2 + SECOND).await;
        assert!(b.admit(&()).is_ok(), "a lease of {lease:?} is not over");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_early_enough_for_a_store_that_is_slow() {
    let store = Arc::new(Store::default());
    let (a, _of_a) = shared(&store, 1, |builder| builder.refresh(4900 * MS).lease(5 * SECOND));
    let (b, _of_b) = shared(&store, 2, |builder| builder.lease(5 * SECOND));
    settled().await;
    a.admit(&()).unwrap().settle(&FAILURE);
    sleep(2 * SECOND).await;
    while a.admit(&()).is_err() {
        sleep(100 * MS).await;
    }
    let _slow_probe = a.admit(&());
    store.trouble(IS_SLOW);
    for _ in 0..300 {
        sleep(100 * MS).await;
        assert!(b.admit(&()).is_err(), "another instance got the lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_longest_lease_and_a_shortest_one_are_accepted() {
    let store = Arc::new(Store::default());
    for lease in [251 * MS, 3600 * SECOND] {
        let start = Sharing::builder(CircuitBreaker::new("x"), store.clone()).lease(lease).start();
        assert!(start.is_ok(), "{lease:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sharing_advises_unless_another_mode_is_set() {
    let store = Arc::new(Store::default());
    let [a, b] = [1, 2].map(|_| CircuitBreaker::builder("payments").consecutive_failures(1).build().unwrap());
    // Without a number of their own: two instances must not take each other for themselves.
    let _sharing = [&a, &b].map(|breaker| Sharing::builder(breaker.clone(), store.clone()).start().unwrap());
    settled().await;
    a.admit(&()).unwrap().settle(&FAILURE);
    settled().await;
    assert_eq!((a.state(), b.state()), (State::Open, State::Closed));
    assert_ne!(announced(&store).await.stamp.node, 0);
}
