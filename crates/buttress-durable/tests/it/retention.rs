use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buttress_durable::bus::{Delivery, EventBus, HandlerError, LogBus, Subscribe};
use buttress_durable::db::FaultPoint;
use buttress_durable::{Clock, Database, Db, Outbox, Retention, Timestamp, args};
use sqlx::Sqlite;
use tokio::sync::Notify;

use crate::support::{Backend, Crash, bounded, clock, close, event, eventually, ints, on_both, open};

const HOUR: Duration = Duration::from_hours(1);

on_both!(
    each_kind_of_row_is_deleted_at_its_own_age,
    old_rows_are_deleted_in_bites_and_writers_get_in_between,
    a_retention_that_was_interrupted_is_continued_by_another_process,
    a_running_retention_deletes_again_and_again_and_reports_it,
    a_retired_group_holds_no_records,
    a_topic_whose_name_only_looks_like_one_of_dead_letters_is_kept,
    a_record_is_kept_while_a_group_has_not_handled_it,
    a_record_is_kept_if_the_last_group_is_retired_while_the_log_is_trimmed,
    a_group_that_is_retired_while_a_member_joins_it_begins_again,
);

/// Fills the outbox with published events.
async fn fill<D: Database>(db: &Db<D>, rows: i64) {
    let mut tx = db.begin().await.unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < $1)
               INSERT INTO buttress_outbox (event_id, shard, payload, created_at, sent_at)
               SELECT CAST(i * 7919 % 1000003 AS TEXT), i % 16, '', 1, 1 FROM n";
    tx.execute(sql, args![rows]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn left<D: Database>(db: &Db<D>) -> i64 {
    ints(db, "SELECT COUNT(*) FROM buttress_outbox").await[0]
}

async fn a_topic_whose_name_only_looks_like_one_of_dead_letters_is_kept<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let bus = LogBus::new(db.clone());
    bus.publish(&[event("Dead.End", "k", 1)]).await.unwrap();
    hand.advance(2 * HOUR);
    assert_eq!(Retention::new(db.clone()).dead_letters(HOUR).run_once().await.unwrap(), 0);
    close(db).await;
    D::destroy(home).await;
}

async fn each_kind_of_row_is_deleted_at_its_own_age<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let now = hand.clock().now().as_millis();
    let rows = [
        "INSERT INTO buttress_outbox (event_id, shard, payload, created_at, sent_at) VALUES ('sent', 0, '', 0, $1)",
        "INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ('one', 'e', $1)",
        "INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ('other', 'e', $1)",
        "INSERT INTO buttress_log (topic, part, position, dedup, payload, published_at) VALUES ('T', 0, 0, 'e', '', $1)",
        "INSERT INTO buttress_log (topic, part, position, dedup, payload, published_at)
         VALUES ('dead.g.T', 0, 0, 'e', '', $1)",
        "INSERT INTO buttress_saga (id, definition, version, status, step, data, wake_at, recoveries, generation,
             expires_at, created_at, updated_at) VALUES ('ended', 'd', 1, 'compensated', 0, '0', 0, 0, 0, 0, 0, $1)",
        "INSERT INTO buttress_saga_step (saga_id, step, name, state, attempts, uncertain, started_at)
         VALUES ('ended', 0, 's', 'undone', 1, 0, $1)",
        "INSERT INTO buttress_saga (id, definition, version, status, step, data, wake_at, recoveries, generation,
             expires_at, created_at, updated_at) VALUES ('stuck', 'd', 1, 'stuck', 0, '0', 0, 0, 0, 0, 0, $1)",
    ];
    let mut tx = db.begin().await.unwrap();
    for sql in rows {
        tx.execute(sql, args![now]).await.unwrap();
    }
    let others = [
        "INSERT INTO buttress_outbox (event_id, shard, payload, created_at) VALUES ('waiting', 0, '', 0)",
        "INSERT INTO buttress_log_head (topic, part, next) VALUES ('T', 0, 1), ('dead.g.T', 0, 1)",
        "INSERT INTO buttress_group (name, topic, part, position, attempts, retry_at, generation, expires_at)
         VALUES ('g', 'T', 0, 1, 0, 0, 0, 0)",
    ];
    for sql in others {
        tx.execute(sql, args![]).await.unwrap();
    }
    tx.commit().await.unwrap();
    let counts = async || {
        let mut counts = Vec::new();
        for sql in [
            "SELECT COUNT(*) FROM buttress_outbox",
            "SELECT COUNT(*) FROM buttress_inbox",
            "SELECT COUNT(*) FROM buttress_log WHERE topic = 'T'",
            "SELECT COUNT(*) FROM buttress_log WHERE topic = 'dead.g.T'",
            "SELECT COUNT(*) FROM buttress_saga",
            "SELECT COUNT(*) FROM buttress_saga_step",
        ] {
            counts.extend(ints(&db, sql).await);
        }
        counts
    };
    assert_eq!(counts().await, [2, 2, 1, 1, 2, 1]);
    let all = Retention::new(db.clone()).outbox(HOUR).inbox("one", 4 * HOUR).log(2 * HOUR).dead_letters(3 * HOUR);
    let all = all.sagas(5 * HOUR);
    hand.advance(HOUR);
    assert_eq!(all.run_once().await.unwrap(), 0, "not older than the age");
    hand.advance(Duration::from_millis(1));
    let expected = [[1, 2, 1, 1, 2, 1], [1, 2, 0, 1, 2, 1], [1, 2, 0, 0, 2, 1], [1, 1, 0, 0, 2, 1], [1, 1, 0, 0, 1, 0]];
    for left in expected {
        assert_eq!(all.run_once().await.unwrap(), 1);
        assert_eq!(counts().await, left);
        hand.advance(HOUR);
    }
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_saga WHERE id = 'stuck'").await, [1]);
    close(db).await;
    D::destroy(home).await;
}

