//! The gateway's OpenAPI document compared with its routes, and the old shop behind it.

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use mesh::faults::{Plan, Strike};
use mesh::gateway::routes::ENDPOINTS;
use mesh::gateway::strangler::{self, Owner};
use mesh::mesh::Name;
use serde_json::{Value, json};

use crate::support::{Customer, Shop, tea};

fn request(method: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap())
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(if body.is_null() { String::new() } else { body.to_string() }))
        .unwrap()
}

#[tokio::test]
async fn the_document_and_the_router_tell_of_the_same_routes() {
    let shop = Shop::open().await;
    let order = shop.customer.place(&tea()).await.body["id"].as_str().unwrap().to_owned();
    let document = shop.customer.get("/openapi.json").await.body;
    assert_eq!(document["openapi"], "3.1.1");
    let paths = document["paths"].as_object().unwrap();
    let review = json!({ "author": "alice", "stars": 5, "text": "fine" });
    let mut documented = 0;
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            documented += 1;
            let url = match path.as_str() {
                "/v1/orders/{id}" => path.replace("{id}", &order),
                "/shop/customers/{id}" => path.replace("{id}", "alice"),
                path => path.replace("{sku}", "tea"),
            };
            assert!(!url.contains('{'), "{url}: an example is missing above");
            let body = match operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str() {
                Some("#/components/schemas/OrderDraft") => tea(),
                Some("#/components/schemas/OldReview") => review.clone(),
                Some(other) => panic!("an example of {other} is missing above"),
                None => Value::Null,
            };
            let reply = shop.customer.send(request(method, &url, &body)).await;
            let status = reply.status.as_str();
            assert!(reply.status.is_success(), "{method} {url}: {reply:?}");
            assert!(operation["responses"].get(status).is_some(), "{method} {path} does not document {status}");
            let schema = operation["responses"][status]["content"]["application/json"]["schema"]["$ref"].as_str();
            let schema = &document["components"]["schemas"][schema.unwrap().rsplit('/').next().unwrap()];
            for member in schema["required"].as_array().into_iter().flatten() {
                assert!(reply.body.get(member.as_str().unwrap()).is_some(), "{method} {url}: no {member}: {reply:?}");
            }
        }
    }
    for endpoint in ENDPOINTS {
        assert!(paths[endpoint.path].get(endpoint.method).is_some(), "{} {}", endpoint.method, endpoint.path);
    }
    assert_eq!(documented, ENDPOINTS.len());
}

#[tokio::test]
async fn the_old_shop_is_reached_through_the_gateway() {
    let shop = Shop::open().await;
    let customer = shop.customer.get("/shop/customers/alice").await;
    assert_eq!((customer.status.as_u16(), &customer.body["name"]), (200, &json!("Alice Archer")));
    for other in ["bob", "nobody"] {
        assert_eq!(shop.customer.get(&format!("/shop/customers/{other}")).await.status, 404, "{other}");
    }
    let review = json!({ "author": "dave", "stars": 2, "text": "leaks" });
    assert_eq!(shop.customer.send(request("post", "/shop/reviews/mug", &review)).await.status, 201);
    let reviews = shop.customer.get("/shop/reviews/mug").await.body;
    assert_eq!(reviews["reviews"][1], review);
    let page = shop.customer.get("/shop/reviews/mug?limit=1").await.body;
    let (shown, next) = (&page["reviews"], page["next"].as_str().unwrap());
    assert_eq!((shown.as_array().unwrap().len(), &shown[0]["author"]), (1, &json!("carol")));
    let page = shop.customer.get(&format!("/shop/reviews/mug?limit=1&after={next}")).await.body;
    assert_eq!((&page["reviews"], &page["next"]), (&json!([review]), &Value::Null));
    for (stars, status) in [(0, 422), (1, 201), (5, 201), (6, 422)] {
        let review = json!({ "author": "dave", "stars": stars, "text": "" });
        let reply = shop.customer.send(request("post", "/shop/reviews/mug", &review)).await;
        assert_eq!(reply.status, status, "{stars} stars");
    }
    assert_eq!(shop.customer.get("/shop/basement").await.status, 404);
}

