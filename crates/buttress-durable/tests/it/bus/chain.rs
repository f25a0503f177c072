//! The chain from one service's transaction to another's effect: outbox, relay, bus, consumer,
//! inbox, crashed at the n-th boundary.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buttress_durable::db::Arg;
use buttress_durable::{Clock, Database, Db, Inbox, Outbox};
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::{Broker, on_every_broker};
use crate::support::{Backend, Crash, clock, close, event, eventually, execute, ints, open};

on_every_broker!(a_crash_anywhere_between_two_services_loses_and_doubles_nothing);

async fn a_crash_anywhere_between_two_services_loses_and_doubles_nothing<B: Broker>() {
    let broker = B::start().await;
    let mut begun = 0;
    let boundaries = loop {
        let stories = (begun + 1..=begun + B::AT_ONCE).map(|n| story(&broker, n));
        let through = join_all(stories).await.into_iter().position(|through| through);
        if let Some(first) = through {
            break begun + first as u64;
        }
        begun += B::AT_ONCE;
    };
    assert!(boundaries > 20, "only {boundaries} boundaries: the faults do not reach the services");
    broker.end().await;
}

/// Returns true if the first life completed.
async fn story<B: Broker>(broker: &B, n: u64) -> bool {
    let (home, hand) = (B::Db::create().await, clock());
    let db = B::Db::connect(&home).await;
    let mut conn = db.pool().acquire().await.unwrap();
    execute::<B::Db>(&mut conn, "CREATE TABLE orders (key TEXT, number BIGINT)", &[]).await;
    execute::<B::Db>(&mut conn, "CREATE TABLE parcels (seq BIGINT, key TEXT, number BIGINT)", &[]).await;
    drop(conn);
    close(db).await;

    let topic = broker.name(&format!("Story{n}"));
    let numbers = AtomicU64::new(0);
    let through = life(broker, &home, hand.clock(), &topic, &numbers, &Crash::at(n)).await;
    // Longer than any lease.
    hand.advance(Duration::from_secs(60));
    assert!(through || life(broker, &home, hand.clock(), &topic, &numbers, &Crash::never()).await);

    let db = B::Db::connect(&home).await;
    for (ordered, sent) in [
        (
            "SELECT number FROM orders WHERE key = 'a' ORDER BY number",
            "SELECT number FROM parcels WHERE key = 'a' ORDER BY seq",
        ),
        (
            "SELECT number FROM orders WHERE key = 'b' ORDER BY number",
            "SELECT number FROM parcels WHERE key = 'b' ORDER BY seq",
        ),
    ] {
        assert_eq!(ints(&db, ordered).await, ints(&db, sent).await, "killed at boundary {n}");
    }
    close(db).await;
    B::Db::destroy(home).await;
    through
}

async fn life<B: Broker>(
    broker: &B,
    home: &<B::Db as Backend>::Home,
    clock: Clock,
    topic: &str,
    numbers: &AtomicU64,
    crash: &Crash,
) -> bool {
    let db = open::<B::Db>(home, clock, crash).await;
    let life = async {
        let bus = broker.connect().await;
        // Polls of an idle relay are boundaries too, but a crash there tests nothing.
        let outbox = Outbox::new(db.clone()).with_poll(Duration::from_secs(2));
        let relay = outbox.relay(bus.clone());
        let handler = Inbox::new(db.clone(), "shipping").handler(|tx, event| {
            async move {
                let sql = "INSERT INTO parcels (seq, key, number) VALUES ((SELECT COUNT(*) FROM parcels), $1, $2)";
                let args = [Arg::Text(event.key()), Arg::Int(event.decode()?)];
                <B::Db as Database>::execute(&mut **tx, sql, &args).await?;
                Ok(())
            }
            .boxed()
        });
        let group = buttress_durable::bus::Subscribe::new(topic, [topic]).unwrap();
        let member = bus.subscribe(group, Arc::new(handler)).await.unwrap();
        for key in ["a", "b", "a"] {
            order(&db, &outbox, topic, key, numbers.fetch_add(1, Ordering::SeqCst)).await;
        }
        eventually("a parcel for each order", || async {
            let open = "SELECT COUNT(*) - (SELECT COUNT(*) FROM parcels) FROM orders";
            ints(&db, open).await == [0]
        })
        .await;
        member.shutdown().await;
        relay.shutdown().await;
    };
    let through = crash.live(life).await.is_some();
    close(db).await;
    through
}

async fn order<D: Backend>(db: &Db<D>, outbox: &Outbox<D>, topic: &str, key: &str, number: u64) {
    let number = i64::try_from(number).unwrap();
    let mut tx = db.begin().await.unwrap();
    let sql = "INSERT INTO orders (key, number) VALUES ($1, $2)";
    execute::<D>(&mut tx, sql, &[Arg::Text(key), Arg::Int(number)]).await;
    outbox.append(&mut tx, &event(topic, key, number)).await.unwrap();
    tx.commit().await.unwrap();
    outbox.wake();
}
