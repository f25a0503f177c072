//! What operators decide: the definition's hooks, many sagas at once, and sagas that cannot be
//! read.

use std::time::Duration;

use buttress_durable::db::Arg;
use buttress_durable::saga::{
    Admin, AdminError, Call, Decision, Definition, Done, Filter, Status, Step, StepError, StepState,
};
use buttress_durable::{DomainEvent, Timestamp, Tx, args};
use futures_util::FutureExt;

use crate::saga_admin::{Sagas, fine, id};
use crate::support::{Backend, ints, on_both};

on_both!(
    a_decision_and_its_hook_are_one_transaction,
    a_hook_that_refuses_changes_nothing,
    an_admin_without_the_definition_refuses_what_needs_it,
    a_step_skipped_forward_is_undone_when_the_saga_turns_back,
    a_rejected_compensation_is_stuck_and_never_compensated,
    many_sagas_are_decided_about_by_filter,
    what_cannot_be_decided_about_is_named_and_the_others_are_done,
    a_saga_that_cannot_be_read_is_stuck_and_the_others_go_on,
    a_saga_that_cannot_be_read_can_be_closed,
);

fn refuses<D: Backend>(name: &str) -> Step<D, i64> {
    Step::new(name, |_: Call<i64>| async { Err(StepError::terminal("no")) })
}

/// Writes the decision into the table `decisions`, and publishes it.
async fn noted<D: Backend>(tx: &mut Tx<D>, mut decision: Decision<i64>, what: &str) -> Result<Done<i64>, StepError> {
    let way = if decision.is_compensating() { "back" } else { "forward" };
    let text = format!("{what} {} at {} {way} {:?}", decision.id(), decision.step(), decision.note());
    tx.execute("INSERT INTO decisions (entry) VALUES ($1)", args![&text]).await?;
    let event = DomainEvent::new("Decided", decision.saga_id(), Timestamp::default(), &text);
    decision.data = 8;
    Ok(decision.done().event(event.map_err(StepError::terminal)?))
}

/// Sagas that get stuck at the second step, and whose definition takes part in decisions.
async fn hooked<D: Backend>() -> Sagas<D> {
    let steps = [fine("pay").pivot(), refuses("ship").retriable()];
    let definition = Definition::new("d", 1, steps)
        .unwrap()
        .on_skip(|tx, decision| noted(tx, decision, "skip").boxed())
        .on_resolve(|tx, decision| noted(tx, decision, "resolve").boxed());
    let sagas = Sagas::defined(definition).await;
    sagas.set("CREATE TABLE decisions (entry TEXT NOT NULL)", &[]).await;
    sagas
}

async fn entries<D: Backend>(sagas: &Sagas<D>) -> Vec<String> {
    let rows: Vec<(String,)> = sagas.db.rows("SELECT entry FROM decisions ORDER BY entry", args![]).await.unwrap();
    rows.into_iter().map(|(entry,)| entry).collect()
}

async fn a_decision_and_its_hook_are_one_transaction<D: Backend>() {
    let sagas = hooked::<D>().await;
    sagas.start(["a", "b"]).await;
    sagas.coordinator.run_due().await.unwrap();
    sagas.admin().skip(&id("a")).await.unwrap();
    sagas.admin().resolve(&id("b"), "by hand").await.unwrap();
    let expected = ["resolve d:b at ship forward Some(\"by hand\")", "skip d:a at ship forward None"];
    assert_eq!(entries(&sagas).await, expected);
    assert_eq!(ints(&sagas.db, "SELECT COUNT(*) FROM buttress_outbox").await, [2], "its events are published");
    sagas.settle().await;
    let (a, b) = (sagas.saga("a").await, sagas.saga("b").await);
    assert_eq!((a.status, a.data.as_str(), a.steps[1].state), (Status::Completed, "8", StepState::Skipped));
    assert_eq!((b.status, b.data.as_str()), (Status::Resolved, "8"));
    sagas.end().await;
}

