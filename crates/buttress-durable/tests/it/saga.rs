use std::time::Duration;

use buttress_durable::saga::{Admin, Call, Coordinator, Definition, Filter, Status, Step, StepError, StepState};
use buttress_durable::{Db, ManualClock, Outbox, TraceContext};

use crate::shop::{Order, Participants, Reply, Shop, definition, open_shop, order, schema};
use crate::support::{Backend, Crash, clock, close, eventually, ints, on_both};

on_both!(
    a_saga_runs_its_steps_in_order_and_tells_of_them,
    a_refusal_undoes_the_steps_before_it_in_reverse,
    a_step_of_unknown_outcome_is_undone_like_one_that_succeeded,
    a_retriable_failure_is_tried_again_with_the_same_key,
    past_the_pivot_it_is_stuck_rather_than_undone,
    a_compensation_that_keeps_failing_is_stuck_and_can_be_skipped,
    a_stuck_saga_can_be_resolved_and_is_never_purged_before,
    deadlines_hold_in_wall_time_and_across_restarts,
    a_saga_starts_with_its_transaction_or_not_at_all,
    a_saga_that_kills_its_coordinator_is_stuck_in_the_end,
    another_version_of_the_definition_leaves_a_saga_alone,
    changed_steps_without_a_new_version_are_noticed,
    two_coordinators_never_run_one_saga,
    a_stale_coordinator_writes_nothing,
    a_coordinator_shut_down_gives_its_sagas_back,
    who_waits_for_a_decision_need_not_wait_for_the_undoing,
);

struct Test<D: Backend> {
    home: D::Home,
    hand: ManualClock,
    participants: Participants,
    shop: Shop<D>,
}

async fn test<D: Backend>() -> Test<D> {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let shop = open_shop(db, &participants, &Crash::never());
    Test { home, hand, participants, shop }
}

impl<D: Backend> Test<D> {
    /// Places one order and runs it until it is at rest.
    async fn order(&self) -> Status {
        assert!(self.shop.order("o").await);
        self.shop.settle(&self.hand).await;
        self.shop.status("o").await
    }

    async fn states(&self) -> Vec<(String, StepState)> {
        self.shop.saga("o").await.steps.into_iter().map(|step| (step.name, step.state)).collect()
    }

    async fn end(self) {
        close(self.shop.db).await;
        D::destroy(self.home).await;
    }
}

fn admin<D: Backend>(test: &Test<D>) -> Admin<D> {
    test.shop.coordinator.admin()
}

async fn told<D: Backend>(db: &Db<D>) -> Vec<String> {
    let mut conn = db.pool().acquire().await.unwrap();
    let rows = D::fetch(&mut conn, "SELECT payload FROM buttress_outbox ORDER BY seq", &[]).await.unwrap();
    let json = rows.iter().map(|row| serde_json::from_slice::<serde_json::Value>(&D::blob(row, 0).unwrap()).unwrap());
    json.map(|event| event["event_type"].as_str().unwrap().to_owned()).collect()
}

async fn a_saga_runs_its_steps_in_order_and_tells_of_them<D: Backend>() {
    let test = test::<D>().await;
    assert_eq!(test.order().await, Status::Completed);
    assert_eq!(test.participants.ledger(), ["+o:reserve", "+o:pay", "+o:ship"]);
    assert_eq!(told(&test.shop.db).await, ["OrderCreated", "OrderConfirmed"]);
    let names = ["create", "reserve", "pay", "confirm", "ship"].map(|name| (name.to_owned(), StepState::Done));
    assert_eq!(test.states().await, names);
    let past = test.hand.clock().now();
    assert_eq!(admin(&test).purge(past).await.unwrap(), 0);
    assert_eq!(admin(&test).purge(past.plus(Duration::from_secs(1))).await.unwrap(), 1);
    test.end().await;
}

