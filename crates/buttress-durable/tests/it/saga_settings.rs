//! Every setting of a coordinator, and what a step learns of its call.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{EventBus, LogBus, Subscribe};
use buttress_durable::saga::{Call, Coordinator, Definition, Done, SagaId, Starter, Status, Step, StepError};
use buttress_durable::{Db, DomainEvent, Inbox, Outbox, Timestamp, TraceContext};
use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};

use crate::shop::{Participants, Reply, open_shop_with, schema};
use crate::support::{Backend, Crash, clock, close, event, eventually, execute, ints, on_both, pauses, watched};

on_both!(
    no_more_sagas_run_at_a_time_than_set,
    a_lease_lasts_as_long_as_set_and_is_renewed_during_a_call,
    a_call_of_a_saga_that_was_taken_over_is_dropped,
    a_saga_is_recovered_as_often_as_set,
    an_answer_makes_all_recoveries_available_again,
    a_call_that_hangs_ends_with_its_timeout,
    a_step_knows_attempt_deadline_trace_and_failure,
    nothing_waits_for_a_poll,
    a_coordinator_looks_for_sagas_of_other_processes,
    sagas_of_several_definitions_share_a_coordinator,
);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn attempts(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

async fn start<D: Backend>(db: &Db<D>, starter: &Starter<D, i64>, id: &str, trace: Option<&TraceContext>) {
    let mut tx = db.begin().await.unwrap();
    assert!(starter.start(&mut tx, id, &7, trace).await.unwrap());
    tx.commit().await.unwrap();
    starter.wake();
}

fn one<D: Backend>(name: &str, step: Step<D, i64>) -> Definition<D, i64> {
    Definition::new(name, 1, [step]).unwrap()
}

async fn no_more_sagas_run_at_a_time_than_set<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (gate, begun, done) =
        (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let step = {
        let (gate, begun, done) = (gate.clone(), begun.clone(), done.clone());
        Step::new("only", move |call: Call<i64>| {
            let (gate, begun, done) = (gate.clone(), begun.clone(), done.clone());
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.map_err(StepError::unknown)?.forget();
                done.fetch_add(1, Ordering::SeqCst);
                Ok(call.done())
            }
        })
    };
    let builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
    let mut builder = builder.concurrency(2).poll(Duration::from_millis(1));
    let starter = builder.register(one("d", step)).unwrap();
    let coordinator = builder.build();
    for n in 0..5 {
        start(&db, &starter, &n.to_string(), None).await;
    }
    let worker = coordinator.run();
    for ended in 0..5 {
        let running = (5 - ended).min(2);
        eventually("the next call", || async {
            (done.load(Ordering::SeqCst), begun.load(Ordering::SeqCst)) == (ended, ended + running)
        })
        .await;
        let owned = ints(&db, "SELECT COUNT(*) FROM buttress_saga WHERE owner IS NOT NULL").await;
        assert!(owned[0] <= 2, "{} sagas are claimed", owned[0]);
        gate.add_permits(1);
    }
    let counts = || async { coordinator.admin().counts().await.unwrap().running };
    eventually("all done", || async { counts().await == 0 }).await;
    worker.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_lease_lasts_as_long_as_set_and_is_renewed_during_a_call<D: Backend>() {
    // Short, since it is renewed after a third of it, in real time.
    const LEASE: Duration = Duration::from_millis(60);
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    participants.script("reserve", &[Reply::Gate]);
    let shop = open_shop_with(db.clone(), &participants, &Crash::never(), |builder| builder.lease(LEASE));
    shop.order("o").await;
    let run = tokio::spawn({
        let coordinator = shop.coordinator.clone();
        async move { coordinator.run_due().await.unwrap() }
    });
    eventually("the call", || async { participants.calls().len() == 1 }).await;
    let ends = || async { Timestamp::from_millis(ints(&db, "SELECT expires_at FROM buttress_saga").await[0]) };
    assert_eq!(ends().await, hand.clock().now().plus(LEASE));
    for _ in 0..3 {
        hand.advance(LEASE);
        eventually("renewed", || async { ends().await == hand.clock().now().plus(LEASE) }).await;
    }
    participants.gate.add_permits(1);
    assert_eq!(run.await.unwrap(), 1);
    assert_eq!(ints(&db, "SELECT generation FROM buttress_saga").await, [1], "it was never claimed again");
    close(db).await;
    D::destroy(home).await;
}

async fn a_call_of_a_saga_that_was_taken_over_is_dropped<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let working = Arc::new(AtomicUsize::new(0));
    let hangs = {
        let working = working.clone();
        move |_: Call<i64>| {
            working.fetch_add(1, Ordering::SeqCst);
            let working = Working(working.clone());
            async move {
                let _working = working;
                std::future::pending::<Result<Done<i64>, StepError>>().await
            }
        }
    };
    // Only the loss of the lease ends the call.
    let step = Step::new("hangs", hangs).timeout(HOUR);
    let builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
    let mut builder = builder.lease(Duration::from_millis(60));
    let starter = builder.register(one("d", step)).unwrap();
    let coordinator = builder.build();
    start(&db, &starter, "s", None).await;
    let run = tokio::spawn(async move { coordinator.run_due().await.unwrap() });
    eventually("the call", || async { working.load(Ordering::SeqCst) == 1 }).await;
    let mut tx = db.begin().await.unwrap();
    // The lease of one with the same settings.
    let until = hand.clock().now().plus(Duration::from_millis(60));
    let taken = "UPDATE buttress_saga SET owner = 'other', generation = generation + 1, expires_at = $1";
    execute::<D>(&mut tx, taken, &[until.into()]).await;
    tx.commit().await.unwrap();
    eventually("dropped", || async { working.load(Ordering::SeqCst) == 0 }).await;
    assert_eq!(run.await.unwrap(), 1);
    assert_eq!(ints(&db, "SELECT expires_at FROM buttress_saga").await, [until.as_millis()], "nothing is written");
    close(db).await;
    D::destroy(home).await;
}

