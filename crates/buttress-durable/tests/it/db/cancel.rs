use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use buttress_durable::{Db, DbError, args};

use super::{create_notes, notes, works};
use crate::support::{Backend, close, on_both};

on_both!(
    a_transaction_dropped_at_any_await_is_whole_or_undone_and_the_pool_serves_on,
    a_read_dropped_at_any_await_leaves_the_pool_in_order,
);

/// Drops the future instead of polling it once more.
async fn polled<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn write<D: Backend>(db: &Db<D>, n: usize) -> Result<(), DbError> {
    let mut tx = db.begin().await?;
    for half in ["a", "b"] {
        tx.execute("INSERT INTO notes (id) VALUES ($1)", args![&format!("{n}{half}")]).await?;
    }
    tx.commit().await
}

async fn a_transaction_dropped_at_any_await_is_whole_or_undone_and_the_pool_serves_on<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    let mut complete = 0;
    // How often a future is polled varies with the threads behind it.
    for n in 0.. {
        if polled(n, write(&db, n)).await.transpose().unwrap().is_some() {
            complete += 1;
        }
        if complete == 10 {
            break;
        }
        let (mut tx, sql) = (db.begin().await.unwrap(), "SELECT COUNT(*) FROM notes");
        let (rows,): (i64,) = tx.row(sql, args![]).await.unwrap().unwrap();
        assert!(rows % 2 == 0, "half a transaction after {n} polls");
        tx.commit().await.unwrap();
    }
    assert!(notes(&db).await.len() >= 20);
    works(&db).await;
    close(db).await;
    D::destroy(home).await;
}

async fn a_read_dropped_at_any_await_leaves_the_pool_in_order<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    write(&db, 0).await.unwrap();
    let mut complete = 0;
    for n in 0.. {
        let read = db.rows::<(String,)>("SELECT id FROM notes", args![]);
        if let Some(rows) = polled(n, read).await {
            assert_eq!(rows.unwrap().len(), 2);
            complete += 1;
        }
        if complete == 10 {
            break;
        }
    }
    works(&db).await;
    close(db).await;
    D::destroy(home).await;
}
