use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_durable::bus::{BusError, EventBus, Handler, LogBus, Subscribe, Subscription};
use buttress_durable::outbox::Backlog;
use buttress_durable::{DomainEvent, Outbox};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::support::{Backend, Crash, clock, close, event, eventually, execute, ints, on_both, open, pauses, watched};

on_both!(
    an_event_is_published_only_if_its_transaction_commits,
    relays_side_by_side_keep_the_order_of_every_key,
    events_wait_while_the_bus_is_down,
    what_the_bus_refuses_is_parked_and_can_be_tried_again,
    a_crash_at_any_boundary_of_the_relay_loses_nothing_and_keeps_the_order,
    more_events_than_one_publication_holds_are_published_in_order,
    the_backlog_is_what_waits_and_what_is_parked,
    published_events_are_purged_by_age_and_no_others,
    what_cannot_be_decoded_is_parked_and_the_rest_is_published,
    a_relay_publishes_the_last_events_when_it_is_shut_down,
    a_topic_that_cannot_be_published_to_holds_back_only_itself,
    a_key_that_cannot_be_published_holds_back_only_its_own_events,
    a_relay_goes_on_after_a_panic_of_the_bus,
    a_relay_shuts_down_though_the_bus_never_answers,
    a_parked_event_can_be_discarded,
);

const TOPIC: &str = "OrderCreated";

/// A bus that records events, and rejects or fails on request. It outlives the test's simulated
/// processes.
#[derive(Clone, Debug, Default)]
struct Recorder {
    published: Arc<Mutex<Vec<DomainEvent>>>,
    refused: Arc<Mutex<Option<uuid::Uuid>>>,
    down: Arc<Mutex<bool>>,
    /// Topics that cannot be published to.
    dead_topics: Arc<Mutex<Vec<String>>>,
    crash: Option<Crash>,
}

impl Recorder {
    /// Returns the numbers of each key in the order of their first publication.
    fn first_seen(&self) -> BTreeMap<String, Vec<i64>> {
        let mut seen: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for event in &*self.published.lock().unwrap() {
            let numbers = seen.entry(event.key().to_owned()).or_default();
            let number = event.decode().unwrap();
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        seen
    }

    async fn take(&self, event: &DomainEvent) -> Result<(), BusError> {
        if *self.down.lock().unwrap() || self.dead_topics.lock().unwrap().iter().any(|topic| topic == event.topic()) {
            return Err(BusError::Unavailable("down".into()));
        }
        if *self.refused.lock().unwrap() == Some(event.event_id()) {
            return Err(BusError::Refused { event_id: event.event_id(), reason: "too large".to_owned() });
        }
        match &self.crash {
            Some(crash) => crash.boundary().await,
            None => tokio::task::yield_now().await,
        }
        self.published.lock().unwrap().push(event.clone());
        Ok(())
    }

    fn crashing(&self, crash: &Crash) -> Arc<dyn EventBus> {
        Arc::new(Self { crash: Some(crash.clone()), ..self.clone() })
    }
}

impl EventBus for Recorder {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        async move {
            let mut results = Vec::new();
            for event in events {
                results.push(self.take(event).await);
            }
            match &self.crash {
                Some(crash) => crash.boundary().await,
                None => tokio::task::yield_now().await,
            }
            results
        }
        .boxed()
    }

    fn subscribe(&self, _: Subscribe, _: Arc<dyn Handler>) -> BoxFuture<'_, Result<Subscription, BusError>> {
        async { Err(BusError::Unknown("subscription: this bus only remembers".to_owned())) }.boxed()
    }
}

async fn write<D: Backend>(outbox: &Outbox<D>, db: &buttress_durable::Db<D>, event: &DomainEvent) {
    let mut tx = db.begin().await.unwrap();
    outbox.append(&mut tx, event).await.unwrap();
    tx.commit().await.unwrap();
}

