use std::sync::Arc;
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{Delivery, EventBus, HandlerError, LogBus, Subscribe};
use buttress_durable::db::Arg;
use buttress_durable::{Db, Inbox};
use futures_util::FutureExt;
use uuid::Uuid;

use crate::support::{Backend, clock, close, event, eventually, execute, ints, on_both};

on_both!(
    every_consumer_handles_an_event_once,
    ids_are_purged_by_consumer_and_by_age,
    a_handler_that_fails_leaves_nothing_behind,
);

async fn claim<D: Backend>(db: &Db<D>, inbox: &Inbox<D>, id: Uuid) -> bool {
    let mut tx = db.begin().await.unwrap();
    let new = inbox.claim(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    new
}

async fn every_consumer_handles_an_event_once<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let (one, other) = (Inbox::new(db.clone(), "one"), Inbox::new(db.clone(), "other"));
    let (id, later) = (Uuid::now_v7(), Uuid::now_v7());
    assert!(claim(&db, &one, id).await && claim(&db, &other, id).await);
    assert!(!claim(&db, &one, id).await && !claim(&db, &other.clone(), id).await);
    assert!(claim(&db, &one, later).await, "each event by itself");
    let mut tx = db.begin().await.unwrap();
    assert!(other.claim(&mut tx, later).await.unwrap());
    tx.rollback().await.unwrap();
    assert!(claim(&db, &other, later).await, "what was rolled back is not handled");
    close(db).await;
    D::destroy(home).await;
}

async fn ids_are_purged_by_consumer_and_by_age<D: Backend>() {
    let (home, hand) = (D::create().await, clock());
    let db = D::connect(&home).await.with_clock(hand.clock());
    let (one, other) = (Inbox::new(db.clone(), "one"), Inbox::new(db.clone(), "other"));
    let (old, young) = (Uuid::now_v7(), Uuid::now_v7());
    assert!(claim(&db, &one, old).await && claim(&db, &other, old).await);
    hand.advance(Duration::from_millis(1));
    assert!(claim(&db, &one, young).await);
    assert_eq!(one.purge(hand.clock().now()).await.unwrap(), 1);
    assert!(claim(&db, &one, old).await, "forgotten");
    assert!(!claim(&db, &one, young).await && !claim(&db, &other, old).await, "and nothing else");
    close(db).await;
    D::destroy(home).await;
}

async fn a_handler_that_fails_leaves_nothing_behind<D: Backend>() {
    let home = D::create().await;
    let db = D::connect(&home).await;
    let mut tx = db.begin().await.unwrap();
    execute::<D>(&mut tx, "CREATE TABLE effects (attempt BIGINT)", &[]).await;
    tx.commit().await.unwrap();
    let bus = LogBus::new(db.clone());
    let attempts = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let handler = Inbox::new(db.clone(), "g").handler(move |tx, _| {
        let attempt = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            D::execute(&mut **tx, "INSERT INTO effects (attempt) VALUES ($1)", &[Arg::Int(attempt)]).await?;
            if attempt < 2 { Err(HandlerError::retry("later")) } else { Ok(()) }
        }
        .boxed()
    });
    let again = Arc::new(handler);
    let subscribe = Subscribe::new("g", ["T"]).unwrap().backoff(Backoff::constant(Duration::from_millis(1)));
    let delivered = again.clone();
    let member = bus
        .subscribe(
            subscribe,
            Arc::new(move |delivery: Delivery| {
                let handler = delivered.clone();
                async move {
                    buttress_durable::bus::Handler::handle(&*handler, delivery.clone()).await?;
                    // Delivered again although it was handled.
                    buttress_durable::bus::Handler::handle(&*handler, delivery).await
                }
            }),
        )
        .await
        .unwrap();
    bus.publish(&[event("T", "k", 1)]).await.unwrap();
    let committed = "SELECT MAX(position) FROM buttress_group";
    eventually("handled", || async { ints(&db, committed).await == [1] }).await;
    assert_eq!(ints(&db, "SELECT attempt FROM effects").await, [2]);
    member.shutdown().await;
    close(db).await;
    D::destroy(home).await;
}
