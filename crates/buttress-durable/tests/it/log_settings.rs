//! Every setting of the embedded log, how members share partitions, and what a dead letter says.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{DeadLetter, Delivery, EventBus, HandlerError, LogBus, Subscribe};
use buttress_durable::db::Arg;
use buttress_durable::{Db, Timestamp};
use tokio::sync::{Semaphore, mpsc};

use crate::support::{Backend, clock, close, event, eventually, execute, ints, on_both, pauses};

on_both!(
    a_lease_lasts_as_long_as_set_and_is_renewed_during_a_handler,
    a_handler_whose_partition_was_taken_over_is_dropped,
    partitions_are_shared_evenly_and_a_member_that_left_has_none,
    a_failed_attempt_waits_for_its_pause,
    a_dead_letter_says_where_why_and_when,
    a_dead_letter_and_its_return_wait_for_no_poll,
    records_are_trimmed_by_age_and_by_topic,
    an_empty_publication_stores_nothing,
);

const TOPIC: &str = "OrderCreated";
const LEASE: Duration = Duration::from_millis(60);
const HOUR: Duration = Duration::from_secs(3_600);

fn group(name: &str) -> Subscribe {
    Subscribe::new(name, [TOPIC]).unwrap().backoff(Backoff::constant(Duration::from_millis(1)))
}

/// Columns of the partition that holds the only event.
async fn one<D: Backend>(db: &Db<D>, sql: &'static str) -> Timestamp {
    Timestamp::from_millis(ints(db, sql).await[0])
}

const EXPIRES: &str = "SELECT expires_at FROM buttress_group WHERE part = (SELECT part FROM buttress_log_head)";

async fn a_lease_lasts_as_long_as_set_and_is_renewed_during_a_handler<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_lease(LEASE);
    let (gate, (entered, mut enters)) = (Arc::new(Semaphore::new(0)), mpsc::channel(9));
    let handler = {
        let gate = gate.clone();
        move |delivery: Delivery| {
            let (gate, entered) = (gate.clone(), entered.clone());
            async move {
                entered.send(delivery.attempt).await?;
                gate.acquire().await?.forget();
                Ok(())
            }
        }
    };
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let member = bus.subscribe(group("g"), Arc::new(handler)).await.unwrap();
    assert_eq!(enters.recv().await, Some(1));
    assert_eq!(one(&db, EXPIRES).await, hand.clock().now().plus(LEASE));
    for _ in 0..3 {
        hand.advance(LEASE);
        eventually("renewed", || async { one(&db, EXPIRES).await == hand.clock().now().plus(LEASE) }).await;
    }
    gate.add_permits(1);
    eventually("handled", || async { ints(&db, "SELECT MAX(position) FROM buttress_group").await == [1] }).await;
    member.shutdown().await;
    assert_eq!(one(&db, EXPIRES).await, Timestamp::default(), "given back");
    assert!(enters.try_recv().is_err(), "handled once");
    close(db).await;
    D::destroy(home).await;
}

struct Working(Arc<AtomicU32>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn a_handler_whose_partition_was_taken_over_is_dropped<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_lease(LEASE);
    let working = Arc::new(AtomicU32::new(0));
    let hangs = {
        let working = working.clone();
        move |_: Delivery| {
            working.fetch_add(1, Ordering::SeqCst);
            let working = Working(working.clone());
            async move {
                let _working = working;
                std::future::pending().await
            }
        }
    };
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let member = bus.subscribe(group("g"), Arc::new(hangs)).await.unwrap();
    eventually("at work", || async { working.load(Ordering::SeqCst) == 1 }).await;
    let mut tx = db.begin().await.unwrap();
    let taken = "UPDATE buttress_group SET owner = 'other', generation = generation + 1, expires_at = $1";
    execute::<D>(&mut tx, taken, &[hand.clock().now().plus(LEASE).into()]).await;
    tx.commit().await.unwrap();
    eventually("dropped", || async { working.load(Ordering::SeqCst) == 0 }).await;
    member.shutdown().await;
    assert_eq!(one(&db, EXPIRES).await, hand.clock().now().plus(LEASE), "the other one's lease is untouched");
    close(db).await;
    D::destroy(home).await;
}