async fn a_refusal_undoes_the_steps_before_it_in_reverse<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("pay", &[Reply::Declined]);
    assert_eq!(test.order().await, Status::Compensated);
    assert_eq!(test.participants.calls(), ["o:reserve", "o:pay", "-o:reserve"], "nothing to undo of the payment");
    assert_eq!(told(&test.shop.db).await, ["OrderCreated", "OrderCancelled"]);
    let failure = test.shop.saga("o").await.failure.unwrap();
    assert_eq!((failure.step.as_str(), failure.message.as_str()), ("pay", "Declined"));
    test.end().await;
}

async fn a_step_of_unknown_outcome_is_undone_like_one_that_succeeded<D: Backend>() {
    for lost in [Reply::LostAnswer, Reply::LostCall, Reply::Panic] {
        let test = test::<D>().await;
        // A retry would find the lost effect, so the participant stays unavailable.
        test.participants.script("pay", &[lost, Reply::Busy, Reply::Busy]);
        assert_eq!(test.order().await, Status::Compensated);
        let calls = ["o:reserve", "o:pay", "o:pay", "o:pay", "-o:pay", "-o:reserve"];
        assert_eq!(test.participants.calls(), calls, "{lost:?}");
        let expected: &[&str] = match lost {
            Reply::LostAnswer => &["+o:reserve", "+o:pay", "-o:pay", "-o:reserve"],
            _ => &["+o:reserve", "-o:reserve"],
        };
        assert_eq!(test.participants.ledger(), expected, "{lost:?}");
        test.end().await;
    }
}

async fn a_retriable_failure_is_tried_again_with_the_same_key<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("reserve", &[Reply::Busy, Reply::LostAnswer]);
    test.shop.order("o").await;
    test.shop.coordinator.run_due().await.unwrap();
    let saga = test.shop.saga("o").await;
    assert_eq!((saga.status, saga.steps[1].state, saga.steps[1].attempts), (Status::Running, StepState::Waiting, 1));
    test.shop.coordinator.run_due().await.unwrap();
    assert_eq!(test.participants.calls(), ["o:reserve"], "not before its pause is over");
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Completed);
    assert_eq!(test.participants.ledger(), ["+o:reserve", "+o:pay", "+o:ship"]);
    test.end().await;
}

async fn past_the_pivot_it_is_stuck_rather_than_undone<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("ship", &[Reply::Busy; 3]);
    assert_eq!(test.order().await, Status::Stuck);
    let stuck = test.shop.saga("o").await.stuck.unwrap();
    assert_eq!((stuck.step.as_str(), stuck.message.as_str(), stuck.compensating), ("ship", "busy", false));
    assert_eq!(admin(&test).counts().await.unwrap().stuck, 1);
    let filter = Filter { status: Some(Status::Stuck), ..Filter::default() };
    assert_eq!(admin(&test).list(&filter).await.unwrap().len(), 1);
    admin(&test).retry(&order("o")).await.unwrap();
    assert!(admin(&test).retry(&order("o")).await.is_err(), "it is not stuck any more");
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Completed);
    assert_eq!(test.participants.ledger(), ["+o:reserve", "+o:pay", "+o:ship"]);
    test.end().await;
}

async fn a_compensation_that_keeps_failing_is_stuck_and_can_be_skipped<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("pay", &[Reply::Declined]);
    test.participants.script("-reserve", &[Reply::Busy, Reply::LostCall, Reply::Busy, Reply::Busy]);
    assert_eq!(test.order().await, Status::Stuck);
    assert!(test.shop.saga("o").await.stuck.unwrap().compensating);
    admin(&test).skip(&order("o")).await.unwrap();
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Compensated);
    assert_eq!(test.participants.ledger(), ["+o:reserve"], "left to the operator who skipped it");
    assert_eq!(told(&test.shop.db).await, ["OrderCreated", "OrderCancelled"], "and the steps before it are undone");
    test.end().await;
}

