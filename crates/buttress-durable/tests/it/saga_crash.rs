//! The whole chain, crashed at the n-th boundary for every n: saga, participants, outbox, log.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use buttress_durable::bus::{EventBus, LogBus};
use buttress_durable::saga::Status;
use buttress_durable::{ManualClock, Outbox};

use crate::shop::{Participants, Reply, open_shop, schema};
use crate::support::{Backend, Crash, clock, close, ints, on_both, open};

on_both!(
    an_order_that_succeeds_survives_a_crash_anywhere,
    an_order_that_is_declined_survives_a_crash_anywhere,
    an_order_whose_payment_is_uncertain_survives_a_crash_anywhere,
    an_order_survives_crash_after_crash,
);

struct Story {
    script: &'static [(&'static str, &'static [Reply])],
    status: Status,
    /// Effects that remain, by step.
    remains: &'static [&'static str],
    events: &'static [&'static str],
}

const SUCCEEDS: Story = Story {
    script: &[("reserve", &[Reply::Busy]), ("ship", &[Reply::LostAnswer])],
    status: Status::Completed,
    remains: &["+o:pay", "+o:reserve", "+o:ship"],
    events: &["OrderCreated", "OrderConfirmed"],
};

const DECLINED: Story = Story {
    script: &[("pay", &[Reply::Declined]), ("-reserve", &[Reply::LostAnswer, Reply::Busy])],
    status: Status::Compensated,
    remains: &[],
    events: &["OrderCreated", "OrderCancelled"],
};

/// Charged, with a lost answer: the payment is refunded.
const UNCERTAIN: Story = Story {
    script: &[("pay", &[Reply::LostAnswer, Reply::Busy, Reply::Busy, Reply::Busy, Reply::Busy, Reply::Busy])],
    status: Status::Compensated,
    remains: &[],
    events: &["OrderCreated", "OrderCancelled"],
};

async fn an_order_that_succeeds_survives_a_crash_anywhere<D: Backend>() {
    anywhere::<D>(&SUCCEEDS).await;
}

async fn an_order_that_is_declined_survives_a_crash_anywhere<D: Backend>() {
    anywhere::<D>(&DECLINED).await;
}

async fn an_order_whose_payment_is_uncertain_survives_a_crash_anywhere<D: Backend>() {
    anywhere::<D>(&UNCERTAIN).await;
}

async fn anywhere<D: Backend>(story: &Story) {
    let mut n = 0;
    loop {
        n += 1;
        if told::<D>(story, &[n]).await {
            break;
        }
    }
    assert!(n > 60, "only {n} boundaries: the faults do not reach the saga");
}

/// Crashes in quick succession: every life gets a little further than the last, or not at all.
async fn an_order_survives_crash_after_crash<D: Backend>() {
    let mut rng = fastrand::Rng::with_seed(20);
    for _ in 0..15 {
        for story in [&SUCCEEDS, &DECLINED, &UNCERTAIN] {
            let crashes: Vec<u64> = (0..4).map(|_| rng.u64(1..60)).collect();
            told::<D>(story, &crashes).await;
        }
    }
}

/// Runs the story in one life for each crash and one more. Returns true if the first life
/// completed.
async fn told<D: Backend>(story: &Story, crashes: &[u64]) -> bool {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    for (step, replies) in story.script {
        participants.script(step, replies);
    }
    let db = D::connect(&home).await;
    schema(&db).await;
    close(db).await;
    let mut first = None;
    for crash in crashes.iter().map(|&n| Crash::at(n)).chain([Crash::never()]) {
        let through = life::<D>(&home, &hand, &participants, &crash).await;
        first.get_or_insert(through);
        // Longer than any lease.
        hand.advance(Duration::from_secs(60));
    }
    check::<D>(&home, story, &participants, crashes).await;
    D::destroy(home).await;
    first.unwrap_or(false)
}

async fn life<D: Backend>(home: &D::Home, hand: &ManualClock, participants: &Participants, crash: &Crash) -> bool {
    let db = open::<D>(home, hand.clock(), crash).await;
    let life = async {
        let shop = open_shop(db.clone(), participants, crash);
        let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()));
        // A client repeats its order until it is answered.
        shop.order("o").await;
        shop.settle(hand).await;
        Outbox::new(db.clone()).relay_once(&bus).await.unwrap();
    };
    let through = crash.live(life).await.is_some();
    close(db).await;
    through
}

async fn check<D: Backend>(home: &D::Home, story: &Story, participants: &Participants, crashes: &[u64]) {
    let db = D::connect(home).await;
    let admin = buttress_durable::saga::Admin::new(db.clone());
    let saga = admin.get(&crate::shop::order("o")).await.unwrap().unwrap();
    assert_eq!(saga.status, story.status, "killed at {crashes:?}: {saga:?}");

    let ledger = participants.ledger();
    let mut remains: Vec<&str> = Vec::new();
    for entry in &ledger {
        let key = entry.trim_start_matches(['+', '-']);
        match entry.starts_with('+') {
            true => {
                assert_eq!(ledger.iter().filter(|other| *other == entry).count(), 1, "{crashes:?}: {ledger:?}");
                remains.push(entry);
            }
            false => remains.retain(|other| !other.ends_with(key)),
        }
    }
    remains.sort_unstable();
    assert_eq!(remains, story.remains, "killed at {crashes:?}: {ledger:?}");

    // The log holds each event of the order service once and in order.
    let mut conn = db.pool().acquire().await.unwrap();
    let rows = D::fetch(&mut conn, "SELECT topic FROM buttress_log ORDER BY published_at, topic", &[]).await.unwrap();
    let mut topics: Vec<_> = rows.iter().map(|row| D::text(row, 0).unwrap()).collect();
    topics.sort_by_key(|topic| topic != "OrderCreated");
    assert_eq!(topics, story.events, "killed at {crashes:?}");
    drop(conn);
    let waiting = "SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL";
    assert_eq!(ints(&db, waiting).await, [0], "killed at {crashes:?}");
    assert_eq!(ints(&db, "SELECT changes FROM orders").await, [1], "killed at {crashes:?}: local steps exactly once");
    close(db).await;
}

/// Not a simulated crash: the future is dropped while the statement runs, as for a client that
/// disconnects.
#[tokio::test]
async fn dropping_the_coordinator_anywhere_leaves_nothing_that_cannot_go_on() {
    for polls in 1..60 {
        let (home, hand, participants) = (<sqlx::Sqlite as Backend>::create().await, clock(), Participants::new());
        let db = <sqlx::Sqlite as Backend>::connect(&home).await.with_clock(hand.clock());
        schema(&db).await;
        let shop = open_shop(db.clone(), &participants, &Crash::never());
        shop.order("o").await;
        let mut run = Box::pin(shop.coordinator.run_due());
        let mut polled = 0;
        std::future::poll_fn(|context| {
            polled += 1;
            if polled > polls { Poll::Ready(()) } else { run.as_mut().poll(context).map(drop) }
        })
        .await;
        drop(run);
        hand.advance(Duration::from_secs(60));
        shop.settle(&hand).await;
        assert_eq!(shop.status("o").await, Status::Completed, "dropped after {polls} polls");
        assert_eq!(participants.ledger(), ["+o:reserve", "+o:pay", "+o:ship"], "dropped after {polls} polls");
        close(db).await;
    }
}