async fn partitions_are_shared_evenly_and_a_member_that_left_has_none<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    // A member looks for partitions after a third of the lease, and within a second.
    let bus = LogBus::new(db.clone()).with_lease(Duration::from_millis(900));
    let join = async || bus.subscribe(group("g"), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    let shares = async || {
        let sql = "SELECT COUNT(*) AS n FROM buttress_group g JOIN buttress_group_member m ON m.member = g.owner
                   GROUP BY g.owner ORDER BY n";
        ints(&db, sql).await
    };
    let first = join().await;
    eventually("all for one", || async { shares().await == [8] }).await;
    let second = join().await;
    eventually("half for each", || async { shares().await == [4, 4] }).await;
    let third = join().await;
    eventually("a third for each", || async { shares().await == [2, 3, 3] }).await;
    first.shutdown().await;
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_group_member").await, [2]);
    // As if its process had crashed: it is counted until its lease ends.
    drop(second);
    eventually("all for the last", || async { shares().await == [8] }).await;
    third.shutdown().await;
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_group_member").await, [0]);

    // Nothing has to expire: a member that was shut down makes way at once.
    let patient = LogBus::new(db.clone()).with_lease(HOUR);
    let (seen, mut handled) = mpsc::channel(99);
    for round in 0..2 {
        let seen = seen.clone();
        let handler = move |delivery: Delivery| {
            let seen = seen.clone();
            async move { Ok(seen.send(delivery.event.decode::<i64>()?).await?) }
        };
        let member = patient.subscribe(group("g"), Arc::new(handler)).await.unwrap();
        let events: Vec<_> = (0..16).map(|n| event(TOPIC, &n.to_string(), round * 16 + n)).collect();
        patient.publish(&events).await.unwrap();
        for _ in 0..16 {
            assert!(handled.recv().await.unwrap() >= round * 16);
        }
        member.shutdown().await;
    }
    close(db).await;
    D::destroy(home).await;
}

