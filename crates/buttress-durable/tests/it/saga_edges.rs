//! Sagas at their edges: deadlines before the first call, outages of hours, panics at any point,
//! clocks that are ahead, versions that are gone.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::saga::{Call, Coordinator, Definition, Done, ErrorKind, Status, Step, StepError};
use buttress_durable::{DbError, Outbox, args};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::saga_admin::{Sagas, fine, id};
use crate::support::{Backend, eventually, execute, ints, on_both};

on_both!(
    what_was_stored_with_the_saga_is_undone_although_no_step_ran,
    a_dependency_down_for_minutes_or_hours_makes_no_saga_stuck,
    past_the_pivot_a_saga_waits_until_the_outage_is_over,
    a_local_step_waits_for_its_database_and_spends_no_attempt,
    a_panic_before_the_first_await_is_like_any_other,
    the_saga_that_was_due_first_is_claimed_first_whatever_its_definition,
    a_lease_of_a_clock_that_was_ahead_is_not_respected,
    sagas_of_versions_that_nobody_registers_are_counted,
);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const ONCE: NonZeroU32 = NonZeroU32::MIN;

async fn what_was_stored_with_the_saga_is_undone_although_no_step_ran<D: Backend>() {
    let undone = Arc::new(AtomicU32::new(0));
    let count = undone.clone();
    let create = Step::local("create", |_, call: Call<i64>| async { Ok(call.done()) }.boxed()).local_compensation(
        move |_, call: Call<i64>| {
            assert_eq!(call.failure().unwrap().message, "the saga's deadline has passed");
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok(call.done()) }.boxed()
        },
    );
    let remote = Step::new("pay", |_: Call<i64>| async { panic!("the deadline has passed") }).pivot();
    let sagas = Sagas::<D>::defined(Definition::new("d", 1, [create, remote]).unwrap().deadline(MINUTE)).await;
    sagas.start(["s"]).await;
    sagas.hand.advance(MINUTE);
    sagas.coordinator.run_due().await.unwrap();
    assert_eq!((sagas.saga("s").await.status, undone.load(Ordering::SeqCst)), (Status::Compensated, 1));
    sagas.end().await;
}

/// A participant that is down until its switch is set. Its calls are not sent.
fn until_up<D: Backend>(
    up: &Arc<AtomicBool>,
) -> impl Fn(Call<i64>) -> BoxFuture<'static, Answer> + Send + Sync + use<D> {
    let up = up.clone();
    move |call| {
        let up = up.load(Ordering::SeqCst);
        async move { if up { Ok(call.done()) } else { Err(StepError::not_sent("circuit open").after(SECOND)) } }.boxed()
    }
}

type Answer = Result<Done<i64>, StepError>;

async fn a_dependency_down_for_minutes_or_hours_makes_no_saga_stuck<D: Backend>() {
    for outage in [12 * MINUTE, 3 * HOUR] {
        let up = Arc::new(AtomicBool::new(false));
        let reserve = fine("reserve").compensation(until_up::<D>(&up)).compensation_attempts(ONCE);
        let pay = Step::new("pay", |_: Call<i64>| async { Err(StepError::terminal("declined")) }).pivot();
        let sagas = Sagas::<D>::of([reserve, pay]).await;
        sagas.start(["s"]).await;
        let since = sagas.hand.clock().now();
        while sagas.hand.clock().now().since(since) < outage {
            sagas.coordinator.run_due().await.unwrap();
            // The default backoff of a compensation ends at a minute.
            sagas.hand.advance(MINUTE);
        }
        let saga = sagas.saga("s").await;
        let reserve = &saga.steps[0];
        assert_eq!((saga.status, reserve.attempts), (Status::Compensating, 0));
        assert!(u64::from(reserve.refused) >= outage.as_secs() / 60 - 1, "{reserve:?}");
        assert_eq!(reserve.error.as_deref(), Some("circuit open"));
        up.store(true, Ordering::SeqCst);
        sagas.settle().await;
        assert_eq!(sagas.saga("s").await.status, Status::Compensated, "by itself");
        sagas.end().await;
    }
}