async fn a_stuck_saga_can_be_resolved_and_is_never_purged_before<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("ship", &[Reply::Busy; 3]);
    assert_eq!(test.order().await, Status::Stuck);
    test.hand.advance(Duration::from_secs(3600));
    let now = test.hand.clock().now();
    assert_eq!(admin(&test).purge(now).await.unwrap(), 0);
    admin(&test).resolve(&order("o"), "sent by hand").await.unwrap();
    let saga = test.shop.saga("o").await;
    assert_eq!((saga.status, saga.stuck.unwrap().note.as_deref()), (Status::Resolved, Some("sent by hand")));
    assert!(admin(&test).resolve(&order("unknown"), "").await.is_err());
    test.end().await;
}

async fn deadlines_hold_in_wall_time_and_across_restarts<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("reserve", &[Reply::LostAnswer]);
    test.shop.order("o").await;
    test.shop.coordinator.run_due().await.unwrap();
    // Longer than the saga's deadline.
    test.hand.advance(Duration::from_secs(601));
    let again = open_shop(test.shop.db.clone(), &test.participants, &Crash::never());
    again.settle(&test.hand).await;
    let saga = again.saga("o").await;
    assert_eq!(saga.status, Status::Compensated);
    assert_eq!(saga.failure.unwrap().message, "the saga's deadline has passed");
    assert_eq!(test.participants.ledger(), ["+o:reserve", "-o:reserve"]);

    let slow = Step::new("slow", |_: Call<Order>| async { Err(StepError::retriable("busy")) })
        .attempts(std::num::NonZeroU32::MAX)
        .deadline(Duration::from_secs(60));
    let mut builder = Coordinator::builder(test.shop.db.clone(), Outbox::new(test.shop.db.clone()));
    let starter = builder.register(Definition::new("slow", 1, [slow]).unwrap()).unwrap();
    let coordinator = builder.build();
    let mut tx = test.shop.db.begin().await.unwrap();
    starter.start(&mut tx, "s", &Order { cents: 1, reservation: None }, None).await.unwrap();
    tx.commit().await.unwrap();
    for _ in 0..5 {
        coordinator.run_due().await.unwrap();
        test.hand.advance(Duration::from_secs(13));
    }
    coordinator.run_due().await.unwrap();
    let saga = coordinator.admin().get(&starter.id("s")).await.unwrap().unwrap();
    assert_eq!(saga.failure.map(|failure| failure.message).as_deref(), Some("the step's deadline has passed"));
    test.end().await;
}

async fn a_saga_starts_with_its_transaction_or_not_at_all<D: Backend>() {
    let test = test::<D>().await;
    let new = Order { cents: 1, reservation: None };
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None).unwrap();
    let mut tx = test.shop.db.begin().await.unwrap();
    assert!(test.shop.orders.start(&mut tx, "o", &new, None).await.unwrap());
    tx.rollback().await.unwrap();
    assert!(admin(&test).get(&order("o")).await.unwrap().is_none());
    let mut tx = test.shop.db.begin().await.unwrap();
    assert!(test.shop.orders.start(&mut tx, "o", &new, Some(&trace)).await.unwrap());
    assert!(!test.shop.orders.start(&mut tx, "o", &new, None).await.unwrap(), "one saga for each id");
    tx.commit().await.unwrap();
    test.shop.settle(&test.hand).await;
    let mut conn = test.shop.db.pool().acquire().await.unwrap();
    let rows = D::fetch(&mut conn, "SELECT payload FROM buttress_outbox", &[]).await.unwrap();
    for row in &rows {
        let event: buttress_durable::DomainEvent = serde_json::from_slice(&D::blob(row, 0).unwrap()).unwrap();
        assert_eq!(event.trace(), Some(&trace), "events carry the trace on");
    }
    drop(conn);
    test.end().await;
}

async fn a_saga_that_kills_its_coordinator_is_stuck_in_the_end<D: Backend>() {
    let test = test::<D>().await;
    test.shop.order("o").await;
    let mut lives = 0;
    while test.shop.status("o").await != Status::Stuck {
        lives += 1;
        assert!(lives < 20, "it is never given up");
        // The participants' first boundary is before an effect: the process crashes in the first
        // remote call.
        let crash = Crash::at(1);
        let shop = open_shop(test.shop.db.clone(), &test.participants, &crash);
        crash.live(shop.settle(&test.hand)).await;
        // Longer than the lease.
        test.hand.advance(Duration::from_secs(31));
    }
    assert_eq!(lives, 12, "the first life, ten recoveries, and the one that gives up");
    assert!(test.shop.saga("o").await.stuck.unwrap().message.contains("10 recoveries"));
    admin(&test).retry(&order("o")).await.unwrap();
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Completed);
    test.end().await;
}

