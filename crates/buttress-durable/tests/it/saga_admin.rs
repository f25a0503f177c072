//! What an operator sees of sagas, and what becomes of those that cannot go on.

use std::time::Duration;

use buttress_durable::db::Arg;
use buttress_durable::saga::{
    Admin, AdminError, Call, Coordinator, Definition, Filter, SagaId, SagaView, Starter, Status, Step, StepError,
    StepState,
};
use buttress_durable::{Db, DomainEvent, ManualClock, Outbox, Timestamp, TraceContext};

use crate::support::{Backend, clock, close, execute, ints, on_both};

on_both!(
    every_status_is_counted_as_itself,
    sagas_are_listed_in_pages_in_both_directions,
    a_saga_is_shown_as_it_is,
    only_sagas_that_have_ended_are_purged_with_their_steps,
    a_step_past_the_pivot_can_be_skipped_and_the_saga_goes_on,
    data_that_does_not_fit_makes_a_saga_stuck,
    an_event_with_a_trace_of_its_own_keeps_it,
);

const STEP: Duration = Duration::from_secs(1);

/// Sagas of one definition, `d`, and their coordinator.
pub(crate) struct Sagas<D: Backend> {
    home: D::Home,
    pub(crate) hand: ManualClock,
    pub(crate) db: Db<D>,
    pub(crate) coordinator: Coordinator<D>,
    pub(crate) starter: Starter<D, i64>,
}

impl<D: Backend> Sagas<D> {
    pub(crate) async fn of(steps: impl IntoIterator<Item = Step<D, i64>>) -> Self {
        Self::defined(Definition::new("d", 3, steps).unwrap()).await
    }

    pub(crate) async fn defined(definition: Definition<D, i64>) -> Self {
        let (home, hand) = (D::create().await, clock());
        let db = D::connect(&home).await.with_clock(hand.clock());
        let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
        let starter = builder.register(definition).unwrap();
        Self { home, hand, db, coordinator: builder.build(), starter }
    }

    pub(crate) async fn saga(&self, name: &str) -> SagaView {
        self.admin().get(&id(name)).await.unwrap().unwrap()
    }

    /// Runs what is due and moves the clock to what is due next, until all are at rest.
    pub(crate) async fn settle(&self) {
        loop {
            self.coordinator.run_due().await.unwrap();
            let sql = "SELECT MIN(wake_at) FROM buttress_saga WHERE status IN ('running', 'compensating')";
            let due: Option<(Option<i64>,)> = self.db.row(sql, &[]).await.unwrap();
            let Some(due) = due.and_then(|(due,)| due) else { return };
            let now = self.hand.clock().now();
            self.hand.advance(Timestamp::from_millis(due).since(now).max(Duration::from_millis(1)));
        }
    }

    pub(crate) fn admin(&self) -> Admin<D> {
        self.coordinator.admin()
    }

    pub(crate) async fn start(&self, ids: impl IntoIterator<Item = &str>) {
        let trace = TraceContext::new(&parent('a'), None).unwrap();
        let mut tx = self.db.begin().await.unwrap();
        for id in ids {
            assert!(self.starter.start(&mut tx, id, &7, Some(&trace)).await.unwrap());
        }
        tx.commit().await.unwrap();
    }

    pub(crate) async fn set(&self, sql: &'static str, args: &[Arg<'_>]) {
        let mut tx = self.db.begin().await.unwrap();
        execute::<D>(&mut tx, sql, args).await;
        tx.commit().await.unwrap();
    }

    pub(crate) async fn listed(&self, filter: Filter) -> Vec<String> {
        self.admin().list(&filter).await.unwrap().into_iter().map(|saga| saga.id).collect()
    }

    pub(crate) async fn end(self) {
        close(self.db).await;
        D::destroy(self.home).await;
    }
}

fn parent(digit: char) -> String {
    format!("00-{}-b7ad6b7169203331-01", digit.to_string().repeat(32))
}

pub(crate) fn fine<D: Backend>(name: &str) -> Step<D, i64> {
    Step::new(name, |call: Call<i64>| async { Ok(call.done()) })
}

pub(crate) fn id(id: &str) -> SagaId {
    SagaId::new("d", id)
}

