//! Traffic and failures at the edges, over the real services: see also `cargo xtask soak`.

use std::process::{Command, Stdio};
use std::time::Duration;

use buttress_durable::args;
use mesh::db::{Databases, EVENTS, Files, Home};
use mesh::mesh::Name;
use mesh::soak::proxy::Proxy;
use serde_json::Value;

use crate::support::{Place, Shop, on_both, server, tea, until};

on_both!(customers_who_order_and_hang_up_leave_orders_that_end_well);

async fn customers_who_order_and_hang_up_leave_orders_that_end_well(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    for number in 0..24 {
        // Some before the gateway has read the order, others while the saga runs.
        let patience = Duration::from_millis(number % 12);
        let (key, order) = (number.to_string(), tea());
        let _hung_up = tokio::time::timeout(patience, shop.customer.place_with_key(&key, &order)).await;
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    // The same keys again: an order that was stored is the same order.
    for number in 0..24 {
        shop.customer.place_until_decided(&number.to_string(), &tea()).await;
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed + books.cancelled, 24);
    shop.close().await;
}

#[tokio::test]
async fn events_wait_while_the_log_is_locked_and_none_is_lost() {
    let shop = Shop::open().await;
    let log = Files(shop.dir.path().to_owned()).open(EVENTS).await.unwrap();
    // A transaction of another program, which holds the write lock of SQLite.
    let mut lock = log.begin().await.unwrap();
    lock.execute("UPDATE buttress_log_head SET topic = topic", args![]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(shop.customer.place(&tea()).await.status, 201, "an order does not wait for its events");
    }
    // Longer than a writer waits for the lock.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(shop.count(Name::Shipping, "SELECT COUNT(*) FROM shipments").await, 0);
    lock.rollback().await.unwrap();
    shop.until_count(Name::Shipping, "SELECT COUNT(*) FROM shipments", 3).await;
    let books = shop.settled_books().await;
    assert!(books.right && books.confirmed == 3, "{books}");
}

mod failover {
    // The name says what the test needs: see .config/nextest.toml.
    mod on_postgres {
        use crate::edges::*;

        #[tokio::test]
        async fn a_failover_without_a_reset_costs_no_order() {
            let Some(url) = server() else { return };
            let address = url.rsplit(['@', '/']).next().unwrap().to_owned();
            let proxy = Proxy::start(address).await.unwrap();
            let shop = Shop::open_at(Place::Postgres, |config| {
                if let Databases::Server(server) = &config.databases {
                    config.databases = Databases::Server(server.by_way_of(proxy.address()));
                }
            })
            .await;
            assert_eq!(shop.customer.place_until_decided("before", &tea()).await.status, 201);
            let customer = shop.customer.clone();
            let meanwhile = tokio::spawn(async move { customer.place_until_decided("meanwhile", &tea()).await });
            // All connections of all services, some in the middle of an order.
            proxy.silence();
            meanwhile.await.unwrap();
            until("an order succeeds again", async || shop.customer.place(&tea()).await.status == 201).await;
            let books = shop.settled_books().await;
            assert!(books.right, "{books}");
            shop.close().await;
        }
    }
}

#[test]
fn a_soak_reports_its_troubles_and_finds_the_books_right() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_mesh"))
        .args(["soak", "--minutes", "0.1", "--rate", "5", "terminated-twice", "--json"])
        .arg(&json)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{seen}\n{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["books"]["right"], true);
    assert_eq!(report["episodes"][0]["trouble"], "terminated-twice");
    assert!(report["episodes"][0]["recovery"]["first_success"].is_number(), "{report}");
    assert!(seen.contains("SIGTERM twice to"), "{seen}");
}