async fn another_version_of_the_definition_leaves_a_saga_alone<D: Backend>() {
    let test = test::<D>().await;
    test.shop.order("o").await;
    let newer = Step::new("only", |call: Call<Order>| async { Ok(call.done()) });
    let mut builder = Coordinator::builder(test.shop.db.clone(), Outbox::new(test.shop.db.clone()));
    builder.register(Definition::new("order", 2, [newer]).unwrap()).unwrap();
    assert_eq!(builder.build().run_due().await.unwrap(), 0);
    assert_eq!(test.shop.status("o").await, Status::Running);
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Completed);
    test.end().await;
}

async fn changed_steps_without_a_new_version_are_noticed<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("reserve", &[Reply::Busy]);
    test.shop.order("o").await;
    test.shop.coordinator.run_due().await.unwrap();
    test.hand.advance(Duration::from_secs(1));
    let renamed = Step::new("renamed", |call: Call<Order>| async { Ok(call.done()) });
    let other = Step::new("other", |call: Call<Order>| async { Ok(call.done()) });
    let mut builder = Coordinator::builder(test.shop.db.clone(), Outbox::new(test.shop.db.clone()));
    builder.register(Definition::new("order", 1, [renamed, other]).unwrap()).unwrap();
    builder.build().run_due().await.unwrap();
    assert!(test.shop.saga("o").await.stuck.unwrap().message.contains("version"));
    admin(&test).retry(&order("o")).await.unwrap();
    test.shop.settle(&test.hand).await;
    assert_eq!(test.shop.status("o").await, Status::Completed, "by the definition it was started with");
    test.end().await;
}

/// Three coordinators, as separate processes would be, on forty sagas.
async fn two_coordinators_never_run_one_saga<D: Backend>() {
    let home = D::create().await;
    let participants = Participants::new();
    participants.script("pay", &[Reply::Declined, Reply::Done, Reply::LostAnswer, Reply::Done, Reply::Busy]);
    let mut shops = Vec::new();
    for _ in 0..3 {
        let db = D::connect(&home).await;
        schema(&db).await;
        shops.push(open_shop(db, &participants, &Crash::never()));
    }
    for n in 0..40 {
        shops[0].order(&format!("o{n:02}")).await;
    }
    let running: Vec<_> = shops.iter().map(|shop| shop.coordinator.run()).collect();
    eventually("all sagas at rest", || async {
        let counts = shops[0].coordinator.admin().counts().await.unwrap();
        counts.running + counts.compensating + counts.stuck == 0
    })
    .await;
    for coordinator in running {
        coordinator.shutdown().await;
    }
    assert_eq!(participants.busy.lock().unwrap().1, 1, "never two calls for one saga at the same time");
    let mut ledger = participants.ledger();
    assert_eq!(ledger.iter().filter(|entry| entry.ends_with(":ship")).count(), 39);
    ledger.sort();
    let entries = ledger.len();
    ledger.dedup();
    assert_eq!(ledger.len(), entries, "no effect twice");
    let changes = ints(&shops[0].db, "SELECT DISTINCT changes FROM orders").await;
    assert_eq!(changes, [1], "each order was confirmed or cancelled once");
    for shop in shops {
        close(shop.db).await;
    }
    D::destroy(home).await;
}