async fn old_rows_are_deleted_in_bites_and_writers_get_in_between<D: Backend>() {
    const ROWS: i64 = 100_000;
    let home = D::create().await;
    fill(&D::connect(&home).await, ROWS).await;
    let (bites, third) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, reached) = (bites.clone(), third.clone());
    let db = D::connect(&home).await.with_faults(move |point| {
        if matches!(point, FaultPoint::Statement(sql) if sql.starts_with("DELETE FROM buttress_outbox")) {
            let seen = count.fetch_add(1, Ordering::SeqCst);
            if seen == 2 {
                reached.notify_one();
            }
        }
        false
    });
    let purge = tokio::spawn({
        let db = db.clone();
        async move { Outbox::new(db).purge(Timestamp::from_millis(2)).await.unwrap() }
    });
    third.notified().await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ('c', 'e', 0)", args![])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(left(&db).await > 0, "the writer waited for the whole purge");
    assert_eq!(purge.await.unwrap(), ROWS.cast_unsigned());
    assert!(bites.load(Ordering::SeqCst) >= 50, "a bite has at most 2,000 rows: {bites:?}");
    assert_eq!(left(&db).await, 0);
    close(db).await;
    D::destroy(home).await;
}

async fn a_retention_that_was_interrupted_is_continued_by_another_process<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let (crash, db) = (Crash::at(15), D::connect(&home).await.with_clock(hand.clock()));
    fill(&db, 10_000).await;
    let dying = open::<D>(&home, hand.clock(), &crash).await;
    assert!(crash.live(Retention::new(dying.clone()).outbox(HOUR).run_once()).await.is_none());
    let after_crash = left(&db).await;
    assert!((1..10_000).contains(&after_crash), "{after_crash}");
    let next = Retention::new(db.clone()).outbox(HOUR);
    assert_eq!(next.run_once().await.unwrap(), 0, "the lease of the one that crashed has not ended");
    hand.advance(Duration::from_secs(30));
    assert_eq!(next.run_once().await.unwrap(), after_crash.cast_unsigned());
    close(dying).await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_running_retention_deletes_again_and_again_and_reports_it<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let retention = Retention::new(db.clone()).outbox(HOUR).every(Duration::ZERO).start().unwrap();
    for _ in 0..2 {
        fill(&db, 100).await;
        eventually("deleted", || async { left(&db).await == 0 }).await;
    }
    eventually("told", || async { retention.health().status().last_success == Some(hand.clock().now()) }).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("ALTER TABLE buttress_outbox RENAME TO elsewhere", args![]).await.unwrap();
    tx.commit().await.unwrap();
    eventually("the failure is told", || async { retention.health().status().failures > 0 }).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("ALTER TABLE elsewhere RENAME TO buttress_outbox", args![]).await.unwrap();
    tx.commit().await.unwrap();
    eventually("and that it is over", || async { retention.health().status().error.is_none() }).await;
    retention.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn quiet(_: Delivery) -> Result<(), HandlerError> {
    Ok(())
}

async fn a_retired_group_holds_no_records<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5));
    let old = bus.subscribe(Subscribe::new("old", ["T"]).unwrap(), Arc::new(quiet)).await.unwrap();
    let live = bus.subscribe(Subscribe::new("live", ["T"]).unwrap(), Arc::new(quiet)).await.unwrap();
    let members = "SELECT COUNT(*) FROM buttress_group_member WHERE name = 'old'";
    eventually("it has joined", || async { ints(&db, members).await == [1] }).await;
    assert!(bus.retire("old").await.unwrap_err().to_string().contains("no live member"));
    old.shutdown().await;
    let events: Vec<_> = (0..50).map(|n| event("T", &format!("k{n}"), n)).collect();
    bus.publish(&events).await.unwrap();
    let handled = "SELECT CAST(SUM(position) AS BIGINT) FROM buttress_group WHERE name = 'live'";
    eventually("handled", || async { ints(&db, handled).await == [50] }).await;
    let future = db.clock().now().plus(HOUR);
    assert_eq!(bus.trim("T", future).await.unwrap(), 0);
    bus.retire("old").await.unwrap();
    assert_eq!(bus.trim("T", future).await.unwrap(), 50);
    assert!(bus.retire("old").await.is_err(), "there is none");
    bus.publish(&[event("T", "k", 51)]).await.unwrap();
    eventually("the live group goes on", || async { ints(&db, handled).await == [51] }).await;
    live.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_record_is_kept_while_a_group_has_not_handled_it<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let bus = LogBus::new(db.clone());
    let events: Vec<_> = (0..300).map(|n| event("T", "k", n)).collect();
    bus.publish(&events).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let sql = "INSERT INTO buttress_group (name, topic, part, position, attempts, retry_at, generation, expires_at)
               SELECT 'g', topic, part, 130, 0, 0, 0, 0 FROM buttress_log_head";
    tx.execute(sql, args![]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bus.trim("T", db.clock().now().plus(HOUR)).await.unwrap(), 130);
    assert_eq!(ints(&db, "SELECT MIN(position) FROM buttress_log").await, [130]);
    close(db).await;
    D::destroy(home).await;
}

