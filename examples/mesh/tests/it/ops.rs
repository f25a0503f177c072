//! `mesh ops`, as a process, and what it does about dead letters and parked events.

use std::process::Output;

use buttress_durable::{DomainEvent, Timestamp};
use mesh::clock::now_ms;
use mesh::mesh::Name;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Place, Shop, on_both, tea, until};

on_both!(dead_letters_are_listed_redriven_and_discarded, parked_events_are_listed_retried_and_discarded,);

/// Runs `mesh ops` against the gateway of a shop.
async fn ops(shop: &Shop, args: &[&str]) -> Output {
    ops_at(&shop.mesh.admin_url(Name::Gateway), args).await
}

async fn ops_at(url: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command.args(["ops", "--url", url]).args(args).env_remove("RUST_LOG").output().await.unwrap()
}

async fn said(shop: &Shop, args: &[&str]) -> String {
    let output = ops(shop, args).await;
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn dead_letters_are_listed_redriven_and_discarded(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    assert_eq!(said(&shop, &["dead-letters"]).await, "there are no dead letters\n");
    // No consumer can read it.
    let event = DomainEvent::new("OrderConfirmed", "order-7", Timestamp::from_millis(now_ms()), &json!({ "n": 1 }));
    shop.publish(&event.unwrap()).await;
    let letters = async || {
        let items: Vec<Value> = serde_json::from_str(&said(&shop, &["dead-letters", "--json"]).await).unwrap();
        items
    };
    until("all three groups have given it up", async || letters().await.len() == 3).await;
    let items = letters().await;
    for service in ["inventory", "shipping", "notification"] {
        let item = items.iter().find(|item| item["service"] == service).unwrap();
        assert_eq!(
            (&item["at"], &item["name"], &item["order"]),
            (&json!(service), &json!("OrderConfirmed"), &json!("order-7"))
        );
        assert!(item["error"].as_str().unwrap().contains("missing field"), "{item}");
    }
    let metric = r#"bus_dead_letters{service="shipping",group="shipping",topic="OrderConfirmed"} 1"#;
    let operator = shop.operator(Name::Shipping);
    until("it is counted", async || operator.text("/metrics").await.lines().any(|line| line == metric)).await;

    assert_eq!(said(&shop, &["dead-letters", "discard", "--at", "inventory"]).await, "discard: 1 done, 0 failed\n");
    let left = said(&shop, &["dead-letters"]).await;
    assert_eq!(left.lines().count(), 3, "{left}");
    // It fails again, in each group that has not handled it, and is listed again.
    let redriven = said(&shop, &["dead-letters", "redrive", "--at", "shipping"]).await;
    assert_eq!(redriven, "redrive: 1 done, 0 failed\n");
    until("shipping has given it up again", async || letters().await.iter().any(|item| item["at"] == "shipping")).await;
    until("none is left", async || {
        said(&shop, &["dead-letters", "discard", "--all"]).await;
        letters().await.is_empty()
    })
    .await;
    shop.close().await;
}

async fn parked_events_are_listed_retried_and_discarded(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.settled_books().await;
    // The last two events of the order service, as if the bus had rejected them.
    for _ in 0..2 {
        let park = "UPDATE buttress_outbox SET sent_at = NULL, refused = 'too large' WHERE seq =
                    (SELECT MAX(seq) FROM buttress_outbox WHERE refused IS NULL)";
        shop.cook(Name::Order, park).await;
    }
    let items: Value = serde_json::from_str(&said(&shop, &["parked", "--json"]).await).unwrap();
    let items = items.as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!((&items[0]["service"], &items[0]["error"]), (&json!("order"), &json!("too large")));
    let names: Vec<_> = items.iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["OrderCreated", "OrderConfirmed"]);
    until("the status counts them", async || {
        said(&shop, &["status"]).await.lines().any(|line| {
            let cells: Vec<_> = line.split_whitespace().collect();
            cells.first() == Some(&"order") && cells.get(4) == Some(&"2")
        })
    })
    .await;

    let one = items[0]["id"].as_str().unwrap();
    assert_eq!(said(&shop, &["parked", "discard", one]).await, "discard: 1 done, 0 failed\n");
    let again = ops(&shop, &["parked", "discard", one]).await;
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stdout).contains("1 failed"), "{again:?}");
    assert_eq!(said(&shop, &["parked", "retry", "--error", "large"]).await, "retry: 1 done, 0 failed\n");
    shop.until_count(Name::Order, "SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL", 0).await;
    assert_eq!(said(&shop, &["parked"]).await, "no event is parked\n");
    shop.close().await;
}

#[tokio::test]
async fn stuck_sagas_are_retried_all_at_once() {
    let shop = Shop::open().await;
    for key in ["a", "b", "c"] {
        assert_eq!(shop.customer.place_with_key(key, &tea()).await.status, 201);
    }
    shop.settled_books().await;
    for _ in 0..3 {
        let stuck = r#"UPDATE buttress_saga SET status = 'stuck', step = 3, stuck =
                       '{"step":"confirm_order","message":"trouble","compensating":false,"note":null}'
                       WHERE id = (SELECT MAX(id) FROM buttress_saga WHERE status <> 'stuck')"#;
        shop.cook(Name::Order, stuck).await;
    }
    let table = said(&shop, &["sagas"]).await;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.lines().skip(1).all(|line| line.starts_with("order ") && line.ends_with(" trouble")), "{table}");
    let none = ops(&shop, &["sagas", "retry"]).await;
    assert!(!none.status.success(), "nothing was named");
    assert!(String::from_utf8_lossy(&none.stderr).contains("which.filter: "), "{none:?}");
    assert_eq!(said(&shop, &["sagas", "skip", "--all"]).await, "skip: 3 done, 0 failed\n");
    assert_eq!(said(&shop, &["sagas"]).await, "no saga is stuck\n");
    until("all have ended", async || said(&shop, &["sagas", "--status", "completed"]).await.lines().count() == 4).await;
}

#[tokio::test]
async fn a_service_that_is_down_hides_nothing_of_the_others() {
    let mut shop = Shop::open().await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.settled_books().await;
    shop.mesh.crash(Name::Payment).await;
    let park = "UPDATE buttress_outbox SET sent_at = NULL, refused = 'too large' WHERE seq = 1";
    shop.cook(Name::Order, park).await;
    for (args, shown) in
        [(&["parked"][..], "too large"), (&["parked", "discard", "--all"], "discard: 1 done, 0 failed")]
    {
        let output = ops(&shop, args).await;
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(out.contains(shown) && err == "payment: no answer\n", "{args:?}: {out}{err}");
        assert!(!output.status.success(), "{args:?}: it has failed in part");
    }
    let status = said(&shop, &["status"]).await;
    let line = status.lines().find(|line| line.starts_with("payment ")).unwrap();
    assert!(line.contains("no answer") && line.contains(" ? ") && !line.contains('0'), "{line}");
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_named_with_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = ops_at(&url, &["status"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains(&format!("no answer from {url}: start the mesh")), "{error}");
    assert!(error.contains("--url"), "{error}");
}
