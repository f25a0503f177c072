use buttress::circuit_breaker::State;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Customer, Place, Shop, on_both, post, tea};

fn order(items: serde_json::Value) -> Request<Full<Bytes>> {
    post(json!({ "customer": "alice", "items": items }).to_string())
}

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).body(Full::default()).unwrap()
}

fn review(review: serde_json::Value) -> Request<Full<Bytes>> {
    let request = Request::post("/shop/reviews/mug").header(header::CONTENT_TYPE, "application/json");
    request.body(Full::from(review.to_string())).unwrap()
}

fn with_header(mut request: Request<Full<Bytes>>, name: &'static str, value: &str) -> Request<Full<Bytes>> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

#[tokio::test]
async fn bad_input_gets_a_clear_4xx_and_stores_nothing() {
    let shop = Shop::open().await;
    let id = uuid::Uuid::now_v7();
    let as_customer = |customer: &str, request| with_header(request, "authorization", &shop.customer.token(customer));
    let cases = [
        ("malformed JSON", 400, post("{\"customer\": \"alice\", \"items\": [")),
        ("not JSON at all", 400, post("tea, please")),
        ("not even text", 400, post(vec![0xff, 0xfe, 0x00])),
        ("an empty body", 400, post("")),
        ("wrong content type", 415, with_header(order(json!([])), "content-type", "text/plain")),
        ("a missing field", 422, post("{\"customer\": \"alice\"}")),
        ("a field twice", 422, post(r#"{"customer":"alice","customer":"alice","items":[]}"#)),
        ("deep JSON", 422, post("[".repeat(8000))),
        ("a deep value", 422, post(format!(r#"{{"items":{}"#, "[".repeat(8000)))),
        (
            "a number without end",
            400,
            post(format!(r#"{{"items":[{{"sku":"tea","quantity":1{}}}]}}"#, "0".repeat(400))),
        ),
        ("a NUL in a product", 422, order(json!([{ "sku": "a\0", "quantity": 1 }]))),
        ("an escape sequence in a product", 422, order(json!([{ "sku": "\u{1b}[2J", "quantity": 1 }]))),
        ("an endless product", 422, order(json!([{ "sku": "x".repeat(8000), "quantity": 1 }]))),
        ("a product of 20 KiB", 413, order(json!([{ "sku": "x".repeat(20_480), "quantity": 1 }]))),
        ("a NUL in a customer", 403, post(json!({ "customer": "a\0", "items": [] }).to_string())),
        ("another customer", 403, as_customer("bob", order(json!([{ "sku": "tea", "quantity": 1 }])))),
        ("no token", 401, with_header(order(json!([])), "authorization", "Basic YWxpY2U6eA==")),
        ("a token of nobody", 401, with_header(order(json!([])), "authorization", "Bearer e30.e30.e30")),
        ("a key with a space", 400, with_header(order(json!([])), "idempotency-key", "a b")),
        ("a review with a NUL", 422, review(json!({ "author": "alice", "stars": 1, "text": "a\0" }))),
        (
            "a review of another customer",
            403,
            as_customer("bob", review(json!({ "author": "alice", "stars": 1, "text": "" }))),
        ),
        ("a product that cannot be one", 404, request(Method::GET, "/shop/reviews/a%00b")),
        ("a field that we do not know", 422, post("{\"customer\": \"alice\", \"items\": [], \"coupon\": 1}")),
        ("a number as text", 422, order(json!([{ "sku": "tea", "quantity": "two" }]))),
        ("half a packet", 422, order(json!([{ "sku": "tea", "quantity": 0.5 }]))),
        ("zero", 422, order(json!([{ "sku": "tea", "quantity": 0 }]))),
        ("a negative quantity", 422, order(json!([{ "sku": "tea", "quantity": -1 }]))),
        ("more than the limit", 422, order(json!([{ "sku": "tea", "quantity": 1_000_000 }]))),
        (
            "more than fits a number",
            422,
            post(r#"{"customer":"alice","items":[{"sku":"tea","quantity":99999999999999999999}]}"#),
        ),
        ("nothing", 422, order(json!([]))),
        (
            "the same product twice",
            422,
            order(json!([{ "sku": "tea", "quantity": 1 }, { "sku": "tea", "quantity": 1 }])),
        ),
        ("too many lines", 422, order((0..60).map(|i| json!({ "sku": i.to_string(), "quantity": 1 })).collect())),
        ("no customer", 403, post(json!({ "customer": "", "items": [{ "sku": "tea", "quantity": 1 }] }).to_string())),
        (
            "an unknown product",
            422,
            order(json!([{ "sku": "tea", "quantity": 1 }, { "sku": "unobtainium", "quantity": 1 }])),
        ),
        ("a body too large", 413, post(vec![b' '; 20 * 1024])),
        ("an endless idempotency key", 400, with_header(order(json!([])), "idempotency-key", &"k".repeat(300))),
        ("an unknown order", 404, request(Method::GET, &format!("/v1/orders/{id}"))),
        ("what cannot be an order", 404, request(Method::GET, "/v1/orders/..%2f..%2fadmin")),
        ("an unknown path", 404, request(Method::GET, "/v2/orders")),
        ("fault switches are off by default", 404, request(Method::GET, "/admin/faults")),
        ("a wrong method", 405, request(Method::DELETE, "/v1/orders")),
    ];
    for (name, expected, request) in cases {
        let path = request.uri().path().to_owned();
        let reply = shop.customer.send(request).await;
        assert_eq!(reply.headers.contains_key(header::WWW_AUTHENTICATE), expected == 401, "{name}");
        assert_eq!(reply.status, expected, "{name}: {reply:?}");
        assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json", "{name}");
        assert_eq!(reply.body["status"], expected, "{name}");
        assert_eq!(reply.body["instance"], path, "{name}");
        for member in ["type", "title", "detail"] {
            assert!(reply.body[member].as_str().is_some_and(|text| !text.is_empty()), "{name}: {member}: {reply:?}");
        }
        if expected == 405 {
            assert!(reply.headers.contains_key(header::ALLOW), "{name}");
        }
    }
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 0);
    assert_eq!(shop.count(Name::Inventory, "SELECT COUNT(*) FROM reservations").await, 0);
    assert_eq!(shop.count(Name::Payment, "SELECT COUNT(*) FROM charges").await, 0);
}

#[tokio::test]
async fn every_wrong_field_is_named() {
    let shop = Shop::open().await;
    let wrong = json!({ "items": [{ "sku": "a b", "quantity": 0 }] });
    let reply = shop.customer.place(&wrong).await;
    let fields: Vec<_> = reply.body["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
    assert_eq!(fields, ["items[0].quantity", "items[0].sku"]);
}

#[tokio::test]
async fn what_cannot_be_sold_or_paid_is_told_and_undone() {
    let shop = Shop::open().await;
    let lamp =
        json!({ "customer": "alice", "items": [{ "sku": "tea", "quantity": 1 }, { "sku": "lamp", "quantity": 1 }] });
    let reply = shop.customer.place(&lamp).await;
    assert_eq!((reply.status.as_u16(), reply.body["failure"].as_str()), (409, Some("out_of_stock")));

    for customer in ["pip", "nobody"] {
        let broke = json!({ "customer": customer, "items": [{ "sku": "kettle", "quantity": 1 }] });
        let reply = shop.customer.place(&broke).await;
        assert_eq!((reply.status.as_u16(), reply.body["failure"].as_str()), (402, Some("declined")));
    }

    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (0, 3, 0));
}

async fn hostile_names_are_the_callers_fault_on_every_service_and_open_no_circuit(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let at = |name| Customer::new(shop.mesh.url(name));
    for _ in 0..30 {
        // Also past the gateway, as another service would send it.
        for (customer, sku) in [("a\0", "tea"), ("alice", "a\0")] {
            let order = json!({ "customer": customer, "items": [{ "sku": sku, "quantity": 1 }] });
            assert_eq!(at(Name::Order).place(&order).await.status, 422);
            assert!(shop.customer.place(&order).await.status.is_client_error());
        }
        assert_eq!(at(Name::Order).get("/v1/orders/a%00").await.status, 404);
        assert_eq!(at(Name::Shipping).get("/v1/shipments/a%00").await.status, 404);
        assert_eq!(at(Name::Notification).get("/v1/notifications?order_id=a%00").await.status, 400);
        assert_eq!(at(Name::Legacy).get("/shop/customers/a%00").await.status, 404);
    }
    for dependency in shop.mesh.dependencies() {
        assert_eq!(dependency.breaker().state(), State::Closed, "{}", dependency.name());
    }
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.close().await;
}

on_both!(hostile_names_are_the_callers_fault_on_every_service_and_open_no_circuit);
