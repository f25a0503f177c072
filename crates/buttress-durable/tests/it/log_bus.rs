//! Tests of the embedded log only.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{Delivery, EventBus, HandlerError, LogBus, Subscribe};
use buttress_durable::db::Arg;
use buttress_durable::{Inbox, Timestamp};
use futures_util::FutureExt;

use crate::support::{Backend, Crash, clock, close, event, eventually, execute, ints, on_both, open};

on_both!(
    an_event_published_twice_is_appended_once,
    concurrent_publishers_leave_no_gap,
    a_stale_owner_commits_nothing,
    only_what_every_group_has_handled_is_trimmed,
    a_crash_at_any_boundary_of_a_consumer_loses_and_doubles_nothing,
);

const TOPIC: &str = "OrderCreated";

fn quick(group: &str) -> Subscribe {
    Subscribe::new(group, [TOPIC]).unwrap().backoff(Backoff::constant(Duration::from_millis(1)))
}

async fn bus<D: Backend>(home: &D::Home) -> LogBus<D> {
    LogBus::new(D::connect(home).await).with_poll(Duration::from_millis(5)).with_lease(Duration::from_secs(1))
}

fn number(delivery: &Delivery) -> i64 {
    delivery.event.decode().unwrap()
}

async fn an_event_published_twice_is_appended_once<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let (a, b) = (event(TOPIC, "k", 1), event(TOPIC, "k", 2));
    bus.publish(&[a.clone(), b.clone()]).await.unwrap();
    bus.publish(&[b, a.clone(), event(TOPIC, "k", 3), a]).await.unwrap();
    assert_eq!(ints(bus.db(), "SELECT position FROM buttress_log ORDER BY position").await, [0, 1, 2]);
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn concurrent_publishers_leave_no_gap<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let publishers = (0..8).map(|publisher| {
        let bus = bus.clone();
        async move {
            for n in 0..10 {
                let keys = ["a", "b", "c"].map(|key| event(TOPIC, key, publisher * 100 + n));
                bus.publish(&keys).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(publishers).await;
    let gaps =
        "SELECT COUNT(*) FROM (SELECT part, COUNT(*) AS n, MAX(position) AS top FROM buttress_log GROUP BY part) p
                WHERE n <> top + 1";
    assert_eq!(ints(bus.db(), gaps).await, [0]);
    assert_eq!(ints(bus.db(), "SELECT COUNT(*) FROM buttress_log").await, [240]);
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn a_stale_owner_commits_nothing<D: Backend>() {
    let home = D::create().await;
    let hand = clock();
    let long = Duration::from_secs(60);
    let bus = LogBus::new(D::connect(&home).await.with_clock(hand.clock())).with_lease(long);
    bus.publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2), event(TOPIC, "k", 3)]).await.unwrap();
    let home = Arc::new(home);
    let (entered, mut enters) = tokio::sync::mpsc::channel(9);
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    // A separate runtime, whose only thread the handler blocks, so that none of its timers fire.
    let stale = std::thread::spawn({
        let (home, clock) = (home.clone(), hand.clock());
        move || {
            let asleep = Mutex::new(asleep);
            let process = async move {
                let bus = LogBus::new(D::connect(&home).await.with_clock(clock)).with_lease(long);
                let left = Arc::new(tokio::sync::Notify::new());
                let asleep = Arc::new(asleep);
                let handler = {
                    let (left, pool) = (left.clone(), bus.db().pool().clone());
                    move |delivery: Delivery| {
                        let (left, pool, entered, asleep) =
                            (left.clone(), pool.clone(), entered.clone(), asleep.clone());
                        async move {
                            // Wait until no other partition is in a transaction: blocked while it
                            // holds SQLite's write lock, it would block all other members too,
                            // which this test is not about.
                            while pool.num_idle() < pool.size() as usize {
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                            entered.try_send(number(&delivery)).unwrap();
                            asleep.lock().unwrap().recv().unwrap();
                            left.notify_one();
                            Ok(())
                        }
                    }
                };
                let member = bus.subscribe(quick("g"), Arc::new(handler)).await.unwrap();
                left.notified().await;
                member.shutdown().await;
                close(bus.db().clone()).await;
            };
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(process);
        }
    });
    assert_eq!(enters.recv().await, Some(1));
    hand.advance(2 * long);
    let member = bus.subscribe(quick("g"), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    let committed = "SELECT MAX(position) FROM buttress_group";
    eventually("the second member's commits", || async { ints(bus.db(), committed).await == [3] }).await;
    wake.send(()).unwrap();
    tokio::task::spawn_blocking(move || stale.join().unwrap()).await.unwrap();
    assert_eq!(ints(bus.db(), committed).await, [3], "the late commit of position 1 touched nothing");
    assert_eq!(enters.recv().await, None, "and the stale member went no further");
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(Arc::into_inner(home).unwrap()).await;
}

async fn only_what_every_group_has_handled_is_trimmed<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let future = bus.db().clock().now().plus(Duration::from_secs(60));
    bus.publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
    assert_eq!(bus.trim(TOPIC, future).await.unwrap(), 0, "a topic without groups is kept");
    let ok = |_: Delivery| async { Ok(()) };
    let member = bus.subscribe(quick("g"), Arc::new(ok)).await.unwrap();
    let committed = "SELECT MAX(position) FROM buttress_group WHERE name = 'g'";
    eventually("both handled", || async { ints(bus.db(), committed).await == [2] }).await;
    let slow = |_: Delivery| async { Err(HandlerError::retry("later")) };
    let slow = bus.subscribe(quick("h").backoff(Backoff::constant(Duration::from_secs(60))), Arc::new(slow)).await;
    assert_eq!(bus.trim(TOPIC, future).await.unwrap(), 0, "the other group has not handled it");
    drop(slow);
    let mut conn = bus.db().pool().acquire().await.unwrap();
    execute::<D>(&mut conn, "DELETE FROM buttress_group WHERE name = $1", &[Arg::Text("h")]).await;
    drop(conn);
    assert_eq!(bus.trim(TOPIC, Timestamp::default()).await.unwrap(), 0, "it is too young");
    assert_eq!(bus.trim(TOPIC, future).await.unwrap(), 2);
    bus.publish(&[event(TOPIC, "k", 3)]).await.unwrap();
    assert_eq!(ints(bus.db(), "SELECT position FROM buttress_log").await, [2], "positions are never used again");
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

/// A consumer that works through the inbox, crashed at the n-th boundary, for every n until it
/// completes.
async fn a_crash_at_any_boundary_of_a_consumer_loses_and_doubles_nothing<D: Backend>() {
    let mut n = 0;
    loop {
        n += 1;
        let home = D::create().await;
        let hand = clock();
        let db = open::<D>(&home, hand.clock(), &Crash::never()).await;
        let mut conn = db.pool().acquire().await.unwrap();
        execute::<D>(&mut conn, "CREATE TABLE effects (seq BIGINT, number BIGINT)", &[]).await;
        drop(conn);
        LogBus::new(db.clone()).publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
        close(db).await;

        let through = consumer_life::<D>(&home, hand.clock(), &Crash::at(n)).await;
        hand.advance(Duration::from_secs(60));
        if !through {
            assert!(consumer_life::<D>(&home, hand.clock(), &Crash::never()).await);
        }
        let db = D::connect(&home).await;
        assert_eq!(ints(&db, "SELECT number FROM effects ORDER BY seq").await, [1, 2], "killed at boundary {n}");
        close(db).await;
        D::destroy(home).await;
        if through {
            break;
        }
    }
    assert!(n > 20, "only {n} boundaries: the faults do not reach the consumer");
}

async fn consumer_life<D: Backend>(home: &D::Home, clock: buttress_durable::Clock, crash: &Crash) -> bool {
    let db = open::<D>(home, clock, crash).await;
    let life = async {
        let handler = Inbox::new(db.clone(), "g").handler(|tx, event| {
            let number = event.decode::<i64>();
            async move {
                let sql = "INSERT INTO effects (seq, number) VALUES ((SELECT COUNT(*) FROM effects), $1)";
                D::execute(&mut **tx, sql, &[Arg::Int(number?)]).await?;
                Ok(())
            }
            .boxed()
        });
        let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(2));
        let member = bus.subscribe(quick("g"), Arc::new(handler)).await.unwrap();
        let committed = "SELECT MAX(position) FROM buttress_group";
        eventually("both handled", || async { ints(&db, committed).await == [2] }).await;
        member.shutdown().await;
    };
    let through = crash.live(life).await.is_some();
    close(db).await;
    through
}
