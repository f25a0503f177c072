use http::Request;
use http_body_util::Full;
use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Customer, Place, Shop, on_both, tea};

on_both!(a_stuck_saga_is_listed_and_goes_on_when_somebody_decides);

async fn a_stuck_saga_is_listed_and_goes_on_when_somebody_decides(place: Place) {
    let mut shop = Shop::open_at(place, |config| config.admin = true).await;
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

    let operator = Customer::new(shop.mesh.url(Name::Order));
    let list = operator.get("/admin/sagas?status=stuck").await.body;
    assert_eq!(list["stuck"], 1);
    let saga = &list["sagas"][0];
    assert_eq!((&saga["status"], &saga["stuck"]["message"]), (&json!("stuck"), &json!("trouble")));
    let steps: Vec<_> = saga["steps"].as_array().unwrap().iter().map(|step| &step["name"]).collect();
    assert_eq!(steps, ["create_order", "reserve_inventory", "process_payment"]);

    let path = format!("/admin/sagas/{}", saga["id"].as_str().unwrap());
    let retry = || Request::post(format!("{path}/retry")).body(Full::default()).unwrap();
    assert_eq!(operator.send(retry()).await.status, 200);
    let books = shop.settled_books().await;
    assert!(books.right && books.confirmed == 1, "{books}");
    assert_eq!(operator.send(retry()).await.status, 409, "no longer stuck");
    assert_eq!(operator.get(&path).await.body["status"], "completed");
    shop.close().await;
}

#[tokio::test]
async fn operators_are_told_what_they_got_wrong() {
    let shop = Shop::open_with(|config| config.admin = true).await;
    let operator = Customer::new(shop.mesh.url(Name::Order));
    assert_eq!(operator.get("/admin/sagas?status=lost").await.status, 400);
    assert_eq!(operator.get("/admin/sagas?limit=0").await.status, 400);
    assert_eq!(operator.get("/admin/sagas?limit=many").await.status, 400);
    assert_eq!(operator.get("/admin/sagas/nobody").await.status, 404);
    let resolve = Request::post("/admin/sagas/nobody/resolve").header("content-type", "application/json");
    assert_eq!(operator.send(resolve.body(Full::from("{\"note\": \"\"}")).unwrap()).await.status, 409);
}

#[tokio::test]
async fn a_gateway_that_serves_customers_alone_shows_nothing_of_what_is_inside() {
    let shop = Shop::open().await;
    let customer = Customer::new(shop.mesh.url(Name::Gateway));
    for path in ["/admin/sagas", "/admin/state", "/admin/traces", "/dashboard", "/dashboard/events"] {
        assert_eq!(customer.get(path).await.status, 404, "{path}");
    }
}
