use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{Delivery, EventBus, HandlerError, LogBus, Start, Subscribe};
use buttress_durable::db::Arg;
use buttress_durable::{Inbox, Timestamp};
use futures_util::FutureExt;

use crate::support::{Backend, Crash, clock, close, event, eventually, execute, ints, on_both, open};

on_both!(
    a_group_handles_each_event_once_and_in_order_per_key,
    an_event_published_twice_is_appended_once,
    concurrent_publishers_leave_no_gap,
    a_handler_that_fails_or_panics_is_never_acknowledged,
    what_cannot_be_handled_becomes_a_dead_letter_and_can_be_sent_back,
    a_stale_owner_commits_nothing,
    a_new_group_may_begin_with_the_latest,
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

async fn a_group_handles_each_event_once_and_in_order_per_key<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let seen: Arc<Mutex<BTreeMap<String, Vec<i64>>>> = Arc::default();
    let handler = {
        let seen = seen.clone();
        move |delivery: Delivery| {
            let seen = seen.clone();
            async move {
                let key = delivery.event.key().to_owned();
                seen.lock().unwrap().entry(key).or_default().push(number(&delivery));
                Ok(())
            }
        }
    };
    let first = bus.subscribe(quick("g"), Arc::new(handler.clone())).await.unwrap();
    let events: Vec<_> = (0..100).map(|n| event(TOPIC, &format!("key-{}", n % 10), n)).collect();
    let (early, late) = events.split_at(50);
    bus.publish(early).await.unwrap();
    let second = bus.subscribe(quick("g"), Arc::new(handler.clone())).await.unwrap();
    let third = bus.subscribe(quick("g"), Arc::new(handler)).await.unwrap();
    bus.publish(late).await.unwrap();
    eventually("a hundred events", || async { seen.lock().unwrap().values().map(Vec::len).sum::<usize>() == 100 })
        .await;
    for member in [first, second, third] {
        member.shutdown().await;
    }
    for (key, numbers) in &*seen.lock().unwrap() {
        assert!(numbers.is_sorted() && numbers.len() == 10, "{key}: {numbers:?}");
    }
    assert!(ints(bus.db(), "SELECT COUNT(*) FROM buttress_group_member").await == [0], "all have signed off");
    close(bus.db().clone()).await;
    D::destroy(home).await;
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

async fn a_handler_that_fails_or_panics_is_never_acknowledged<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let calls = Arc::new(AtomicU32::new(0));
    let handled: Arc<Mutex<Vec<(i64, u32)>>> = Arc::default();
    let handler = {
        let (calls, handled) = (calls.clone(), handled.clone());
        move |delivery: Delivery| {
            let (calls, handled) = (calls.clone(), handled.clone());
            async move {
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(HandlerError::retry("not yet")),
                    1 => std::panic::resume_unwind(Box::new("a bug")),
                    2 => std::future::pending().await,
                    _ => {
                        handled.lock().unwrap().push((number(&delivery), delivery.attempt));
                        Ok(())
                    }
                }
            }
        }
    };
    bus.publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
    let subscribe = quick("g").timeout(Duration::from_millis(50));
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    eventually("both events", || async { handled.lock().unwrap().len() == 2 }).await;
    assert_eq!(*handled.lock().unwrap(), [(1, 4), (2, 1)], "the second waits for the first");
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn what_cannot_be_handled_becomes_a_dead_letter_and_can_be_sent_back<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let broken = Arc::new(AtomicU32::new(1));
    let handled: Arc<Mutex<Vec<i64>>> = Arc::default();
    let handler = {
        let (broken, handled) = (broken.clone(), handled.clone());
        move |delivery: Delivery| {
            let (broken, handled) = (broken.clone(), handled.clone());
            async move {
                let number = number(&delivery);
                if broken.load(Ordering::SeqCst) == 1 && number < 3 {
                    let error = format!("cannot do {number}");
                    return Err(if number == 1 { HandlerError::retry(error) } else { HandlerError::reject(error) });
                }
                handled.lock().unwrap().push(number);
                Ok(())
            }
        }
    };
    let events = [event(TOPIC, "k", 1), event(TOPIC, "k", 2), event(TOPIC, "k", 3)];
    bus.publish(&events).await.unwrap();
    let subscribe = quick("g").attempts(NonZeroU32::new(3).unwrap());
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    eventually("the third event", || async { *handled.lock().unwrap() == [3] }).await;
    let letters = bus.dead_letters("g", TOPIC, 10).await.unwrap();
    let tries: Vec<_> = letters.iter().map(|letter| (letter.cause.attempts, letter.cause.error.as_str())).collect();
    assert_eq!(tries, [(3, "cannot do 1"), (1, "cannot do 2")]);
    assert_eq!(letters[0].event.as_ref(), Some(&events[0]));

    // Sent back while it still fails, it is another letter; sent back again when the handler is mended, it is handled.
    let first = &letters[0];
    bus.redrive("g", TOPIC, first.partition, first.offset).await.unwrap();
    eventually("the third letter", || async { bus.dead_letters("g", TOPIC, 10).await.unwrap().len() == 3 }).await;
    broken.store(0, Ordering::SeqCst);
    let letters = bus.dead_letters("g", TOPIC, 10).await.unwrap();
    for letter in [&letters[2], &letters[2], &letters[1]] {
        bus.redrive("g", TOPIC, letter.partition, letter.offset).await.unwrap();
    }
    eventually("all three", || async { *handled.lock().unwrap() == [3, 1, 2] }).await;
    assert!(bus.redrive("g", TOPIC, 0, 99).await.is_err(), "there is no such letter");
    member.shutdown().await;
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
    // A process of its own, as far as its timers go: the handler blocks its only thread, so nothing in it runs.
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
                            // Not while another partition is in the middle of a transaction: asleep with the one writer's
                            // turn of SQLite in its hand, it would hold up everybody, which is another story.
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

async fn a_new_group_may_begin_with_the_latest<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let seen: Arc<Mutex<Vec<i64>>> = Arc::default();
    let handler = {
        let seen = seen.clone();
        move |delivery: Delivery| {
            seen.lock().unwrap().push(number(&delivery));
            async { Ok(()) }
        }
    };
    let member = bus.subscribe(quick("g").start(Start::Latest), Arc::new(handler)).await.unwrap();
    bus.publish(&[event(TOPIC, "k", 2)]).await.unwrap();
    eventually("the later event", || async { *seen.lock().unwrap() == [2] }).await;
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn only_what_every_group_has_handled_is_trimmed<D: Backend>() {
    let home = D::create().await;
    let bus = bus::<D>(&home).await;
    let future = bus.db().clock().now().plus(Duration::from_secs(60));
    bus.publish(&[event(TOPIC, "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
    assert_eq!(bus.trim(TOPIC, future).await.unwrap(), 0, "somebody may still come for it");
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

/// One consumer that does its work through the inbox, killed at the n-th boundary, for every n until it gets through.
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