async fn an_event_is_published_only_if_its_transaction_commits<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    let mut tx = db.begin().await.unwrap();
    outbox.append(&mut tx, &event(TOPIC, "k", 1)).await.unwrap();
    drop(tx);
    let kept = event(TOPIC, "k", 2);
    write(&outbox, &db, &kept).await;
    write(&outbox, &db, &kept).await;
    assert_eq!(outbox.backlog().await.unwrap().unsent, 1);
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 1);
    assert_eq!(*bus.published.lock().unwrap(), [kept]);
    assert_eq!(outbox.backlog().await.unwrap().unsent, 0);
    assert_eq!(outbox.purge(db.clock().now().plus(Duration::from_secs(1))).await.unwrap(), 1);
    close(db).await;
    D::destroy(home).await;
}

/// Concurrent writers of the same keys, and four competing relays.
async fn relays_side_by_side_keep_the_order_of_every_key<D: Backend>() {
    const KEYS: i64 = 12;
    const EACH: i64 = 25;
    let home = D::create().await;
    let db = D::connect(&home).await;
    sqlx_counter::<D>(&db, KEYS).await;
    let outbox = Outbox::new(db.clone()).with_poll(Duration::from_millis(1));
    let bus = Recorder::default();
    let relays: Vec<_> = (0..4).map(|_| outbox.relay(Arc::new(bus.clone()))).collect();
    let writers = (0..4).map(|_| {
        let (db, outbox) = (db.clone(), outbox.clone());
        async move {
            for turn in 0..KEYS * EACH / 4 {
                let mut tx = db.begin().await.unwrap();
                let row = "UPDATE counters SET n = n + 1 WHERE key = $1 RETURNING n";
                let key = turn % KEYS;
                let rows = D::fetch(&mut tx, row, &[buttress_durable::db::Arg::Int(key)]).await.unwrap();
                let number = D::int(&rows[0], 0).unwrap();
                outbox.append(&mut tx, &event(TOPIC, &format!("key-{key}"), number)).await.unwrap();
                tx.commit().await.unwrap();
            }
        }
    });
    futures_util::future::join_all(writers).await;
    eventually("everything published", || async { outbox.backlog().await.unwrap().unsent == 0 }).await;
    for relay in relays {
        relay.shutdown().await;
    }
    let seen = bus.first_seen();
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), 300);
    assert_eq!(bus.published.lock().unwrap().len(), 300, "without a crash, no relay repeats another's work");
    for (key, numbers) in seen {
        assert!(numbers.iter().copied().eq(1..=numbers.len() as i64), "{key}: {numbers:?}");
    }
    close(db).await;
    D::destroy(home).await;
}

async fn sqlx_counter<D: Backend>(db: &buttress_durable::Db<D>, keys: i64) {
    let mut tx = db.begin().await.unwrap();
    D::execute(&mut tx, "CREATE TABLE counters (key BIGINT PRIMARY KEY, n BIGINT NOT NULL)", &[]).await.unwrap();
    for key in 0..keys {
        let sql = "INSERT INTO counters (key, n) VALUES ($1, 0)";
        D::execute(&mut tx, sql, &[buttress_durable::db::Arg::Int(key)]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn events_wait_while_the_bus_is_down<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()).with_poll(Duration::from_millis(1)), Recorder::default());
    *bus.down.lock().unwrap() = true;
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    assert!(matches!(outbox.relay_once(&dynamic).await, Err(BusError::Unavailable(_))));
    assert_eq!(outbox.backlog().await.unwrap().unsent, 1);
    let relay = outbox.relay(dynamic);
    *bus.down.lock().unwrap() = false;
    eventually("the event", || async { bus.published.lock().unwrap().len() == 1 }).await;
    relay.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn what_the_bus_refuses_is_parked_and_can_be_tried_again<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    let events = [event(TOPIC, "k", 1), event(TOPIC, "k", 2), event(TOPIC, "k", 3)];
    *bus.refused.lock().unwrap() = Some(events[1].event_id());
    for event in &events {
        write(&outbox, &db, event).await;
    }
    outbox.relay_once(&dynamic).await.unwrap();
    assert_eq!(bus.first_seen()["k"], [1, 3]);
    let parked = outbox.parked(10).await.unwrap();
    assert_eq!((parked.len(), parked[0].event_id, parked[0].reason.as_str()), (1, events[1].event_id(), "too large"));
    *bus.refused.lock().unwrap() = None;
    assert!(outbox.unpark(events[1].event_id()).await.unwrap());
    assert!(!outbox.unpark(events[0].event_id()).await.unwrap(), "only parked events");
    outbox.relay_once(&dynamic).await.unwrap();
    assert_eq!(bus.first_seen()["k"], [1, 3, 2]);
    close(db).await;
    D::destroy(home).await;
}