struct Working(Arc<AtomicUsize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn a_saga_is_recovered_as_often_as_set<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let mut lives = 0;
    let shop = |crash: &Crash| open_shop_with(db.clone(), &participants, crash, |builder| builder.recoveries(2));
    shop(&Crash::never()).order("o").await;
    while shop(&Crash::never()).status("o").await != Status::Stuck {
        lives += 1;
        assert!(lives < 10, "it is never given up");
        // Before the first effect.
        let crash = Crash::at(1);
        crash.live(shop(&crash).settle(&hand)).await;
        hand.advance(MINUTE);
    }
    assert_eq!(lives, 4, "the first life, two recoveries, and the one that gives up");
    let stuck = shop(&Crash::never()).saga("o").await.stuck.unwrap();
    assert_eq!(
        (stuck.step.as_str(), stuck.message.as_str()),
        ("reserve", "stopped after 2 recoveries without progress")
    );
    close(db).await;
    D::destroy(home).await;
}

async fn an_answer_makes_all_recoveries_available_again<D: Backend>() {
    let (home, hand, participants) = (D::create().await, clock(), Participants::new());
    let db = D::connect(&home).await.with_clock(hand.clock());
    schema(&db).await;
    let shop = |crash: &Crash| open_shop_with(db.clone(), &participants, crash, |builder| builder.recoveries(1));
    shop(&Crash::never()).order("o").await;
    // Before the effects of `reserve`, `pay` and `ship`: each life but the first gets one answer.
    for boundary in [1, 3, 3] {
        let crash = Crash::at(boundary);
        assert!(crash.live(shop(&crash).settle(&hand)).await.is_none());
        hand.advance(MINUTE);
    }
    let last = shop(&Crash::never());
    last.settle(&hand).await;
    assert_eq!(last.status("o").await, Status::Completed);
    close(db).await;
    D::destroy(home).await;
}

async fn a_call_that_hangs_ends_with_its_timeout<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let limit = Duration::from_millis(20);
    let hangs = |_: Call<i64>| std::future::pending::<Result<Done<i64>, StepError>>();
    let remote = Step::new("hangs", hangs).timeout(limit).attempts(attempts(1));
    let local = Step::local("hangs", move |_, call| hangs(call).boxed()).timeout(limit).attempts(attempts(1));
    let undone = Step::new("fails", |_: Call<i64>| async { Err(StepError::unknown("lost")) })
        .compensation(hangs)
        .timeout(limit)
        .attempts(attempts(1))
        .compensation_attempts(attempts(1));
    let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
    let starters = [("remote", remote), ("local", local), ("undone", undone)]
        .map(|(name, step)| (name, builder.register(one(name, step)).unwrap()));
    let coordinator = builder.build();
    for (name, starter) in &starters {
        start(&db, starter, name, None).await;
    }
    coordinator.run_due().await.unwrap();
    let saga = async |id| coordinator.admin().get(&SagaId::new(id, id)).await.unwrap().unwrap();
    for id in ["remote", "local"] {
        let saga = saga(id).await;
        assert_eq!(saga.status, Status::Compensated, "{id}: there is nothing to undo");
        assert_eq!(saga.failure.unwrap().message, "no answer within 20ms", "{id}");
    }
    let saga = saga("undone").await;
    assert_eq!(saga.status, Status::Stuck);
    assert_eq!(saga.stuck.unwrap().message, "compensation failed after 1 attempts: no answer within 20ms");
    close(db).await;
    D::destroy(home).await;
}

