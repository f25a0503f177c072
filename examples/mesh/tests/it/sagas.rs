use http::Request;
use http_body_util::Full;
use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use serde_json::{Value, json};

use crate::support::{Customer, Place, Reply, Shop, on_both, tea};

/// Decides on a service's admin listener.
async fn decide(operator: &Customer, path: &str, body: &Value) -> Reply {
    let request = Request::post(format!("/admin/attention/{path}")).header("content-type", "application/json");
    operator.send(request.body(Full::from(body.to_string())).unwrap()).await
}

on_both!(a_stuck_saga_is_listed_and_goes_on_when_somebody_decides, a_stuck_saga_is_skipped_or_resolved_by_an_operator,);

async fn a_stuck_saga_is_listed_and_goes_on_when_somebody_decides(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    shop.mesh.faults(Name::Payment).set(Plan { hang_rate: 1.0, strike: Strike::Before, ..Plan::default() });
    let customer = shop.customer.clone();
    let placing = tokio::spawn(async move { customer.place_with_key("k1", &tea()).await });
    let at_payment = "SELECT COUNT(*) FROM buttress_saga_step WHERE name = 'process_payment'";
    shop.until_count(Name::Order, at_payment, 1).await;
    shop.mesh.crash(Name::Order).await;
    placing.await.unwrap();
    // The state after many minutes of failures.
    let stuck = r#"UPDATE buttress_saga SET status = 'stuck', owner = NULL, expires_at = 0,
                   stuck = '{"step":"process_payment","message":"trouble","compensating":false,"note":null}'"#;
    shop.cook(Name::Order, stuck).await;
    shop.mesh.faults(Name::Payment).clear();
    shop.mesh.restart(Name::Order).await.unwrap();

    let operator = shop.operator(Name::Order);
    let list = operator.get("/admin/sagas?status=stuck").await.body;
    assert_eq!(list["stuck"], 1);
    let saga = &list["sagas"][0];
    assert_eq!((&saga["status"], &saga["stuck"]["message"]), (&json!("stuck"), &json!("trouble")));
    let steps: Vec<_> = saga["steps"].as_array().unwrap().iter().map(|step| &step["name"]).collect();
    assert_eq!(steps, ["create_order", "reserve_inventory", "process_payment"]);

    let id = saga["id"].as_str().unwrap();
    let path = format!("/admin/sagas/{id}");
    let waiting = operator.get("/admin/attention/sagas").await.body;
    let item = &waiting[0];
    assert_eq!((&item["id"], &item["order"], &item["name"]), (&json!(id), &json!(id), &json!("order")));
    assert_eq!((&item["at"], &item["error"]), (&json!("process_payment"), &json!("trouble")));
    let ids = json!({ "which": { "ids": [id] } });
    let reply = decide(&operator, "sagas/retry", &ids).await;
    assert_eq!((reply.status.as_u16(), reply.body), (200, json!({ "done": 1, "failed": [], "more": false })));
    let books = shop.settled_books().await;
    assert!(books.right && books.confirmed == 1, "{books}");
    let reply = decide(&operator, "sagas/retry", &ids).await;
    assert_eq!((reply.status.as_u16(), &reply.body["done"]), (200, &json!(0)), "no longer stuck");
    assert_eq!(reply.body["failed"][0]["id"], id);
    assert_eq!(operator.get("/admin/attention/sagas").await.body, json!([]));
    assert_eq!(operator.get(&path).await.body["status"], "completed");
    shop.close().await;
}