/// Writes and relays, crashed at the n-th boundary, for every n until it completes; then once more
/// without a crash.
async fn a_crash_at_any_boundary_of_the_relay_loses_nothing_and_keeps_the_order<D: Backend>() {
    let mut n = 0;
    loop {
        n += 1;
        let home = D::create().await;
        let hand = clock();
        let bus = Recorder::default();
        let first = relay_life::<D>(&home, hand.clock(), &bus, &Crash::at(n)).await;
        hand.advance(Duration::from_secs(60));
        let second = relay_life::<D>(&home, hand.clock(), &bus, &Crash::never()).await;
        assert!(second, "the second process gets through");

        let db = D::connect(&home).await;
        let committed = ints(&db, "SELECT COUNT(*) FROM buttress_outbox").await;
        let unsent = ints(&db, "SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL").await;
        let seen = bus.first_seen();
        let count = seen.values().map(Vec::len).sum::<usize>();
        assert_eq!((committed[0], unsent[0]), (i64::try_from(count).unwrap(), 0), "killed at boundary {n}: {seen:?}");
        assert!(seen.values().all(|numbers| numbers.is_sorted()), "killed at boundary {n}: {seen:?}");
        close(db).await;
        D::destroy(home).await;
        if first {
            break;
        }
    }
    assert!(n > 20, "only {n} boundaries: the faults do not reach the relay");
}

async fn relay_life<D: Backend>(home: &D::Home, clock: buttress_durable::Clock, bus: &Recorder, crash: &Crash) -> bool {
    let base = i64::from(bus.crash.is_none()) * clock.now().as_millis();
    let db = open::<D>(home, clock, crash).await;
    let life = async {
        let outbox = Outbox::new(db.clone());
        for n in 0..4 {
            let mut tx = db.begin().await.unwrap();
            outbox.append(&mut tx, &event(TOPIC, if n % 2 == 0 { "a" } else { "b" }, base + n)).await.unwrap();
            tx.commit().await.unwrap();
        }
        outbox.relay_once(&bus.crashing(crash)).await.unwrap();
    };
    let through = crash.live(life).await.is_some();
    close(db).await;
    through
}

/// No row is changed by both transactions, so that only the lock of the key makes row numbers
/// follow the commits.
#[tokio::test]
async fn on_postgres_a_key_waits_for_the_transaction_before() {
    if crate::support::server().is_none() {
        return;
    }
    let home = <sqlx::Postgres as Backend>::create().await;
    let db = <sqlx::Postgres as Backend>::connect(&home).await;
    let outbox = Outbox::new(db.clone());
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let mut first = db.begin().await.unwrap();
    outbox.append(&mut first, &event(TOPIC, "k", 1)).await.unwrap();
    write(&outbox, &db, &event(TOPIC, "another", 1)).await;
    let second = tokio::spawn({
        let (db, outbox, order) = (db.clone(), outbox.clone(), order.clone());
        async move {
            write(&outbox, &db, &event(TOPIC, "k", 2)).await;
            order.lock().unwrap().push("second");
        }
    });
    let waits = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("the second waits", || async { ints(&db, waits).await == [1] }).await;
    order.lock().unwrap().push("first");
    first.commit().await.unwrap();
    second.await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["first", "second"]);
    close(db).await;
    <sqlx::Postgres as Backend>::destroy(home).await;
}