async fn a_failed_attempt_waits_for_its_pause<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone()).with_lease(Duration::from_millis(30));
    let (tried, mut tries) = mpsc::channel(9);
    let fails = move |delivery: Delivery| {
        let tried = tried.clone();
        async move {
            tried.send(delivery.attempt).await?;
            Err::<(), _>(HandlerError::retry("later"))
        }
    };
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    let backoff = Backoff::exponential(Duration::from_secs(10), HOUR);
    let subscribe = group("g").backoff(backoff).attempts(NonZeroU32::new(3).unwrap());
    let member = bus.subscribe(subscribe, Arc::new(fails)).await.unwrap();
    let retry_at = "SELECT retry_at FROM buttress_group WHERE part = (SELECT part FROM buttress_log_head)";
    for (attempt, pause) in [(1, 10), (2, 20)] {
        let due = hand.clock().now().plus(Duration::from_secs(pause));
        assert_eq!(tries.recv().await, Some(attempt));
        eventually("the pause is written", || async { one(&db, retry_at).await == due }).await;
        hand.advance(Duration::from_secs(pause));
    }
    assert_eq!(tries.recv().await, Some(3));
    let dead = "SELECT COUNT(*) FROM buttress_log WHERE topic = 'dead.g.OrderCreated'";
    eventually("a dead letter", || async { ints(&db, dead).await == [1] }).await;
    let after = "SELECT COUNT(*) FROM buttress_group WHERE position = 1 AND attempts = 0 AND retry_at = 0";
    assert_eq!(ints(&db, after).await, [1], "the next record begins anew");
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_dead_letter_says_where_why_and_when<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let bus = LogBus::new(D::connect(&home).await.with_clock(hand.clock()));
    let rejects = |_: Delivery| async { Err::<(), _>(HandlerError::reject("no such customer")) };
    let member = bus.subscribe(group("g"), Arc::new(rejects)).await.unwrap();
    // The first two are in a later partition than the third.
    let events = [event(TOPIC, "j", 1), event(TOPIC, "j", 2), event(TOPIC, "k", 3)];
    let topic = DeadLetter::topic_of("g", TOPIC);
    for (count, event) in events.iter().enumerate() {
        bus.publish(std::slice::from_ref(event)).await.unwrap();
        let letters = || async { bus.dead_letters("g", TOPIC, 9).await.unwrap() };
        eventually("a letter", || async { letters().await.len() == count + 1 }).await;
        hand.advance(Duration::from_secs(1));
    }
    member.shutdown().await;
    let letters = bus.dead_letters("g", TOPIC, 9).await.unwrap();
    assert!(letters[0].partition > letters[2].partition);
    let first = hand.clock().now().minus(Duration::from_secs(3));
    for (n, (letter, event)) in letters.iter().zip(&events).enumerate() {
        let cause = &letter.cause;
        assert_eq!(letter.event.as_ref(), Some(event), "oldest first");
        assert_eq!((cause.group.as_str(), cause.topic.as_str(), cause.attempts), ("g", TOPIC, 1));
        assert_eq!((cause.partition, letter.partition), (letters[n].partition, cause.partition));
        assert_eq!((cause.offset, letter.offset), ([0, 1, 0][n], [0, 1, 0][n]));
        assert_eq!(cause.error, "no such customer");
        assert_eq!(cause.failed_at, first.plus(Duration::from_secs(n as u64)));
    }
    assert_eq!(bus.dead_letters("g", TOPIC, 2).await.unwrap().len(), 2);
    assert!(bus.dead_letters("h", TOPIC, 9).await.unwrap().is_empty(), "another group's");

    // A group of the dead-letter topic gets them with their causes.
    let (seen, mut handled) = mpsc::channel(9);
    let handler = move |delivery: Delivery| {
        let seen = seen.clone();
        async move { Ok(seen.send(delivery).await?) }
    };
    let undertaker = Subscribe::new("undertaker", [topic.clone()]).unwrap();
    let member = bus.subscribe(undertaker, Arc::new(handler)).await.unwrap();
    for _ in 0..3 {
        let delivery = handled.recv().await.unwrap();
        let letter = letters.iter().find(|letter| letter.event.as_ref() == Some(&delivery.event)).unwrap();
        assert_eq!((delivery.topic, delivery.dead_letter.as_ref()), (topic.clone(), Some(&letter.cause)));
        assert_eq!((delivery.partition, delivery.offset, delivery.attempt), (letter.partition, letter.offset, 1));
    }
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn a_dead_letter_and_its_return_wait_for_no_poll<D: Backend>() {
    let home = D::create().await;
    let bus = LogBus::new(D::connect(&home).await).with_poll(HOUR).with_lease(3 * HOUR);
    let (seen, mut handled) = mpsc::unbounded_channel();
    let told = seen.clone();
    let rejects_once = move |delivery: Delivery| {
        told.send("group").unwrap();
        let again = delivery.offset > 0;
        async move { if again { Ok(()) } else { Err(HandlerError::reject("not yet")) } }
    };
    let member = bus.subscribe(group("g"), Arc::new(rejects_once)).await.unwrap();
    let undertaker = move |_: Delivery| {
        seen.send("undertaker").unwrap();
        async { Ok(()) }
    };
    let letters = Subscribe::new("undertaker", [DeadLetter::topic_of("g", TOPIC)]).unwrap();
    let other = bus.subscribe(letters, Arc::new(undertaker)).await.unwrap();
    // Both have claimed their partitions, and wait for news.
    let owned = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL";
    eventually("all partitions are claimed", || async { ints(bus.db(), owned).await == [16] }).await;
    bus.publish(&[event(TOPIC, "k", 1)]).await.unwrap();
    assert_eq!((handled.recv().await, handled.recv().await), (Some("group"), Some("undertaker")));
    let letter = &bus.dead_letters("g", TOPIC, 1).await.unwrap()[0];
    bus.redrive("g", TOPIC, letter.partition, letter.offset).await.unwrap();
    assert_eq!(handled.recv().await, Some("group"));
    member.shutdown().await;
    other.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn records_are_trimmed_by_age_and_by_topic<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let bus = LogBus::new(D::connect(&home).await.with_clock(hand.clock()));
    let subscribe = Subscribe::new("g", [TOPIC, "Other"]).unwrap();
    let member = bus.subscribe(subscribe, Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap();
    bus.publish(&[event(TOPIC, "k", 1), event("Other", "k", 1)]).await.unwrap();
    hand.advance(Duration::from_millis(1));
    bus.publish(&[event(TOPIC, "k", 2)]).await.unwrap();
    let committed = "SELECT CAST(SUM(position) AS BIGINT) FROM buttress_group";
    eventually("all handled", || async { ints(bus.db(), committed).await == [3] }).await;
    assert_eq!(bus.trim(TOPIC, hand.clock().now()).await.unwrap(), 1, "only what is older");
    assert_eq!(ints(bus.db(), "SELECT COUNT(*) FROM buttress_log").await, [2]);
    assert_eq!(bus.trim("Other", hand.clock().now()).await.unwrap(), 1);
    member.shutdown().await;
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

async fn an_empty_publication_stores_nothing<D: Backend>() {
    let home = D::create().await;
    let bus = LogBus::new(D::connect(&home).await);
    bus.publish(&[]).await.unwrap();
    assert_eq!(ints(bus.db(), "SELECT COUNT(*) FROM buttress_log_head").await, [0]);
    // Each topic has positions of its own, and a key has the same partition in each.
    bus.publish(&[event(TOPIC, "k", 1), event("Other", "k", 1), event(TOPIC, "k", 2)]).await.unwrap();
    let mut conn = bus.db().pool().acquire().await.unwrap();
    let sql = "SELECT COUNT(*) FROM buttress_log WHERE topic = $1 AND position = $2";
    for (topic, position) in [(TOPIC, 0), ("Other", 0), (TOPIC, 1)] {
        let rows = D::fetch(&mut conn, sql, &[Arg::Text(topic), Arg::Int(position)]).await.unwrap();
        assert_eq!(D::int(&rows[0], 0).unwrap(), 1, "{topic} {position}");
    }
    drop(conn);
    assert_eq!(ints(bus.db(), "SELECT COUNT(DISTINCT part) FROM buttress_log").await, [1]);
    close(bus.db().clone()).await;
    D::destroy(home).await;
}

#[tokio::test]
async fn a_member_looks_for_events_as_often_as_set() {
    let poll = Duration::from_secs(5);
    let looks = pauses("SELECT g.topic, g.part FROM buttress_group", async |db| {
        let bus = LogBus::new(db).with_poll(poll).with_lease(HOUR);
        bus.subscribe(group("g"), Arc::new(|_: Delivery| async { Ok(()) })).await.unwrap()
    });
    assert!(looks.await.into_iter().all(|pause| pause >= poll));
}