const SET_STATUS: &str = "UPDATE buttress_saga SET status = $1 WHERE own_id LIKE $2";

async fn every_status_is_counted_as_itself<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    sagas.start(["r1", "r2", "r3", "c1", "c2", "s1", "e1", "e2", "e3", "e4"]).await;
    for (status, ids) in [("compensating", "c%"), ("stuck", "s%"), ("completed", "e%")] {
        sagas.set(SET_STATUS, &[Arg::Text(status), Arg::Text(ids)]).await;
    }
    let counts = sagas.admin().counts().await.unwrap();
    assert_eq!((counts.running, counts.compensating, counts.stuck), (3, 2, 1));
    for (status, ids) in [(Status::Running, 3), (Status::Compensating, 2), (Status::Stuck, 1), (Status::Completed, 4)] {
        assert_eq!(sagas.listed(Filter { status: Some(status), ..Filter::default() }).await.len(), ids, "{status}");
    }
    sagas.end().await;
}

async fn sagas_are_listed_in_pages_in_both_directions<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    sagas.start(["d", "a", "c", "b", "e"]).await;
    let page = |after: &str, descending| {
        let after = Some(after).filter(|after| !after.is_empty()).map(id);
        Filter { after, descending, limit: 2, ..Filter::default() }
    };
    assert_eq!(sagas.listed(Filter::default()).await, ["a", "b", "c", "d", "e"]);
    assert_eq!(sagas.listed(page("", false)).await, ["a", "b"]);
    assert_eq!(sagas.listed(page("b", false)).await, ["c", "d"]);
    assert_eq!(sagas.listed(page("d", false)).await, ["e"]);
    assert_eq!(sagas.listed(page("", true)).await, ["e", "d"]);
    assert_eq!(sagas.listed(page("d", true)).await, ["c", "b"]);
    assert_eq!(sagas.listed(page("b", true)).await, ["a"]);
    assert_eq!(sagas.listed(Filter { limit: 0, ..Filter::default() }).await, Vec::<String>::new());
    sagas.end().await;
}

async fn a_saga_is_shown_as_it_is<D: Backend>() {
    let fails = Step::new("fails", |_: Call<i64>| async { Err(StepError::unknown("lost").after(5 * STEP)) });
    let sagas = Sagas::<D>::of([fine("works"), fails]).await;
    let started = sagas.hand.clock().now();
    sagas.start(["s"]).await;
    sagas.hand.advance(STEP);
    sagas.coordinator.run_due().await.unwrap();
    let (saga, ran) = (sagas.admin().get(&id("s")).await.unwrap().unwrap(), started.plus(STEP));
    assert_eq!((saga.id.as_str(), saga.definition.as_str(), saga.version), ("s", "d", 3));
    assert_eq!((saga.status, saga.is_at_rest(), saga.data.as_str()), (Status::Running, false, "7"));
    assert_eq!((saga.created_at, saga.updated_at, saga.wake_at), (started, ran, ran.plus(5 * STEP)));
    let [works, fails] = &saga.steps[..] else { panic!("{saga:?}") };
    assert_eq!((works.name.as_str(), works.state, works.attempts), ("works", StepState::Done, 0));
    assert_eq!((works.uncertain, works.started_at, works.ended_at), (false, ran, Some(ran)));
    assert_eq!((fails.name.as_str(), fails.state, fails.attempts), ("fails", StepState::Waiting, 1));
    assert_eq!((fails.uncertain, fails.error.as_deref(), fails.ended_at), (true, Some("lost"), None));
    sagas.set(SET_STATUS, &[Arg::Text("stuck"), Arg::Text("s")]).await;
    assert!(sagas.admin().get(&id("s")).await.unwrap().unwrap().is_at_rest());
    assert!(sagas.admin().get(&id("unknown")).await.unwrap().is_none());
    sagas.end().await;
}