/// With the embedded log as the bus, a republished event is stored once.
#[tokio::test]
async fn the_log_takes_a_republished_event_once() {
    let home = <sqlx::Sqlite as Backend>::create().await;
    let db = <sqlx::Sqlite as Backend>::connect(&home).await;
    let outbox = Outbox::new(db.clone());
    let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()));
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    outbox.relay_once(&bus).await.unwrap();
    // The state after a crash between publishing and marking.
    sqlx::query("UPDATE buttress_outbox SET sent_at = NULL").execute(db.pool()).await.unwrap();
    outbox.relay_once(&bus).await.unwrap();
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_log").await, [1]);
    close(db).await;
}

async fn more_events_than_one_publication_holds_are_published_in_order<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 0, "nothing to do");
    // Twice the largest publication, and one.
    let mut tx = db.begin().await.unwrap();
    for n in 0..257 {
        outbox.append(&mut tx, &event(TOPIC, "k", n)).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 257);
    assert!(bus.first_seen()["k"].iter().copied().eq(0..257));
    assert_eq!(bus.published.lock().unwrap().len(), 257, "once each");
    close(db).await;
    D::destroy(home).await;
}

async fn the_backlog_is_what_waits_and_what_is_parked<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    assert_eq!(outbox.backlog().await.unwrap(), Backlog::default());
    let events = [event(TOPIC, "a", 1), event(TOPIC, "b", 2)];
    for event in &events {
        *bus.refused.lock().unwrap() = Some(event.event_id());
        write(&outbox, &db, event).await;
        outbox.relay_once(&dynamic).await.unwrap();
    }
    let first = hand.clock().now();
    for n in 3..6 {
        write(&outbox, &db, &event(TOPIC, "a", n)).await;
        hand.advance(Duration::from_secs(1));
    }
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!((backlog.unsent, backlog.oldest, backlog.parked), (3, Some(first), 2));
    let ids =
        async |limit| -> Vec<_> { outbox.parked(limit).await.unwrap().iter().map(|parked| parked.event_id).collect() };
    assert_eq!(ids(9).await, events.each_ref().map(DomainEvent::event_id), "oldest first");
    assert_eq!(ids(1).await, [events[0].event_id()]);
    *bus.refused.lock().unwrap() = None;
    assert!(outbox.unpark(events[1].event_id()).await.unwrap());
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!((backlog.unsent, backlog.oldest, backlog.parked), (4, Some(first), 1));
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 4);
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!((backlog.unsent, backlog.oldest, backlog.parked), (0, None, 1));
    assert!(!outbox.unpark(events[1].event_id()).await.unwrap(), "it is published");
    close(db).await;
    D::destroy(home).await;
}

async fn published_events_are_purged_by_age_and_no_others<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    write(&outbox, &db, &event(TOPIC, "a", 1)).await;
    hand.advance(Duration::from_secs(1));
    outbox.relay_once(&dynamic).await.unwrap();
    let refused = event(TOPIC, "b", 2);
    *bus.refused.lock().unwrap() = Some(refused.event_id());
    write(&outbox, &db, &refused).await;
    outbox.relay_once(&dynamic).await.unwrap();
    write(&outbox, &db, &event(TOPIC, "c", 3)).await;
    let sent = hand.clock().now();
    assert_eq!(outbox.purge(sent).await.unwrap(), 0, "published at that very moment");
    assert_eq!(outbox.purge(sent.plus(Duration::from_millis(1))).await.unwrap(), 1);
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!((backlog.unsent, backlog.parked), (1, 1), "the others are kept at any age");
    close(db).await;
    D::destroy(home).await;
}

async fn what_cannot_be_decoded_is_parked_and_the_rest_is_published<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    let broken = event(TOPIC, "k", 1);
    write(&outbox, &db, &broken).await;
    let mut tx = db.begin().await.unwrap();
    let sql = "UPDATE buttress_outbox SET payload = $1";
    execute::<D>(&mut tx, sql, &[buttress_durable::db::Arg::Blob(b"no event")]).await;
    tx.commit().await.unwrap();
    write(&outbox, &db, &event(TOPIC, "k", 2)).await;
    outbox.relay_once(&dynamic).await.unwrap();
    assert_eq!(bus.first_seen()["k"], [2]);
    let parked = outbox.parked(9).await.unwrap();
    assert_eq!((parked.len(), parked[0].event_id, parked[0].event.as_ref()), (1, broken.event_id(), None));
    assert!(!parked[0].reason.is_empty());
    close(db).await;
    D::destroy(home).await;
}