async fn a_hook_that_refuses_changes_nothing<D: Backend>() {
    let sagas = hooked::<D>().await;
    sagas.start(["a"]).await;
    sagas.coordinator.run_due().await.unwrap();
    // The hook's statement fails.
    sagas.set("DROP TABLE decisions", &[]).await;
    let refused = sagas.admin().skip(&id("a")).await;
    assert!(matches!(refused, Err(AdminError::Refused { id: saga, .. }) if saga == id("a")));
    assert_eq!(sagas.saga("a").await.status, Status::Stuck);
    sagas.admin().retry(&id("a")).await.unwrap();
    sagas.end().await;
}

async fn an_admin_without_the_definition_refuses_what_needs_it<D: Backend>() {
    let sagas = hooked::<D>().await;
    sagas.start(["a"]).await;
    sagas.coordinator.run_due().await.unwrap();
    let bare = Admin::new(sagas.db.clone());
    for refused in [bare.skip(&id("a")).await, bare.resolve(&id("a"), "").await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, AdminError::NoDefinition { version: 1, .. }), "{error}");
    }
    assert_eq!(sagas.saga("a").await.status, Status::Stuck);
    bare.retry(&id("a")).await.unwrap();
    // Without hooks there is nothing to miss.
    let plain = Sagas::<D>::of([fine("pay").pivot(), refuses("ship").retriable()]).await;
    plain.start(["a"]).await;
    plain.coordinator.run_due().await.unwrap();
    Admin::new(plain.db.clone()).skip(&id("a")).await.unwrap();
    sagas.end().await;
    plain.end().await;
}

async fn a_step_skipped_forward_is_undone_when_the_saga_turns_back<D: Backend>() {
    let first = fine("first").compensation(|mut call: Call<i64>| async move {
        call.data = -1;
        Ok(call.done())
    });
    let sagas = Sagas::<D>::of([first, refuses("second")]).await;
    sagas.start(["a"]).await;
    // Too many owners were lost before the first answer.
    sagas.set("UPDATE buttress_saga SET recoveries = 11", &[]).await;
    sagas.coordinator.run_due().await.unwrap();
    assert_eq!(sagas.saga("a").await.status, Status::Stuck);
    sagas.admin().skip(&id("a")).await.unwrap();
    sagas.settle().await;
    let saga = sagas.saga("a").await;
    assert_eq!((saga.status, saga.steps[0].state), (Status::Compensated, StepState::Undone));
    assert_eq!(saga.data, "-1", "the compensation was called");
    sagas.end().await;
}

async fn a_rejected_compensation_is_stuck_and_never_compensated<D: Backend>() {
    let first = fine("first").compensation(|_: Call<i64>| async { Err(StepError::terminal("shipped already")) });
    let sagas = Sagas::<D>::of([first, refuses("second")]).await;
    sagas.start(["a"]).await;
    sagas.settle().await;
    let stuck = sagas.saga("a").await.stuck.unwrap();
    assert_eq!((stuck.step.as_str(), stuck.message.as_str()), ("first", "compensation rejected: shipped already"));
    assert_eq!(sagas.admin().counts().await.unwrap().stuck, 1);
    sagas.end().await;
}

async fn many_sagas_are_decided_about_by_filter<D: Backend>() {
    let sagas = hooked::<D>().await;
    let (admin, hour) = (sagas.admin(), Duration::from_secs(3_600));
    sagas.start(["a", "b", "c", "d", "e"]).await;
    sagas.coordinator.run_due().await.unwrap();
    let all = Filter { limit: 2, ..Filter::default() };
    for other in [
        Filter { definition: Some("other".to_owned()), ..all.clone() },
        Filter { step: Some("pay".to_owned()), ..all.clone() },
        Filter { error: Some("100 %".to_owned()), ..all.clone() },
        Filter { error: Some("n_".to_owned()), ..all.clone() },
        Filter { updated_before: Some(sagas.hand.clock().now()), ..all.clone() },
    ] {
        assert_eq!(admin.resolve_all(&other, "").await.unwrap().done, 0, "{other:?}");
    }
    sagas.hand.advance(hour);
    let exact = Filter {
        definition: Some("d".to_owned()),
        step: Some("ship".to_owned()),
        error: Some("NO".to_owned()),
        updated_before: Some(sagas.hand.clock().now()),
        ..all
    };
    let bulk = admin.resolve_all(&exact, "lost").await.unwrap();
    assert_eq!((bulk.done, bulk.failed.len(), bulk.next), (2, 0, Some(id("b"))), "bounded by the limit");
    let bulk = admin.retry_all(&exact).await.unwrap();
    assert_eq!((bulk.done, bulk.next), (2, Some(id("d"))));
    let bulk = admin.skip_all(&exact).await.unwrap();
    assert_eq!((bulk.done, bulk.next), (1, None), "the last one");
    let statuses = |status| sagas.listed(Filter { status: Some(status), ..Filter::default() });
    assert_eq!(statuses(Status::Resolved).await, ["a", "b"]);
    assert_eq!(statuses(Status::Running).await, ["c", "d", "e"]);
    assert_eq!(entries(&sagas).await.len(), 3, "hooks run for each");
    sagas.end().await;
}