async fn a_stuck_saga_is_skipped_or_resolved_by_an_operator(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let operator = shop.operator(Name::Order);
    for (decision, note) in [("skip", ""), ("resolve", "paid in cash")] {
        assert_eq!(shop.customer.place_with_key(decision, &tea()).await.status, 201);
        shop.settled_books().await;
        // As if the last step had failed for good. The order stays as it is.
        let stuck = r#"UPDATE buttress_saga SET status = 'stuck', step = 3, stuck =
                       '{"step":"confirm_order","message":"trouble","compensating":false,"note":null}'
                       WHERE id = (SELECT MAX(id) FROM buttress_saga)"#;
        shop.cook(Name::Order, stuck).await;
        let id = operator.get("/admin/sagas?status=stuck").await.body["sagas"][0]["id"].as_str().unwrap().to_owned();
        let path = format!("sagas/{decision}");
        let body = json!({ "which": { "ids": [id] }, "note": note });
        let reply = decide(&operator, &path, &body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let saga = operator.get(&format!("/admin/sagas/{id}")).await.body;
        if decision == "resolve" {
            assert_eq!((&saga["status"], &saga["stuck"]["note"]), (&json!("resolved"), &json!("paid in cash")));
        } else {
            crate::support::until("the saga has gone on", async || {
                operator.get(&format!("/admin/sagas/{id}")).await.body["status"] == "completed"
            })
            .await;
            let saga = operator.get(&format!("/admin/sagas/{id}")).await.body;
            let last = saga["steps"].as_array().unwrap().last().unwrap();
            assert_eq!((&last["name"], &last["state"]), (&json!("confirm_order"), &json!("skipped")));
        }
        let again = decide(&operator, &path, &body).await.body;
        assert_eq!((&again["done"], &again["failed"][0]["id"]), (&json!(0), &json!(id)), "not twice");
    }
    shop.close().await;
}

#[tokio::test]
async fn sagas_are_shown_in_pages_with_all_that_is_known_of_them() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Order);
    let mut ids = Vec::new();
    for customer in ["alice", "pip", "bob"] {
        let order = json!({ "customer": customer, "items": [{ "sku": "tea", "quantity": 1 }] });
        let reply = shop.customer.place(&order).await;
        ids.push(reply.body.get("id").or(reply.body.get("order_id")).unwrap().as_str().unwrap().to_owned());
    }
    shop.settled_books().await;
    let listed = async |query: &str| {
        let page = operator.get(&format!("/admin/sagas?{query}")).await.body;
        let sagas = page["sagas"].as_array().unwrap().clone();
        sagas.iter().map(|saga| saga["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Ids grow with time.
    assert_eq!(listed("").await, ids);
    assert_eq!(listed("limit=2").await, ids[..2]);
    assert_eq!(listed(&format!("limit=2&after={}", ids[1])).await, ids[2..]);
    assert_eq!(listed("newest=true&limit=1").await, ids[2..]);
    assert_eq!(listed(&format!("newest=true&after={}", ids[1])).await, ids[..1]);
    assert_eq!(listed("status=compensated").await, ids[1..2]);
    assert_eq!(listed("limit=1000").await.len(), 3);
    assert_eq!(operator.get("/admin/sagas?limit=1001").await.status, 400);

    let saga = operator.get(&format!("/admin/sagas/{}", ids[1])).await.body;
    assert_eq!(
        (&saga["definition"], &saga["version"], &saga["status"]),
        (&json!("order"), &json!(1), &json!("compensated"))
    );
    assert_eq!(saga["failure"], json!({ "step": "process_payment", "message": "declined" }));
    assert_eq!(saga["stuck"], json!(null));
    let steps: Vec<_> = saga["steps"].as_array().unwrap().iter().map(|step| (&step["name"], &step["state"])).collect();
    let expected = [("create_order", "undone"), ("reserve_inventory", "undone"), ("process_payment", "failed")];
    let expected = expected.map(|(name, state)| (json!(name), json!(state)));
    assert_eq!(steps, expected.each_ref().map(|(name, state)| (name, state)));
    let payment = &saga["steps"][2];
    assert_eq!((&payment["failed_attempts"], &payment["uncertain"]), (&json!(1), &json!(false)));
    assert_eq!((&payment["error"], &payment["ended_ms"]), (&json!("declined"), &json!(null)));
    let moment = |value: &serde_json::Value| value.as_i64().unwrap();
    let reserve = &saga["steps"][1];
    assert!(moment(&saga["created_ms"]) <= moment(&reserve["started_ms"]));
    assert!(moment(&reserve["started_ms"]) <= moment(&payment["started_ms"]));
    assert!(moment(&payment["started_ms"]) <= moment(&reserve["ended_ms"]), "it was undone afterwards");
    assert!(moment(&reserve["ended_ms"]) <= moment(&saga["updated_ms"]));
}

#[tokio::test]
async fn operators_are_told_what_they_got_wrong() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Order);
    assert_eq!(operator.get("/admin/sagas?status=lost").await.status, 400);
    assert_eq!(operator.get("/admin/sagas?limit=0").await.status, 400);
    assert_eq!(operator.get("/admin/sagas?limit=many").await.status, 400);
    assert_eq!(operator.get("/admin/sagas/nobody").await.status, 404);
    assert_eq!(operator.get("/admin/attention/parcels").await.status, 404);
    assert_eq!(operator.get("/admin/attention/sagas?limit=0").await.status, 400);
    assert_eq!(operator.get("/admin/attention/dead-letters").await.status, 404, "it consumes nothing");
    for (path, body, status) in [
        ("sagas/retry", json!({}), 422),
        ("sagas/retry", json!({ "which": { "filter": {} } }), 422),
        ("sagas/retry", json!({ "which": { "ids": [] } }), 422),
        ("sagas/resolve", json!({ "which": "all" }), 422),
        ("sagas/redrive", json!({ "which": "all" }), 404),
    ] {
        assert_eq!(decide(&operator, path, &body).await.status, status, "{path} {body}");
    }
}