/// Many more events than one publication holds, so that the stuck ones would fill it.
async fn a_topic_that_cannot_be_published_to_holds_back_only_itself<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()).with_poll(Duration::from_millis(5)), Recorder::default());
    bus.dead_topics.lock().unwrap().push("NoLeader".to_owned());
    let mut tx = db.begin().await.unwrap();
    for n in 0..300 {
        outbox.append(&mut tx, &event("NoLeader", &format!("k{}", n % 7), n)).await.unwrap();
        outbox.append(&mut tx, &event("Healthy", &format!("k{}", n % 7), n)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let relay = outbox.relay(Arc::new(bus.clone()));
    eventually("the healthy topic", || async { outbox.backlog().await.unwrap().unsent == 300 }).await;
    write(&outbox, &db, &event("Healthy", "later", 1)).await;
    eventually("also later events", || async { bus.published.lock().unwrap().len() == 301 }).await;
    eventually("its health says so", || async { relay.health().status().error.is_some() }).await;
    bus.dead_topics.lock().unwrap().clear();
    eventually("everything", || async { outbox.backlog().await.unwrap().unsent == 0 }).await;
    relay.shutdown().await;
    let published = bus.published.lock().unwrap().clone();
    assert_eq!(published.len(), 601, "each event once");
    for topic in ["NoLeader", "Healthy"] {
        for key in 0..7 {
            let of = published.iter().filter(|event| event.topic() == topic && event.key() == format!("k{key}"));
            let numbers: Vec<i64> = of.map(|event| event.decode().unwrap()).collect();
            assert!(numbers.is_sorted() && numbers.len() > 40, "{topic} {key}: {numbers:?}");
        }
    }
    close(db).await;
    D::destroy(home).await;
}

/// A bus over which one key cannot be published for a while, as if its partition had no leader.
#[derive(Clone, Debug, Default)]
struct DeadKey(Recorder, Arc<Mutex<bool>>);

impl EventBus for DeadKey {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        async move {
            let mut results = Vec::new();
            let mut stuck = false;
            for event in events {
                let dead = event.key() == "dead" && *self.1.lock().unwrap();
                results.push(match (dead, stuck) {
                    (true, false) => Err(BusError::Unavailable("no leader".into())),
                    (true, true) => Err(BusError::HeldBack),
                    (false, _) => self.0.take(event).await,
                });
                stuck |= dead;
            }
            results
        }
        .boxed()
    }

    fn subscribe(&self, _: Subscribe, _: Arc<dyn Handler>) -> BoxFuture<'_, Result<Subscription, BusError>> {
        async { Err(BusError::Unsupported("subscribe")) }.boxed()
    }
}

async fn a_key_that_cannot_be_published_holds_back_only_its_own_events<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()).with_poll(Duration::from_millis(5)), DeadKey::default());
    *bus.1.lock().unwrap() = true;
    let mut tx = db.begin().await.unwrap();
    for n in 0..1_000 {
        let key = if n % 2 == 0 { "dead".to_owned() } else { format!("k{}", n % 9) };
        outbox.append(&mut tx, &event(TOPIC, &key, n)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let relay = outbox.relay(Arc::new(bus.clone()));
    eventually("the other keys", || async { outbox.backlog().await.unwrap().unsent == 500 }).await;
    *bus.1.lock().unwrap() = false;
    eventually("everything", || async { outbox.backlog().await.unwrap().unsent == 0 }).await;
    relay.shutdown().await;
    assert_eq!(bus.0.published.lock().unwrap().len(), 1_000, "each event once");
    assert!(bus.0.first_seen().values().all(|numbers| numbers.is_sorted()));
    close(db).await;
    D::destroy(home).await;
}

/// A bus that fails in a way that is no error.
#[derive(Clone, Debug, Default)]
struct Broken {
    inner: Recorder,
    panics: Arc<Mutex<u32>>,
    hangs: bool,
}

impl EventBus for Broken {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        let panics = std::mem::take(&mut *self.panics.lock().unwrap());
        if panics > 0 {
            std::panic::resume_unwind(Box::new("a bug in the bus"));
        }
        if self.hangs { std::future::pending().boxed() } else { self.inner.publish_each(events) }
    }

    fn subscribe(&self, _: Subscribe, _: Arc<dyn Handler>) -> BoxFuture<'_, Result<Subscription, BusError>> {
        async { Err(BusError::Unsupported("subscribe")) }.boxed()
    }
}