#[tokio::test]
async fn a_path_that_has_moved_keeps_its_url_and_its_words() {
    let mut shop = Shop::open().await;
    assert_eq!(strangler::owner("/shop/products"), Some(Owner::Inventory));
    let monolith = Customer::new(shop.mesh.url(Name::Legacy));
    assert_eq!(monolith.get("/shop/products").await.status, 404, "no longer served by the monolith");
    // The new owner answers even if the monolith is down. Only the paths that have not moved fail.
    shop.mesh.crash(Name::Legacy).await;
    let catalogue = shop.customer.get("/shop/products").await;
    assert_eq!(catalogue.status, 200);
    let tea = catalogue.body["items"].as_array().unwrap().iter().find(|item| item["code"] == "tea").unwrap();
    assert_eq!((&tea["price"], &tea["available"]), (&json!("7.90"), &json!(true)));
    let reply = shop.customer.get("/shop/customers/alice").await;
    assert_eq!((reply.status.as_u16(), &reply.body["dependency"]), (503, &json!("legacy")));
    assert_eq!(shop.customer.get("/v1/products").await.status, 200);
}

#[tokio::test]
async fn every_service_has_its_own_fault_switch() {
    let shop = Shop::open().await;
    for name in Name::ALL {
        let path = format!("/admin/services/{}/faults", name.as_str());
        let gateway = shop.operator(Name::Gateway);
        let reply = gateway.send(request("put", &path, &json!({ "latency_ms": 1 }))).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_eq!(shop.mesh.faults(name).plan().latency_ms, 1, "{path}");
        assert_eq!(gateway.get(&path).await.body["latency_ms"], 1, "{path}");
        // The switch also works on the service's own admin listener, and while faults are active.
        shop.mesh.faults(name).set(Plan { error_rate: 1.0, ..Plan::default() });
        let own = shop.operator(name);
        assert_eq!(own.send(request("put", "/admin/faults", &json!({}))).await.status, 200, "{name:?}");
        assert_eq!(shop.mesh.faults(name).plan(), Plan::default(), "{name:?}");
    }
}

#[tokio::test]
async fn a_review_sent_twice_with_a_key_is_not_repeated_by_the_gateway() {
    let shop = Shop::open().await;
    // The monolith adds the review, and its answer is lost.
    shop.mesh.faults(Name::Legacy).set(Plan { error_rate: 1.0, strike: Strike::After, ..Plan::default() });
    let review = json!({ "author": "dave", "stars": 3, "text": "once" });
    let mut request = request("post", "/shop/reviews/mug", &review);
    request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
    assert_eq!(shop.customer.send(request).await.status, 503);
    let reviews = "SELECT COUNT(*) FROM reviews WHERE text = 'once'";
    assert_eq!(shop.count(Name::Legacy, reviews).await, 1);
}

#[tokio::test]
async fn the_catalogue_has_pages() {
    let shop = Shop::open().await;
    let mut skus = Vec::new();
    let mut path = "/v1/products?limit=2".to_owned();
    loop {
        let page = shop.customer.get(&path).await.body;
        skus.push(
            page["products"].as_array().unwrap().iter().map(|product| product["sku"].clone()).collect::<Vec<_>>(),
        );
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/products?limit=2&after={next}");
    }
    assert_eq!(json!(skus), json!([["honey", "kettle"], ["lamp", "mug"], ["tea"]]));
    for wrong in ["limit=0", "limit=101", "limit=x", "after=%00", "after="] {
        assert_eq!(shop.customer.get(&format!("/v1/products?{wrong}")).await.status, 400, "{wrong}");
    }
}