async fn past_the_pivot_a_saga_waits_until_the_outage_is_over<D: Backend>() {
    let up = Arc::new(AtomicBool::new(false));
    let ship = Step::new("ship", until_up::<D>(&up)).attempts(ONCE).backoff(Backoff::constant(MINUTE)).retriable();
    let steps = [fine("pay").pivot(), ship];
    let sagas = Sagas::<D>::defined(Definition::new("d", 1, steps).unwrap().deadline(SECOND)).await;
    sagas.start(["s"]).await;
    for _ in 0..60 {
        sagas.coordinator.run_due().await.unwrap();
        sagas.hand.advance(MINUTE);
    }
    let saga = sagas.saga("s").await;
    assert_eq!((saga.status, saga.steps[1].attempts), (Status::Running, 0));
    up.store(true, Ordering::SeqCst);
    sagas.settle().await;
    assert_eq!(sagas.saga("s").await.status, Status::Completed);
    sagas.end().await;
}

async fn a_local_step_waits_for_its_database_and_spends_no_attempt<D: Backend>() {
    const FAILURES: u32 = 20;
    let tries = Arc::new(AtomicU32::new(0));
    let count = tries.clone();
    let local = Step::local("local", move |_, call: Call<i64>| {
        let busy = count.fetch_add(1, Ordering::SeqCst) < FAILURES;
        async move { if busy { Err(DbError::Busy(5 * SECOND).into()) } else { Ok(call.done()) } }.boxed()
    });
    let sagas = Sagas::<D>::of([local.attempts(ONCE)]).await;
    sagas.start(["s"]).await;
    sagas.settle().await;
    assert_eq!((sagas.saga("s").await.status, tries.load(Ordering::SeqCst)), (Status::Completed, FAILURES + 1));
    sagas.end().await;
}

async fn a_panic_before_the_first_await_is_like_any_other<D: Backend>() {
    fn bug<T>(_: &Call<i64>) -> T {
        std::panic::resume_unwind(Box::new("a bug"))
    }
    let remote = || Step::<D, i64>::new("s", |call| bug::<std::future::Ready<Answer>>(&call));
    let local = || Step::<D, i64>::local("s", |_, call| bug(&call));
    let undone = |step: Step<D, i64>| {
        let no = Step::new("no", |_: Call<i64>| async { Err(StepError::terminal("no")) });
        [step.compensation_attempts(ONCE), no]
    };
    let cases: [(Vec<Step<D, i64>>, Status); 4] = [
        (vec![remote().attempts(ONCE)], Status::Compensated),
        (vec![local().attempts(ONCE)], Status::Compensated),
        (undone(fine("s").compensation(|call| bug::<std::future::Ready<Answer>>(&call))).into(), Status::Stuck),
        (undone(fine("s").local_compensation(|_, call| bug(&call))).into(), Status::Stuck),
    ];
    for (steps, status) in cases {
        let sagas = Sagas::<D>::of(steps).await;
        sagas.start(["s"]).await;
        sagas.settle().await;
        let saga = sagas.saga("s").await;
        assert_eq!((saga.status, saga.steps[0].error.as_deref()), (status, Some("the step panicked")));
        sagas.end().await;
    }
}

async fn the_saga_that_was_due_first_is_claimed_first_whatever_its_definition<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let definition = |name: &str| {
        let order = order.clone();
        let note = move |call: Call<i64>| {
            order.lock().unwrap().push(call.id().to_string());
            async { Ok(call.done()) }
        };
        Definition::new(name, 1, [Step::new("note", note)]).unwrap()
    };
    let mut builder = Coordinator::builder(sagas.db.clone(), Outbox::new(sagas.db.clone())).concurrency(1);
    let new = builder.register(definition("new")).unwrap();
    let old = builder.register(definition("old")).unwrap();
    let coordinator = builder.build();
    for (starter, id) in [(&old, "1"), (&new, "2"), (&new, "3"), (&old, "4"), (&new, "5")] {
        let mut tx = sagas.db.begin().await.unwrap();
        starter.start(&mut tx, id, &1, None).await.unwrap();
        tx.commit().await.unwrap();
        sagas.hand.advance(SECOND);
    }
    assert_eq!(coordinator.run_due().await.unwrap(), 5);
    assert_eq!(*order.lock().unwrap(), ["old:1", "new:2", "new:3", "old:4", "new:5"]);
    sagas.end().await;
}