async fn a_step_knows_attempt_deadline_trace_and_failure<D: Backend>() {
    type Told = (String, String, u32, i64, Duration, Option<TraceContext>, Option<String>);
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let (told, clock): (Arc<Mutex<Vec<Told>>>, _) = (Arc::default(), hand.clock());
    let note = {
        let told = told.clone();
        move |call: &Call<i64>| {
            let failure = call.failure().map(|failure| format!("{}: {}", failure.step, failure.message));
            let (left, trace) = (call.deadline().since(clock.now()), call.trace().cloned());
            let (key, saga) = (call.key().to_owned(), call.saga_id().to_owned());
            told.lock().unwrap().push((key, saga, call.attempt(), call.generation(), left, trace, failure));
            call.attempt()
        }
    };
    let (action, compensation) = (note.clone(), note.clone());
    let first = Step::new("first", move |call: Call<i64>| {
        let result = if action(&call) == 1 { Err(StepError::retriable("busy")) } else { Ok(call.done()) };
        async { result }
    })
    .compensation(move |call: Call<i64>| {
        compensation(&call);
        async { Ok(call.done()) }
    });
    let second = Step::new("second", move |call: Call<i64>| {
        note(&call);
        async { Err(StepError::terminal("no")) }
    });
    let steps = [first, second].map(|step| {
        let pause = Backoff::constant(Duration::from_millis(10));
        step.timeout(MINUTE).backoff(pause).attempts(attempts(2))
    });
    let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
    let starter = builder.register(Definition::new("d", 1, steps).unwrap()).unwrap();
    let coordinator = builder.build();
    let trace = TraceContext::new(PARENT, Some("a=b")).unwrap();
    start(&db, &starter, "s", Some(&trace)).await;
    for _ in 0..2 {
        coordinator.run_due().await.unwrap();
        hand.advance(Duration::from_millis(10));
    }
    let expected = |step: &str, attempt, generation, failure: Option<&str>| {
        let trace = Some(trace.clone());
        (format!("d:s:{step}"), "s".to_owned(), attempt, generation, MINUTE, trace, failure.map(str::to_owned))
    };
    let expected = [
        expected("first", 1, 1, None),
        expected("first", 2, 2, None),
        expected("second", 1, 2, None),
        expected("first", 1, 2, Some("second: no")),
    ];
    assert_eq!(*told.lock().unwrap(), expected);
    close(db).await;
    D::destroy(home).await;
}