async fn a_stale_coordinator_writes_nothing<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("reserve", &[Reply::Gate]);
    test.shop.order("o").await;
    let stale = tokio::spawn({
        let coordinator = test.shop.coordinator.clone();
        async move { coordinator.run_due().await.unwrap() }
    });
    eventually("the first coordinator at work", || async { test.participants.calls().len() == 1 }).await;
    // As if the first one had paused for a minute, longer than its lease.
    test.hand.advance(Duration::from_secs(60));
    let other = open_shop(test.shop.db.clone(), &test.participants, &Crash::never());
    other.settle(&test.hand).await;
    let before = format!("{:?}", other.saga("o").await);
    assert_eq!(other.status("o").await, Status::Completed);
    test.participants.gate.add_permits(1);
    stale.await.unwrap();
    assert_eq!(format!("{:?}", other.saga("o").await), before, "the late answer changed nothing");
    // Had it continued, it would have confirmed and published once more.
    assert_eq!(ints(&test.shop.db, "SELECT changes FROM orders").await, [1]);
    assert_eq!(told(&test.shop.db).await, ["OrderCreated", "OrderConfirmed"]);
    assert_eq!(test.participants.ledger(), ["+o:reserve", "+o:pay", "+o:ship"]);
    test.end().await;
}

async fn a_coordinator_shut_down_gives_its_sagas_back<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("reserve", &[Reply::Gate]);
    test.shop.order("o").await;
    let running = test.shop.coordinator.run();
    eventually("the saga at work", || async { test.participants.calls().len() == 1 }).await;
    let gate = test.participants.gate.clone();
    let (down, ()) = tokio::join!(running.shutdown(), async move { gate.add_permits(1) });
    let () = down;
    let saga = test.shop.saga("o").await;
    assert_eq!((saga.status, saga.steps.len()), (Status::Running, 2), "what was begun is finished, and no more begun");
    assert_eq!(saga.steps[1].state, StepState::Done);
    let again = open_shop(test.shop.db.clone(), &test.participants, &Crash::never());
    again.settle(&test.hand).await;
    assert_eq!(again.status("o").await, Status::Completed, "at once, without waiting for a lease");
    assert_eq!(ints(&test.shop.db, "SELECT recoveries FROM buttress_saga").await, [0]);
    test.end().await;
}

#[test]
fn definitions_that_cannot_be_undone_are_refused() {
    let step = |name: &str| Step::<sqlx::Sqlite, Order>::new(name, |call: Call<Order>| async { Ok(call.done()) });
    let wrong: Vec<Vec<Step<sqlx::Sqlite, Order>>> = vec![
        vec![],
        vec![step("a"), step("a")],
        vec![step("a:b")],
        vec![step("a").pivot(), step("b").pivot().retriable()],
        vec![step("a").pivot(), step("b")],
        vec![step("a").retriable(), step("b").pivot()],
    ];
    for steps in wrong {
        let names = format!("{steps:?}");
        assert!(Definition::new("order", 1, steps).is_err(), "{names}");
    }
    let right = definition::<sqlx::Sqlite>(&Participants::new(), &Crash::never());
    assert!(format!("{right:?}").contains("pay"));
}

async fn who_waits_for_a_decision_need_not_wait_for_the_undoing<D: Backend>() {
    let test = test::<D>().await;
    test.participants.script("pay", &[Reply::Declined]);
    test.participants.script("-reserve", &[Reply::Gate]);
    let running = test.shop.coordinator.run();
    assert!(test.shop.order("o").await);
    let long = Duration::from_secs(60);
    let saga = test.shop.coordinator.wait_until_decided(&order("o"), long).await.unwrap().unwrap();
    assert_eq!((saga.status, saga.failure.unwrap().step.as_str()), (Status::Compensating, "pay"));
    let still = test.shop.coordinator.wait(&order("o"), Duration::from_millis(20)).await.unwrap().unwrap();
    assert_eq!(still.status, Status::Compensating, "the time is up");
    test.participants.gate.add_permits(1);
    let ended = test.shop.coordinator.wait(&order("o"), long).await.unwrap().unwrap();
    assert_eq!(ended.status, Status::Compensated);
    assert!(test.shop.coordinator.wait_until_decided(&order("unknown"), long).await.unwrap().is_none());
    running.shutdown().await;
    test.end().await;
}