async fn a_lease_of_a_clock_that_was_ahead_is_not_respected<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    sagas.start(["s"]).await;
    // The coordinator's lease is 30 s.
    let owned = "UPDATE buttress_saga SET owner = 'other', generation = generation + 1, expires_at = $1";
    let until = sagas.hand.clock().now().plus(30 * SECOND);
    sagas.set(owned, args![until]).await;
    assert_eq!(sagas.coordinator.run_due().await.unwrap(), 0, "a lease that began now");
    sagas.set(owned, args![until.plus(30 * SECOND)]).await;
    assert_eq!(sagas.coordinator.run_due().await.unwrap(), 0, "or while this one waited to claim");
    sagas.set(owned, args![until.plus(HOUR)]).await;
    assert_eq!(sagas.coordinator.run_due().await.unwrap(), 1, "no lease is that long");
    assert_eq!(sagas.saga("s").await.status, Status::Completed);
    sagas.end().await;
}

async fn sagas_of_versions_that_nobody_registers_are_counted<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    sagas.start(["s", "t"]).await;
    let mut builder = Coordinator::builder(sagas.db.clone(), Outbox::new(sagas.db.clone()));
    builder.register(Definition::new("d", 4, [fine::<D>("a")]).unwrap()).unwrap();
    let newer = builder.build();
    let unregistered = async || newer.admin().counts().await.unwrap().unregistered;
    assert_eq!(unregistered().await, 2);
    assert_eq!(sagas.admin().counts().await.unwrap().unregistered, 0, "registered here");
    sagas.settle().await;
    assert_eq!(unregistered().await, 0, "they have ended");
    sagas.end().await;
}

/// The connections refuse to write, as those to a full disk or to a replica do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_is_no_recovery() {
    type D = sqlx::Sqlite;
    async fn set(db: &buttress_durable::Db<D>, pragma: &'static str) {
        let all = (0..db.pool().options().get_max_connections()).map(|_| db.pool().acquire());
        for mut conn in futures_util::future::try_join_all(all).await.unwrap() {
            execute::<D>(&mut conn, pragma, &[]).await;
        }
    }
    let db = Arc::new(Mutex::new(None::<buttress_durable::Db<D>>));
    let held = db.clone();
    let fails = Step::new("fails", move |call: Call<i64>| {
        let db = held.lock().unwrap().take();
        async move {
            if let Some(db) = db {
                set(&db, "PRAGMA query_only = 1").await;
            }
            Ok(call.done())
        }
    });
    let sagas = Sagas::<D>::of([fails]).await;
    *db.lock().unwrap() = Some(sagas.db.clone());
    sagas.start(["s"]).await;
    let run = tokio::spawn({
        let coordinator = sagas.coordinator.clone();
        async move { coordinator.run_due().await }
    });
    eventually("the outage", || async { db.lock().unwrap().is_none() }).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    set(&sagas.db, "PRAGMA query_only = 0").await;
    run.await.unwrap().unwrap();
    assert_eq!(ints(&sagas.db, "SELECT recoveries FROM buttress_saga WHERE owner IS NULL").await, [0]);
    sagas.settle().await;
    assert_eq!(sagas.saga("s").await.status, Status::Completed);
    assert_eq!(ints(&sagas.db, "SELECT recoveries FROM buttress_saga").await, [0]);
    sagas.end().await;
}

#[test]
fn what_is_not_sent_says_so() {
    let error = StepError::not_sent("circuit open");
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotSent, "circuit open"));
    assert_eq!(id("s").to_string(), "d:s");
}
