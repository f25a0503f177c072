//! Which coordinator claims a saga, and when: not before its owner's lease has ended, and then at
//! once.

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::Db;
use buttress_durable::db::Arg;
use buttress_durable::saga::Status;

use crate::shop::{Participants, Reply, Shop, open_shop, schema};
use crate::support::{Backend, Crash, clock, close, eventually, execute, ints, on_both};

on_both!(
    a_saga_at_work_is_left_to_its_owner_until_the_lease_ends,
    sagas_at_work_do_not_hide_those_that_are_free,
    a_saga_that_waits_is_left_alone_until_it_is_due,
    a_saga_that_waits_by_a_clock_that_was_ahead_is_due,
);

/// The coordinator's default.
const LEASE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(1);

/// A coordinator that has begun some sagas, and hangs in the first call of each.
async fn busy<D: Backend>(shop: &Shop<D>, participants: &Participants, ids: &[&str]) -> tokio::task::JoinHandle<usize> {
    participants.script("reserve", &vec![Reply::Gate; ids.len()]);
    for id in ids {
        shop.order(id).await;
    }
    let coordinator = shop.coordinator.clone();
    let busy = tokio::spawn(async move { coordinator.run_due().await.unwrap() });
    let calls = ids.len();
    eventually("the first coordinator at work", || async { participants.calls().len() == calls }).await;
    busy
}

async fn generations<D: Backend>(db: &Db<D>) -> Vec<i64> {
    ints(db, "SELECT generation FROM buttress_saga ORDER BY id").await
}

async fn a_saga_at_work_is_left_to_its_owner_until_the_lease_ends<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let first = open_shop(db.clone(), &participants, &Crash::never());
    let busy = busy(&first, &participants, &["a"]).await;
    let other = open_shop(db.clone(), &participants, &Crash::never());
    // Another saga, so that it does query for sagas to claim.
    other.order("b").await;
    assert_eq!(other.coordinator.run_due().await.unwrap(), 1);
    assert_eq!(other.status("b").await, Status::Completed);
    assert_eq!(generations(&db).await[0], 1, "the first one's saga is still the first one's");

    hand.advance(LEASE - MOMENT);
    other.order("c").await;
    assert_eq!(other.coordinator.run_due().await.unwrap(), 1, "not a moment too early");
    assert_eq!(generations(&db).await[0], 1);
    hand.advance(MOMENT);
    assert_eq!(other.coordinator.run_due().await.unwrap(), 1, "nor too late");
    assert_eq!((generations(&db).await[0], other.status("a").await), (2, Status::Completed));

    participants.gate.add_permits(1);
    busy.await.unwrap();
    assert_eq!(participants.ledger().iter().filter(|entry| *entry == "+a:reserve").count(), 1);
    close(db).await;
    D::destroy(home).await;
}

async fn sagas_at_work_do_not_hide_those_that_are_free<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let first = open_shop(db.clone(), &participants, &Crash::never());
    // As many as a coordinator of the shop claims at once, all due before the free one.
    let busy = busy(&first, &participants, &["a", "b", "c", "d"]).await;
    hand.advance(MOMENT);
    let other = open_shop(db.clone(), &participants, &Crash::never());
    other.order("e").await;
    assert_eq!(other.coordinator.run_due().await.unwrap(), 1);
    assert_eq!(generations(&db).await, [1; 5]);
    participants.gate.add_permits(4);
    busy.await.unwrap();
    close(db).await;
    D::destroy(home).await;
}

async fn a_saga_that_waits_is_left_alone_until_it_is_due<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let shop = open_shop(db.clone(), &participants, &Crash::never());
    participants.script("reserve", &[Reply::Busy]);
    shop.order("a").await;
    assert_eq!(shop.coordinator.run_due().await.unwrap(), 1);
    // The shop's backoff is 10 ms.
    hand.advance(Duration::from_millis(9));
    shop.order("b").await;
    assert_eq!(shop.coordinator.run_due().await.unwrap(), 1, "the other one");
    assert_eq!(shop.status("a").await, Status::Running);
    hand.advance(MOMENT);
    assert_eq!(shop.coordinator.run_due().await.unwrap(), 1);
    assert_eq!(shop.status("a").await, Status::Completed);
    close(db).await;
    D::destroy(home).await;
}

async fn a_saga_that_waits_by_a_clock_that_was_ahead_is_due<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let shop = open_shop(db.clone(), &participants, &Crash::never());
    for id in ["a", "b", "c"] {
        shop.order(id).await;
    }
    // The longest pause of a step.
    let longest = Duration::from_secs(5 * 60);
    let wake = async |sql: &'static str, pause: Duration| {
        let mut tx = db.begin().await.unwrap();
        execute::<D>(&mut tx, sql, &[Arg::Int(hand.clock().now().plus(pause).as_millis())]).await;
        tx.commit().await.unwrap();
    };
    wake("UPDATE buttress_saga SET wake_at = $1 WHERE own_id = 'a'", longest + MOMENT).await;
    wake("UPDATE buttress_saga SET wake_at = $1 WHERE own_id = 'b'", longest).await;
    wake("UPDATE buttress_saga SET wake_at = $1 WHERE own_id = 'c'", 1_000 * longest).await;
    assert_eq!(shop.coordinator.run_due().await.unwrap(), 2);
    let statuses = [shop.status("a").await, shop.status("b").await, shop.status("c").await];
    assert_eq!(statuses, [Status::Completed, Status::Running, Status::Completed]);
    hand.advance(longest);
    assert_eq!(shop.coordinator.run_due().await.unwrap(), 1);
    assert_eq!(shop.status("b").await, Status::Completed);
    close(db).await;
    D::destroy(home).await;
}

/// Two coordinators have found the same saga free. The second one's update waits for the first
/// one's, and then only the conditions outside its subquery are evaluated again.
#[tokio::test]
async fn on_postgres_a_claim_that_had_to_wait_looks_again() {
    if crate::support::server().is_none() {
        return;
    }
    type Pg = sqlx::Postgres;
    // Claimed meanwhile, or claimed, run and waiting.
    let taken = [
        "UPDATE buttress_saga SET owner = 'other', generation = 1, expires_at = $1 WHERE own_id = 'a'",
        "UPDATE buttress_saga SET generation = 1, wake_at = $1 WHERE own_id = 'a'",
    ];
    for taken in taken {
        let (home, hand, participants) = (<Pg as Backend>::create().await, clock(), Participants::new());
        let db = <Pg as Backend>::connect(&home).await.with_clock(hand.clock());
        schema(&db).await;
        let shop = Arc::new(open_shop(db.clone(), &participants, &Crash::never()));
        shop.order("a").await;
        let mut first = db.begin().await.unwrap();
        let later = hand.clock().now().plus(LEASE).as_millis();
        execute::<Pg>(&mut first, taken, &[Arg::Int(later)]).await;
        let second = tokio::spawn({
            let shop = shop.clone();
            async move { shop.coordinator.run_due().await.unwrap() }
        });
        let waits = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
                     AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
        eventually("the second waits", || async { ints(&db, waits).await == [1] }).await;
        first.commit().await.unwrap();
        assert_eq!(second.await.unwrap(), 0, "after {taken}");
        assert_eq!(generations(&db).await, [1]);
        assert!(participants.calls().is_empty());
        close(db).await;
        <Pg as Backend>::destroy(home).await;
    }
}
