//! Members of a group on the embedded log: crashes, clocks, different topics, and a database that
//! is away.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{Delivery, EventBus, HandlerError, LogBus, Subscribe};
use buttress_durable::{Db, Inbox, args};
use futures_util::FutureExt;
use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tokio::sync::Notify;

use crate::support::{Backend, clock, close, event, eventually, execute, ints, on_both, pauses};

on_both!(
    an_event_that_kills_its_process_becomes_a_dead_letter,
    a_crash_counts_only_for_an_event_that_was_at_hand,
    members_with_different_topics_share_what_they_have,
    a_lease_of_a_clock_that_was_ahead_is_taken_over,
    a_member_that_has_gone_with_a_clock_that_was_ahead_has_no_share,
    a_pause_of_a_clock_that_was_ahead_is_over,
    an_event_that_no_member_has_seen_is_handled_whatever_the_attempts,
    a_member_with_a_short_lease_leaves_their_partitions_to_those_with_long_ones,
);

const TOPIC: &str = "OrderCreated";
const HOUR: Duration = Duration::from_secs(3_600);

fn group(topics: &[&str]) -> Subscribe {
    let subscribe = Subscribe::new("g", topics.iter().copied()).unwrap();
    subscribe.backoff(Backoff::constant(Duration::from_millis(1)))
}

async fn quick<D: Backend>(home: &D::Home) -> LogBus<D> {
    LogBus::new(D::connect(home).await).with_poll(Duration::from_millis(5)).with_lease(Duration::from_millis(300))
}