/// From the start of a saga to another service's effect. Whatever looks for work does so once an
/// hour, so that each part must wake the next.
async fn nothing_waits_for_a_poll<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let outbox = Outbox::new(db.clone()).with_poll(HOUR);
    let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()).with_poll(HOUR).with_lease(3 * HOUR));
    let (seen, mut handled) = mpsc::channel(9);
    let handler = Inbox::new(db.clone(), "g").handler(move |_, event| {
        let seen = seen.clone();
        async move { Ok(seen.send(event.key().to_owned()).await?) }.boxed()
    });
    let member = bus.subscribe(Subscribe::new("g", ["Done"]).unwrap(), Arc::new(handler)).await.unwrap();
    // Once its first event was handled, the member has claimed its partitions and waits for news.
    bus.publish(&[event("Done", "first", 1)]).await.unwrap();
    assert_eq!(handled.recv().await.as_deref(), Some("first"));
    let relay = outbox.relay(bus.clone());

    let (gate, tried) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let opened = gate.clone();
    let step = Step::new("only", move |call: Call<i64>| {
        let (gate, again) = (opened.clone(), tried.fetch_add(1, Ordering::SeqCst) == 0);
        async move {
            if again {
                return Err(StepError::retriable("busy"));
            }
            gate.acquire().await.map_err(StepError::unknown)?.forget();
            let event = DomainEvent::new("Done", call.saga_id(), Timestamp::default(), &()).unwrap();
            Ok(call.done().event(event))
        }
    });
    let step = step.backoff(Backoff::constant(Duration::from_millis(5)));
    let (watched, mut asked) = watched(db.clone(), "SELECT status FROM buttress_saga");
    let mut builder = Coordinator::builder(watched, outbox.clone()).poll(HOUR);
    let starter = builder.register(one("d", step)).unwrap();
    let coordinator = builder.build();
    let running = coordinator.run();
    for id in ["a", "b"] {
        start(&db, &starter, id, None).await;
        let (waiting, saga) = (coordinator.clone(), starter.id(id));
        let waiter = tokio::spawn(async move { waiting.wait(&saga, HOUR).await.unwrap() });
        // The waiter has found the saga running, or is about to.
        asked.recv().await.unwrap();
        assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_saga WHERE status = 'running'").await, [1]);
        gate.add_permits(1);
        assert_eq!(handled.recv().await.as_deref(), Some(id));
        assert_eq!(waiter.await.unwrap().unwrap().status, Status::Completed);
    }
    running.shutdown().await;
    relay.shutdown().await;
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_coordinator_looks_for_sagas_of_other_processes<D: Backend>() {
    let home = D::create().await;
    let (db, other) = (D::connect(&home).await, D::connect(&home).await);
    let participants = Participants::new();
    schema(&db).await;
    let here = open_shop_with(db.clone(), &participants, &Crash::never(), |builder| builder);
    let there = open_shop_with(other.clone(), &participants, &Crash::never(), |builder| builder);
    let running = here.coordinator.run();
    there.order("o").await;
    // The waiter is in the process that does not run the saga.
    let saga = there.coordinator.wait(&there.orders.id("o"), MINUTE).await.unwrap().unwrap();
    assert_eq!(saga.status, Status::Completed);
    running.shutdown().await;
    close(db).await;
    close(other).await;
    D::destroy(home).await;
}

async fn sagas_of_several_definitions_share_a_coordinator<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let step = || Step::new("only", |call: Call<i64>| async { Ok(call.done()) });
    let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone())).concurrency(3);
    let first = builder.register(one("first", step())).unwrap();
    let second = builder.register(one("second", step())).unwrap();
    assert!(builder.register(one("first", step())).is_err(), "the same version twice");
    let newer = builder.register(Definition::new("first", 2, [step()]).unwrap()).unwrap();
    let coordinator = builder.build();
    for (starter, id) in [(&first, "a"), (&first, "b"), (&second, "c"), (&newer, "d")] {
        start(&db, starter, id, None).await;
    }
    assert_eq!(coordinator.run_due().await.unwrap(), 4);
    let admin = coordinator.admin();
    let mut versions = Vec::new();
    for (definition, id) in [("first", "a"), ("first", "b"), ("second", "c"), ("first", "d")] {
        let saga = admin.get(&SagaId::new(definition, id)).await.unwrap().unwrap();
        assert_eq!(saga.status, Status::Completed, "{id}");
        versions.push((saga.definition, saga.version));
    }
    let expected = [("first", 1), ("first", 1), ("second", 1), ("first", 2)];
    assert_eq!(versions, expected.map(|(name, version)| (name.to_owned(), version)));
    close(db).await;
    D::destroy(home).await;
}

#[tokio::test]
async fn a_coordinator_without_work_looks_for_it_as_often_as_set() {
    let poll = Duration::from_secs(10);
    let looks = pauses("SELECT MIN(wake_at) FROM", async |db| {
        let step = Step::new("only", |call: Call<i64>| async { Ok(call.done()) });
        let mut builder = Coordinator::builder(db.clone(), Outbox::new(db)).poll(poll);
        builder.register(one("d", step)).unwrap();
        builder.build().run()
    });
    assert!(looks.await.into_iter().all(|pause| pause >= poll));
}

#[tokio::test]
async fn an_idle_coordinator_reads_once_however_many_definitions_it_has() {
    let poll = Duration::from_secs(10);
    let looks = pauses("", async |db| {
        let step = || Step::new("only", |call: Call<i64>| async { Ok(call.done()) });
        let mut builder = Coordinator::builder(db.clone(), Outbox::new(db)).poll(poll);
        for name in ["a", "b", "c"] {
            builder.register(one(name, step())).unwrap();
        }
        builder.build().run()
    });
    // The first statement reports definitions that are not registered.
    let looks = looks.await;
    assert!(looks.iter().skip(1).all(|pause| *pause >= poll), "{looks:?}");
}