async fn a_relay_goes_on_after_a_panic_of_the_bus<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Broken::default());
    *bus.panics.lock().unwrap() = 1;
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let relay = outbox.relay(Arc::new(bus.clone()));
    eventually("the event", || async { bus.inner.published.lock().unwrap().len() == 1 }).await;
    relay.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_relay_shuts_down_though_the_bus_never_answers<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let outbox = Outbox::new(db.clone());
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let relay = outbox.relay(Arc::new(Broken { hangs: true, ..Broken::default() }));
    tokio::time::timeout(Duration::from_secs(30), relay.shutdown()).await.expect("its promise is 5 s");
    // Another relay need not wait for a lease.
    let bus = Recorder::default();
    assert_eq!(outbox.relay_once(&(Arc::new(bus) as Arc<dyn EventBus>)).await.unwrap(), 1);
    close(db).await;
    D::destroy(home).await;
}

async fn a_parked_event_can_be_discarded<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (outbox, bus) = (Outbox::new(db.clone()), Recorder::default());
    let (kept, gone) = (event(TOPIC, "k", 1), event(TOPIC, "k", 2));
    *bus.refused.lock().unwrap() = Some(gone.event_id());
    write(&outbox, &db, &gone).await;
    write(&outbox, &db, &kept).await;
    assert!(!outbox.discard(gone.event_id()).await.unwrap(), "it is not parked yet");
    outbox.relay_once(&(Arc::new(bus) as Arc<dyn EventBus>)).await.unwrap();
    assert!(!outbox.discard(kept.event_id()).await.unwrap(), "it is published");
    assert!(outbox.discard(gone.event_id()).await.unwrap());
    assert_eq!(outbox.backlog().await.unwrap(), Backlog::default());
    close(db).await;
    D::destroy(home).await;
}

/// On SQLite one relay has the lease.
#[tokio::test]
async fn a_relay_that_cannot_reach_the_bus_makes_way_for_one_that_can() {
    let home = <sqlx::Sqlite as Backend>::create().await;
    let db = <sqlx::Sqlite as Backend>::connect(&home).await;
    // Longer than the test may take.
    let outbox = Outbox::new(db.clone()).with_lease(Duration::from_secs(3_600));
    let cut_off = Recorder::default();
    *cut_off.down.lock().unwrap() = true;
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let first = outbox.relay(Arc::new(cut_off));
    eventually("it has failed", || async { first.health().status().failures > 0 }).await;
    let healthy = Recorder::default();
    let second = outbox.relay(Arc::new(healthy.clone()));
    eventually("the event", || async { healthy.published.lock().unwrap().len() == 1 }).await;
    first.shutdown().await;
    second.shutdown().await;
    close(db).await;
}

async fn a_relay_publishes_the_last_events_when_it_is_shut_down<D: Backend>() {
    let home = D::create().await;
    let (db, mut looks) = watched(D::connect(&home).await, "SELECT DISTINCT");
    let bus = Recorder::default();
    // Neither polled nor woken.
    let outbox = Outbox::new(db.clone()).with_poll(Duration::from_secs(3_600));
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let relay = outbox.relay(Arc::new(bus.clone()));
    // It has found the first event, and then no more.
    looks.recv().await.unwrap();
    looks.recv().await.unwrap();
    assert_eq!(outbox.backlog().await.unwrap().unsent, 0);
    write(&outbox, &db, &event(TOPIC, "k", 2)).await;
    relay.shutdown().await;
    assert_eq!(bus.first_seen()["k"], [1, 2]);
    assert_eq!(outbox.backlog().await.unwrap().unsent, 0);
    close(db).await;
    D::destroy(home).await;
}