async fn a_record_is_kept_if_the_last_group_is_retired_while_the_log_is_trimmed<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let bus = LogBus::new(db.clone());
    bus.publish(&(0..10).map(|n| event("T", "k", n)).collect::<Vec<_>>()).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let sql = "INSERT INTO buttress_group (name, topic, part, position, attempts, retry_at, generation, expires_at)
               SELECT 'g', topic, part, 4, 0, 0, 0, 0 FROM buttress_log_head";
    tx.execute(sql, args![]).await.unwrap();
    tx.commit().await.unwrap();
    let (address, retired) = (D::address(&home), AtomicUsize::new(0));
    // Between the query for partitions that are due and the deletion of their records.
    let trimming = D::connect(&home).await.with_faults(move |point| {
        let deletes = matches!(point, FaultPoint::Statement(sql) if sql.starts_with("SELECT 1 FROM buttress_log"));
        if deletes && retired.fetch_add(1, Ordering::SeqCst) == 0 {
            let address = address.clone();
            let other = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let bus = LogBus::new(D::open_at(&address).await);
                    bus.retire("g").await.unwrap();
                    close(bus.db().clone()).await;
                });
            });
            other.join().unwrap();
        }
        false
    });
    let trimmed = LogBus::new(trimming.clone()).trim("T", db.clock().now().plus(HOUR)).await.unwrap();
    assert_eq!((trimmed, ints(&db, "SELECT COUNT(*) FROM buttress_log").await), (0, vec![10]));
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_group").await, [0]);
    close(trimming).await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_group_that_is_retired_while_a_member_joins_it_begins_again<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let bus = LogBus::new(db.clone()).with_poll(Duration::from_millis(5)).with_lease(Duration::from_millis(300));
    let member = bus.subscribe(Subscribe::new("g", ["T"]).unwrap(), Arc::new(quiet)).await.unwrap();
    let owned = "SELECT COUNT(*) FROM buttress_group WHERE owner IS NOT NULL";
    eventually("all partitions", || async { ints(&db, owned).await == [8] }).await;
    // As `retire` does, which has not seen the member.
    let mut tx = db.begin().await.unwrap();
    tx.execute("DELETE FROM buttress_group", args![]).await.unwrap();
    tx.commit().await.unwrap();
    bus.publish(&[event("T", "k", 1)]).await.unwrap();
    let handled = "SELECT COALESCE(CAST(SUM(position) AS BIGINT), 0) FROM buttress_group";
    eventually("the event is handled", || async { ints(&db, handled).await == [1] }).await;
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

#[tokio::test]
async fn an_inbox_that_forgets_what_can_be_delivered_again_is_refused() {
    let home = <Sqlite as Backend>::create().await;
    let db = <Sqlite as Backend>::connect(&home).await;
    let error = |retention: Retention<Sqlite>| retention.start().map(drop).unwrap_err().to_string();
    assert!(error(Retention::new(db.clone()).inbox("c", HOUR).log(2 * HOUR)).contains("`inbox`"));
    assert!(error(Retention::new(db.clone()).dead_letters(2 * HOUR).inbox("c", HOUR)).contains("`inbox`"));
    drop(Retention::new(db.clone()).dead_letters(HOUR).log(HOUR).inbox("c", HOUR).start().unwrap());
    // The last setting of an age counts.
    drop(Retention::new(db.clone()).log(2 * HOUR).inbox("c", HOUR).log(HOUR).start().unwrap());
    close(db).await;
}

#[tokio::test]
async fn nothing_is_deleted_by_default() {
    bounded(async {
        let home = <Sqlite as Backend>::create().await;
        let db = <Sqlite as Backend>::connect(&home).await.with_clock(Clock::system());
        fill(&db, 10).await;
        assert_eq!(Retention::new(db.clone()).run_once().await.unwrap(), 0);
        assert_eq!(left(&db).await, 10);
        close(db).await;
    })
    .await;
}
