//! The operators' listener is apart from the customers' port.

use std::net::TcpStream;

use http::{Request, header};
use http_body_util::Full;
use mesh::mesh::Name;

use crate::support::{Customer, Shop};

/// Every page for operators, on any service.
const PAGES: [&str; 14] = [
    "/metrics",
    "/admin",
    "/admin/state",
    "/admin/faults",
    "/admin/sagas",
    "/admin/traces",
    "/admin/attention",
    "/admin/attention/sagas",
    "/admin/attention/dead-letters",
    "/admin/attention/parked",
    "/admin/services/order/state",
    "/dashboard",
    "/dashboard/events",
    "/dashboard/page.js",
];

#[tokio::test]
async fn a_stranger_on_the_public_port_of_any_service_reaches_no_admin_page() {
    let shop = Shop::open().await;
    for name in Name::ALL {
        let stranger = Customer::new(shop.mesh.url(name));
        for page in PAGES {
            let reply = stranger.get(page).await;
            // gRPC answers 200 to everything, with a status of its own: 12 is UNIMPLEMENTED.
            let unimplemented = reply.headers.get("grpc-status").is_some_and(|code| code == "12");
            assert!(reply.status == 404 || unimplemented, "{name:?} {page}: {reply:?}");
            assert!(reply.body.get("service").is_none() && reply.body.get("gauges").is_none(), "{name:?} {page}");
        }
        let put = Request::put("/admin/faults").header(header::CONTENT_TYPE, "application/json");
        let reply = stranger.send(put.body(Full::from(r#"{"error_rate": 1}"#)).unwrap()).await;
        assert!(reply.status == 404 || reply.headers.contains_key("grpc-status"), "{name:?}: {reply:?}");
        assert_eq!(shop.mesh.faults(name).plan().error_rate, 0.0, "{name:?}");
    }
}

#[tokio::test]
async fn every_service_serves_its_operators_and_its_probes_on_a_listener_of_its_own() {
    let shop = Shop::open().await;
    for name in Name::ALL {
        let operator = shop.operator(name);
        assert_eq!(operator.get("/admin/state").await.body["service"], name.as_str());
        // Payment and inventory have adaptive limits, the others bulkheads.
        let found = matches!(name, Name::Payment | Name::Inventory);
        let places = if found { "resilience_concurrency_in_flight{" } else { "resilience_bulkhead_in_flight{" };
        assert!(operator.text("/metrics").await.contains(places), "{name:?}");
        for probe in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(operator.get(probe).await.status, 200, "{name:?} {probe}");
        }
        let unknown = operator.get("/v1/orders").await;
        assert_eq!((unknown.status.as_u16(), &unknown.body["status"]), (404, &404.into()), "{name:?}");
    }
}

#[tokio::test]
async fn a_page_that_rebinds_its_name_or_forges_a_request_is_rejected() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Payment);
    let send = async |name: header::HeaderName, value: &str| {
        let request = Request::put("/admin/faults").header(header::CONTENT_TYPE, "application/json");
        let request = request.header(name, value).body(Full::from(r#"{"error_rate": 1}"#)).unwrap();
        operator.send(request).await.status.as_u16()
    };
    assert_eq!(send(header::HOST, "evil.example").await, 421);
    assert_eq!(send(header::ORIGIN, "http://evil.example").await, 403);
    assert_eq!(shop.mesh.faults(Name::Payment).plan().error_rate, 0.0);
    assert_eq!(send(header::HOST, "localhost").await, 200);
    assert_eq!(shop.mesh.faults(Name::Payment).plan().error_rate, 1.0);
}

#[tokio::test]
async fn the_gateway_forwards_only_what_is_for_operators() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Gateway);
    for (path, status) in [
        ("/admin/services/order/state", 200),
        ("/admin/services/order/sagas?limit=1", 200),
        ("/admin/services/gateway/state", 200),
        ("/admin/services/inventory/attention/dead-letters", 200),
        ("/admin/services/warehouse/state", 404),
        ("/admin/services/order/metrics", 404),
        ("/admin/services/order/attention/%2e%2e/%2e%2e/metrics", 404),
        ("/admin/services/order/state/../../metrics", 404),
    ] {
        assert_eq!(operator.get(path).await.status.as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn a_crash_closes_the_operators_listener_and_a_restart_opens_it_again() {
    let mut shop = Shop::open().await;
    let addr = shop.mesh.admin_url(Name::Shipping).trim_start_matches("http://").to_owned();
    shop.mesh.crash(Name::Shipping).await;
    assert!(TcpStream::connect(&addr).is_err());
    shop.mesh.restart(Name::Shipping).await.unwrap();
    assert_eq!(shop.operator(Name::Shipping).get("/admin/state").await.status, 200);
}