/// On SQLite one relay publishes, and the others stand by until its lease ends.
#[tokio::test]
async fn a_relay_that_hangs_is_replaced_when_its_lease_ends_and_marks_nothing_later() {
    const LEASE: Duration = Duration::from_secs(7);
    #[derive(Debug)]
    struct Hangs(tokio::sync::Notify, tokio::sync::Notify);
    impl EventBus for Hangs {
        fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
            async {
                self.0.notify_one();
                self.1.notified().await;
                events.iter().map(|_| Ok(())).collect()
            }
            .boxed()
        }

        fn subscribe(&self, _: Subscribe, _: Arc<dyn Handler>) -> BoxFuture<'_, Result<Subscription, BusError>> {
            async { Err(BusError::Unknown("subscription".to_owned())) }.boxed()
        }
    }
    let (home, hand) = (<sqlx::Sqlite as Backend>::create().await, clock());
    let db = <sqlx::Sqlite as Backend>::connect(&home).await.with_clock(hand.clock());
    let outbox = Outbox::new(db.clone()).with_lease(LEASE);
    write(&outbox, &db, &event(TOPIC, "k", 1)).await;
    let hangs = Arc::new(Hangs(tokio::sync::Notify::new(), tokio::sync::Notify::new()));
    let first = tokio::spawn({
        let (outbox, bus): (_, Arc<dyn EventBus>) = (outbox.clone(), hangs.clone());
        async move { outbox.relay_once(&bus).await.unwrap() }
    });
    hangs.0.notified().await;
    let ends = hand.clock().now().plus(LEASE).as_millis();
    assert_eq!(ints(&db, "SELECT expires_at FROM buttress_lease").await, [ends]);
    let bus = Recorder::default();
    let dynamic: Arc<dyn EventBus> = Arc::new(bus.clone());
    hand.advance(LEASE - Duration::from_millis(1));
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 0, "it stands by");
    hand.advance(Duration::from_millis(1));
    *bus.down.lock().unwrap() = true;
    assert!(outbox.relay_once(&dynamic).await.is_err(), "it has taken over");
    hangs.1.notify_one();
    assert_eq!(first.await.unwrap(), 0);
    assert_eq!(outbox.backlog().await.unwrap().unsent, 1, "the relay that was replaced marks nothing");
    *bus.down.lock().unwrap() = false;
    assert_eq!(outbox.relay_once(&dynamic).await.unwrap(), 1);
    close(db).await;
}

#[tokio::test]
async fn a_relay_looks_for_events_as_often_as_set() {
    let poll = Duration::from_secs(10);
    let looks =
        pauses("SELECT DISTINCT", async |db| Outbox::new(db).with_poll(poll).relay(Arc::new(Recorder::default())));
    assert!(looks.await.into_iter().all(|pause| pause >= poll));
}

#[tokio::test]
async fn a_relay_that_cannot_read_its_database_pauses_longer_each_time_also_while_a_key_waits() {
    let queries = pauses("SELECT DISTINCT", async |db| {
        let (outbox, bus) = (Outbox::new(db.clone()), DeadKey::default());
        *bus.1.lock().unwrap() = true;
        for key in ["alive", "dead"] {
            write(&outbox, &db, &event(TOPIC, key, 1)).await;
        }
        let relay = outbox.relay(Arc::new(bus));
        while ints(&db, "SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL").await != [1] {
            tokio::task::yield_now().await;
        }
        let mut tx = db.begin().await.unwrap();
        tx.execute("ALTER TABLE buttress_outbox RENAME TO gone", buttress_durable::args![]).await.unwrap();
        tx.commit().await.unwrap();
        relay
    });
    // 50 to 100 ms after the first failure, then twice as long each time.
    let queries = queries.await;
    assert!(queries[2] >= Duration::from_millis(200), "{queries:?}");
}
