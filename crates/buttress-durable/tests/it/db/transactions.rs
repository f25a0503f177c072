use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{EventBus, LogBus, Subscribe};
use buttress_durable::db::DbErrorKind;
use buttress_durable::{DbError, Inbox, args};
use futures_util::FutureExt;
use sqlx::Acquire;

use super::{create_notes, note, notes, works};
use crate::support::{Backend, close, event, eventually, ints, on_both};

on_both!(
    a_transaction_with_a_failed_statement_is_not_committed,
    a_failure_that_a_savepoint_undid_is_no_failure,
    a_nested_transaction_is_undone_or_kept_with_its_outer_one,
    an_event_whose_handler_swallowed_a_failure_is_not_acknowledged,
);

async fn a_transaction_with_a_failed_statement_is_not_committed<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    note(&db, "a").await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO notes (id) VALUES ('b')", args![]).await.unwrap();
    tx.execute("INSERT INTO notes (id) VALUES ('a')", args![]).await.unwrap_err();
    tx.execute("INSERT INTO notes (id) VALUES ('c')", args![]).await.unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert!(
        matches!(&error, DbError::Aborted(Some(failed)) if failed.to_string().contains("VALUES ('a')")),
        "{error:?}"
    );
    assert_eq!(error.kind(), DbErrorKind::Data, "that of the first failure");
    assert_eq!(notes(&db).await, ["a"]);
    works(&db).await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_failure_that_a_savepoint_undid_is_no_failure<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO notes (id) VALUES ('a')", args![]).await.unwrap();
    tx.execute("SAVEPOINT before", args![]).await.unwrap();
    tx.execute("INSERT INTO notes (id) VALUES ('a')", args![]).await.unwrap_err();
    tx.execute("rollback to savepoint before", args![]).await.unwrap();
    tx.execute("INSERT INTO notes (id) VALUES ('b')", args![]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&db).await, ["a", "b"]);
    works(&db).await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_nested_transaction_is_undone_or_kept_with_its_outer_one<D: Backend>()
where
    for<'a> &'a mut D::Connection: Acquire<'a, Database = D>,
{
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    let mut tx = db.begin().await.unwrap();
    let mut nested = Acquire::begin(&mut *tx).await.unwrap();
    D::execute(&mut nested, "INSERT INTO notes (id) VALUES ('kept')", &[]).await.unwrap();
    nested.commit().await.unwrap();
    let mut nested = Acquire::begin(&mut *tx).await.unwrap();
    D::execute(&mut nested, "INSERT INTO notes (id) VALUES ('undone')", &[]).await.unwrap();
    D::execute(&mut nested, "INSERT INTO notes (id) VALUES ('undone')", &[]).await.unwrap_err();
    drop(nested);
    tx.commit().await.unwrap();
    assert_eq!(notes(&db).await, ["kept"]);

    let mut tx = db.begin().await.unwrap();
    D::execute(&mut tx, "INSERT INTO notes (id) VALUES ('open')", &[]).await.unwrap();
    std::mem::forget(Acquire::begin(&mut *tx).await.unwrap());
    assert!(tx.commit().await.is_err(), "only the nested one would be committed");
    assert_eq!(notes(&db).await, ["kept"]);
    works(&db).await;
    close(db).await;
    D::destroy(home).await;
}

async fn an_event_whose_handler_swallowed_a_failure_is_not_acknowledged<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    note(&db, "there").await.unwrap();
    let handler = Inbox::new(db.clone(), "g").handler(|tx, event| {
        async move {
            tx.execute("INSERT INTO notes (id) VALUES ($1)", args![event.key()]).await?;
            let _ = tx.execute("INSERT INTO notes (id) VALUES ('there')", args![]).await;
            Ok(())
        }
        .boxed()
    });
    let bus = LogBus::new(db.clone());
    let subscribe = Subscribe::new("g", ["T"]).unwrap();
    let subscribe = subscribe.attempts(NonZeroU32::MIN).backoff(Backoff::constant(Duration::from_millis(1)));
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    bus.publish(&[event("T", "new", 1)]).await.unwrap();
    eventually("it is a dead letter", || async { bus.dead_letters("g", "T", 1).await.unwrap().len() == 1 }).await;
    let letter = bus.dead_letters("g", "T", 1).await.unwrap().remove(0);
    assert!(letter.cause.error.contains("a statement in it had failed"), "{}", letter.cause.error);
    assert_eq!(notes(&db).await, ["there"]);
    assert_eq!(ints(&db, "SELECT COUNT(*) FROM buttress_inbox").await, [0], "a redriven letter is handled");
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}