async fn what_cannot_be_decided_about_is_named_and_the_others_are_done<D: Backend>() {
    let sagas = hooked::<D>().await;
    sagas.start(["a", "b", "c"]).await;
    sagas.coordinator.run_due().await.unwrap();
    sagas.set("UPDATE buttress_saga SET data = '\"x\"' WHERE own_id = 'b'", &[]).await;
    let bulk = sagas.admin().skip_all(&Filter::default()).await.unwrap();
    assert_eq!((bulk.done, bulk.next.is_none()), (2, true));
    let [(failed, AdminError::Refused { error, .. })] = &bulk.failed[..] else { panic!("{bulk:?}") };
    assert_eq!(*failed, id("b"));
    assert!(error.to_string().contains("does not fit"), "{error}");
    sagas.end().await;
}

async fn a_saga_that_cannot_be_read_is_stuck_and_the_others_go_on<D: Backend>() {
    let sagas = Sagas::<D>::of([fine("only")]).await;
    sagas.start(["a", "b", "c"]).await;
    let set = "UPDATE buttress_saga SET trace = $1 WHERE own_id = 'b'";
    sagas.set(set, &[Arg::Text("{\"traceparent\":\"01-x\"}")]).await;
    assert_eq!(sagas.coordinator.run_due().await.unwrap(), 2);
    let statuses = ["a", "b", "c"].map(|name| sagas.saga(name));
    let statuses: Vec<_> = futures_util::future::join_all(statuses).await.iter().map(|saga| saga.status).collect();
    assert_eq!(statuses, [Status::Completed, Status::Stuck, Status::Completed]);
    assert_eq!(sagas.admin().counts().await.unwrap().stuck, 1);
    let filter = Filter { status: Some(Status::Stuck), error: Some("cannot be read".to_owned()), ..Filter::default() };
    let listed = sagas.admin().list(&filter).await.unwrap();
    let reason = &listed[0].stuck.as_ref().unwrap().message;
    assert!(listed[0].id == "b" && reason.starts_with("cannot be read: unreadable trace"), "{listed:?}");
    assert!(matches!(sagas.admin().retry(&id("b")).await, Err(AdminError::Db(_))), "it still cannot be read");
    // Repaired by hand, it goes on.
    sagas.set("UPDATE buttress_saga SET trace = NULL", &[]).await;
    sagas.admin().retry(&id("b")).await.unwrap();
    sagas.settle().await;
    assert_eq!(sagas.saga("b").await.status, Status::Completed);
    sagas.end().await;
}

async fn a_saga_that_cannot_be_read_can_be_closed<D: Backend>() {
    let sagas = hooked::<D>().await;
    sagas.start(["a"]).await;
    sagas.set("UPDATE buttress_saga SET failure = 'x'", &[]).await;
    sagas.coordinator.run_due().await.unwrap();
    sagas.admin().resolve(&id("a"), "gone").await.unwrap();
    let saga = sagas.saga("a").await;
    assert_eq!((saga.status, saga.stuck.unwrap().note.as_deref()), (Status::Resolved, Some("gone")));
    assert!(entries(&sagas).await.is_empty());
    sagas.end().await;
}