async fn an_event_that_kills_its_process_becomes_a_dead_letter<D: Backend>() {
    let home = D::create().await;
    let bus = quick::<D>(&home).await;
    bus.publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
    let attempts: Arc<Mutex<Vec<u32>>> = Arc::default();
    let subscribe = || group(&[TOPIC]).attempts(NonZeroU32::new(3).unwrap());
    for _ in 0..3 {
        let (seen, begun) = (attempts.clone(), Arc::new(Notify::new()));
        let tell = begun.clone();
        let kills = move |delivery: Delivery| {
            seen.lock().unwrap().push(delivery.attempt);
            tell.notify_one();
            std::future::pending::<Result<(), HandlerError>>()
        };
        let life = bus.subscribe(subscribe(), Arc::new(kills)).await.unwrap();
        begun.notified().await;
        // The process dies: nothing is given back.
        drop(life);
    }
    let seen = attempts.clone();
    let handler = move |delivery: Delivery| {
        seen.lock().unwrap().push(delivery.attempt);
        async { Ok(()) }
    };
    let life = bus.subscribe(subscribe(), Arc::new(handler)).await.unwrap();
    eventually("the event behind it", || async { attempts.lock().unwrap().len() == 4 }).await;
    life.shutdown().await;
    assert_eq!(*attempts.lock().unwrap(), [1, 2, 3, 1]);
    let letters = bus.dead_letters("g", TOPIC, 9).await.unwrap();
    let causes: Vec<_> = letters.iter().map(|letter| (letter.cause.attempts, letter.cause.error.as_str())).collect();
    assert_eq!(causes, [(3, "the process ended during the last attempt")]);
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn a_crash_counts_only_for_an_event_that_was_at_hand<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_secs(9));
    let idle = bus.subscribe(group(&[TOPIC]), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    let owned = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL";
    eventually("all partitions", || async { ints(&db, owned).await == [8] }).await;
    drop(idle);
    hand.advance(HOUR);
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let (seen, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |delivery: Delivery| {
        seen.send(delivery.attempt).unwrap();
        async { Ok(()) }
    };
    let member = bus.subscribe(group(&[TOPIC]), Arc::new(handler)).await.unwrap();
    assert_eq!(handled.recv().await, Some(1), "it was published after the crash");
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn members_with_different_topics_share_what_they_have<D: Backend>() {
    let home = D::create().await;
    let bus = quick::<D>(&home).await;
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let count = || {
        let seen = seen.clone();
        Arc::new(move |delivery: Delivery| {
            *seen.lock().unwrap().entry(delivery.topic).or_default() += 1;
            async { Ok(()) }
        })
    };
    // A rolling update: the new version has one more topic.
    let old = bus.subscribe(group(&["X"]), count()).await.unwrap();
    let new = bus.subscribe(group(&["X", "Y"]), count()).await.unwrap();
    let shares = "SELECT COUNT(*) AS n FROM buttress_group WHERE owner IS NOT NULL GROUP BY topic, owner ORDER BY n";
    eventually("shared by topic", || async { ints(bus.db(), shares).await == [4, 4, 8] }).await;
    for n in 0..80 {
        bus.publish(&[event("X", &format!("k{n}"), n), event("Y", &format!("k{n}"), n)]).await.unwrap();
    }
    let all = BTreeMap::from([("X".to_owned(), 80), ("Y".to_owned(), 80)]);
    eventually("both topics", || async { *seen.lock().unwrap() == all }).await;
    old.shutdown().await;
    new.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn a_lease_of_a_clock_that_was_ahead_is_taken_over<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_millis(100));
    let first = bus.subscribe(group(&[TOPIC]), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    first.shutdown().await;
    let mut tx = db.begin().await.unwrap();
    let ahead = "UPDATE buttress_group SET owner = 'gone', expires_at = $1";
    execute::<D>(&mut tx, ahead, &[hand.clock().now().plus(HOUR).into()]).await;
    tx.commit().await.unwrap();
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let handled = Arc::new(Notify::new());
    let tell = handled.clone();
    let handler = move |_: Delivery| {
        tell.notify_one();
        async { Ok(()) }
    };
    let member = bus.subscribe(group(&[TOPIC]), Arc::new(handler)).await.unwrap();
    handled.notified().await;
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_member_that_has_gone_with_a_clock_that_was_ahead_has_no_share<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_millis(100));
    let mut tx = db.begin().await.unwrap();
    let ahead = "INSERT INTO buttress_group_member (name, member, expires_at, topics) VALUES ('g', 'gone', $1, '')";
    execute::<D>(&mut tx, ahead, &[hand.clock().now().plus(HOUR).into()]).await;
    tx.commit().await.unwrap();
    let member = bus.subscribe(group(&[TOPIC]), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    let owned = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL";
    eventually("all partitions", || async { ints(&db, owned).await == [8] }).await;
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_pause_of_a_clock_that_was_ahead_is_over<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_millis(100));
    let subscribe = || bus.subscribe(group(&[TOPIC]), Arc::new(|_: Delivery| async { Ok(()) }));
    subscribe().await.unwrap().shutdown().await;
    let mut tx = db.begin().await.unwrap();
    execute::<D>(&mut tx, "UPDATE buttress_group SET retry_at = $1", &[hand.clock().now().plus(HOUR).into()]).await;
    tx.commit().await.unwrap();
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let member = subscribe().await.unwrap();
    let position = "SELECT CAST(SUM(position) AS BIGINT) FROM buttress_group";
    eventually("the event", || async { ints(&db, position).await == [1] }).await;
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn an_event_that_no_member_has_seen_is_handled_whatever_the_attempts<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_secs(9));
    let once = || group(&[TOPIC]).attempts(NonZeroU32::MIN);
    let idle = bus.subscribe(once(), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    let owned = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL";
    eventually("all partitions", || async { ints(&db, owned).await == [8] }).await;
    drop(idle);
    // The lease of the member that has gone has not ended.
    hand.advance(Duration::from_secs(1));
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    hand.advance(HOUR);
    let handled = Arc::new(AtomicU32::new(0));
    let count = handled.clone();
    let handler = move |_: Delivery| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    };
    let member = bus.subscribe(once(), Arc::new(handler)).await.unwrap();
    let position = "SELECT CAST(SUM(position) AS BIGINT) FROM buttress_group";
    eventually("the event", || async { ints(&db, position).await == [1] }).await;
    assert_eq!(handled.load(Ordering::SeqCst), 1, "{:?}", bus.dead_letters("g", TOPIC, 9).await);
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_member_with_a_short_lease_leaves_their_partitions_to_those_with_long_ones<D: Backend>() {
    let home = D::create().await;
    let with = async |lease| LogBus::new(D::connect(&home).await).with_lease(lease);
    let (slow, quick) = (with(HOUR).await, with(Duration::from_millis(60)).await);
    let ignore = || Arc::new(|_: Delivery| async { Ok(()) });
    let old = slow.subscribe(group(&[TOPIC]), ignore()).await.unwrap();
    let shares = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL GROUP BY owner";
    eventually("all partitions", || async { ints(slow.db(), shares).await == [8] }).await;
    let new = quick.subscribe(group(&[TOPIC]), ignore()).await.unwrap();
    eventually("shared", || async { ints(slow.db(), shares).await == [4, 4] }).await;
    let owners = "SELECT generation FROM buttress_group ORDER BY part";
    let before = ints(slow.db(), owners).await;
    let renewed = "SELECT MIN(expires_at) FROM buttress_group_member";
    let start = ints(slow.db(), renewed).await[0];
    // Many rounds of the short lease, and not one renewal of the long one.
    eventually("renewed again and again", || async { ints(slow.db(), renewed).await[0] > start + 1_000 }).await;
    assert_eq!(ints(slow.db(), owners).await, before);
    old.shutdown().await;
    new.shutdown().await;
    close(slow.db().clone()).await;
    close(quick.db().clone()).await;
    D::destroy(home).await;
}

#[tokio::test]
async fn a_member_renews_all_its_leases_with_one_statement_each_third_of_the_lease() {
    let lease = Duration::from_secs(9);
    let renewals = pauses("UPDATE buttress_group SET expires_at", async |db| {
        let bus = LogBus::new(db).with_lease(lease);
        let topics = ["A", "B", "C", "D", "E"];
        bus.subscribe(group(&topics), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap()
    });
    let renewals = renewals.await;
    // Together, because virtual time runs on while a statement waits for the database. A renewal of
    // each of the 40 partitions would make them a few milliseconds.
    assert!(renewals.iter().sum::<Duration>() >= 2 * lease / 3, "{renewals:?}");
}

/// Opens a file whose locks are not waited for.
async fn impatient(home: &<Sqlite as Backend>::Home) -> Db<Sqlite> {
    let path = Sqlite::address(home);
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_millis(1));
    Db::new(SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_whose_database_is_away_loses_no_event() {
    let (home, own) = (Sqlite::create().await, Sqlite::create().await);
    let (bus, parcels) = (quick::<Sqlite>(&home).await, Sqlite::connect(&own).await);
    let mut tx = parcels.begin().await.unwrap();
    tx.execute("CREATE TABLE parcels (order_id TEXT NOT NULL)", args![]).await.unwrap();
    tx.commit().await.unwrap();
    // Another process holds the write lock: each attempt of the consumer fails.
    let lock = parcels.begin().await.unwrap();
    let inbox = Inbox::new(impatient(&own).await, "shipping").handler(|tx, event| {
        async move {
            tx.execute("INSERT INTO parcels (order_id) VALUES ($1)", args![event.key()]).await?;
            Ok(())
        }
        .boxed()
    });
    let (inbox, tries) = (Arc::new(inbox), Arc::new(AtomicU32::new(0)));
    let count = tries.clone();
    let handler = move |delivery: Delivery| {
        use buttress_durable::bus::Handler;
        count.fetch_add(1, Ordering::SeqCst);
        let inbox = inbox.clone();
        async move { inbox.handle(delivery).await }
    };
    bus.publish(&[event(TOPIC, "order-7", 1), event(TOPIC, "order-7", 2)]).await.unwrap();
    let once = group(&[TOPIC]).attempts(NonZeroU32::MIN);
    let member = bus.subscribe(once, Arc::new(handler)).await.unwrap();
    eventually("it has failed", || async { tries.load(Ordering::SeqCst) >= 4 }).await;
    let lag = bus.lag("g").await.unwrap();
    let waiting: Vec<_> = lag.iter().filter(|lag| lag.waiting() > 0).collect();
    assert_eq!((waiting.len(), waiting[0].waiting(), waiting[0].attempts), (1, 2, 0), "{lag:?}");
    assert!(waiting[0].waiting_since.is_some());
    drop(lock);
    eventually("both parcels", || async { ints(&parcels, "SELECT COUNT(*) FROM parcels").await == [2] }).await;
    member.shutdown().await;
    assert!(bus.dead_letters("g", TOPIC, 9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_starts_while_the_logs_database_is_away() {
    let home = Sqlite::create().await;
    let db = Sqlite::connect(&home).await;
    LogBus::new(db.clone()).publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let lock = db.begin().await.unwrap();
    let handled = Arc::new(Notify::new());
    let tell = handled.clone();
    let handler = move |_: Delivery| {
        tell.notify_one();
        async { Ok(()) }
    };
    let bus = LogBus::new(impatient(&home).await);
    let member = bus.subscribe(group(&[TOPIC]), Arc::new(handler)).await.unwrap();
    eventually("it says so", || async { member.health().status().error.is_some() }).await;
    assert_eq!(member.health().status().last_success, None);
    drop(lock);
    handled.notified().await;
    eventually("it is well", || async { member.health().status().error.is_none() }).await;
    member.shutdown().await;
}