async fn only_sagas_that_have_ended_are_purged_with_their_steps<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    let statuses = ["running", "compensating", "stuck", "completed", "compensated", "resolved"];
    sagas.start(statuses).await;
    sagas.coordinator.run_due().await.unwrap();
    for status in statuses {
        sagas.set(SET_STATUS, &[Arg::Text(status), Arg::Text(status)]).await;
    }
    let now = sagas.hand.clock().now();
    assert_eq!(sagas.admin().purge(now).await.unwrap(), 0, "not what ended at that very moment");
    assert_eq!(sagas.admin().purge(now.plus(Duration::from_millis(1))).await.unwrap(), 3);
    assert_eq!(sagas.listed(Filter::default()).await, ["compensating", "running", "stuck"]);
    assert_eq!(ints(&sagas.db, "SELECT COUNT(*) FROM buttress_saga_step").await, [3]);
    sagas.end().await;
}

async fn a_step_past_the_pivot_can_be_skipped_and_the_saga_goes_on<D: Backend>() {
    let fails = Step::new("fails", |_: Call<i64>| async { Err(StepError::terminal("no")) }).retriable();
    let sagas = Sagas::<D>::of([fine("pay").pivot(), fails, fine("last").retriable()]).await;
    sagas.start(["s"]).await;
    sagas.coordinator.run_due().await.unwrap();
    let admin = sagas.admin();
    assert!(admin.get(&id("s")).await.unwrap().unwrap().is_at_rest());
    admin.skip(&id("s")).await.unwrap();
    assert!(matches!(admin.skip(&id("s")).await, Err(AdminError::NotStuck(other)) if other == id("s")));
    assert_eq!(sagas.coordinator.run_due().await.unwrap(), 1, "at once");
    let saga = admin.get(&id("s")).await.unwrap().unwrap();
    assert_eq!((saga.status, saga.stuck), (Status::Completed, None));
    let states: Vec<_> = saga.steps.iter().map(|step| (step.name.as_str(), step.state)).collect();
    assert_eq!(states, [("pay", StepState::Done), ("fails", StepState::Skipped), ("last", StepState::Done)]);
    sagas.end().await;
}

async fn data_that_does_not_fit_makes_a_saga_stuck<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("a")]).await;
    sagas.start(["s"]).await;
    sagas.set("UPDATE buttress_saga SET data = $1", &[Arg::Text("\"seven\"")]).await;
    sagas.coordinator.run_due().await.unwrap();
    let saga = sagas.admin().get(&id("s")).await.unwrap().unwrap();
    assert_eq!((saga.status, saga.data.as_str()), (Status::Stuck, "\"seven\""));
    let stuck = saga.stuck.unwrap();
    assert!(stuck.step == "a" && stuck.message.starts_with("the saga's data does not fit"), "{stuck:?}");
    // Repaired by hand, it goes on.
    sagas.set("UPDATE buttress_saga SET data = $1", &[Arg::Text("8")]).await;
    sagas.admin().retry(&id("s")).await.unwrap();
    sagas.coordinator.run_due().await.unwrap();
    assert_eq!(sagas.admin().get(&id("s")).await.unwrap().unwrap().status, Status::Completed);
    sagas.end().await;
}

async fn an_event_with_a_trace_of_its_own_keeps_it<D: Backend>() {
    let event = |trace: Option<&str>| {
        let event = DomainEvent::new("T", "k", Timestamp::default(), &()).unwrap();
        trace.map_or(event.clone(), |trace| event.with_trace(TraceContext::new(trace, None).unwrap()))
    };
    let step = Step::new("a", move |call: Call<i64>| async move {
        Ok(call.done().event(event(None)).event(event(Some(&parent('b')))))
    });
    let sagas = Sagas::<D>::of([step]).await;
    sagas.start(["s"]).await;
    sagas.coordinator.run_due().await.unwrap();
    let mut conn = sagas.db.pool().acquire().await.unwrap();
    let rows = D::fetch(&mut conn, "SELECT payload FROM buttress_outbox ORDER BY seq", &[]).await.unwrap();
    drop(conn);
    let events = rows.iter().map(|row| serde_json::from_slice::<DomainEvent>(&D::blob(row, 0).unwrap()).unwrap());
    let traces: Vec<_> = events.map(|event| event.trace().unwrap().traceparent().to_owned()).collect();
    assert_eq!(traces, [parent('a'), parent('b')]);
    sagas.end().await;
}
