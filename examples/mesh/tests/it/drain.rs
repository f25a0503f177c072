use std::time::Duration;

use http::StatusCode;
use mesh::bus::Bus;
use mesh::db::{Databases, Files};
use mesh::demo::books::{self, Acknowledged};
use mesh::faults::{Plan, Strike};
use mesh::mesh::{Config, Exit, Mesh, Name};
use mesh::probe::probe;
use mesh::stack::Lane;

use crate::support::{Shop, tea, until};

#[tokio::test]
async fn readiness_goes_off_first_and_requests_in_flight_are_finished() {
    // Longer than it takes to look, and shorter than the customer's patience.
    const DELAY: Duration = Duration::from_secs(30);
    let shop = Shop::open_with(|config| config.drain_delay = DELAY).await;
    let gateway = shop.mesh.addr(Name::Gateway);
    assert_eq!(probe(gateway, "/readyz").await, Some(StatusCode::OK));

    // An order is in flight when the mesh is stopped.
    let order = shop.mesh.faults(Name::Order).clone();
    order.set(Plan { hang_rate: 1.0, strike: Strike::Before, ..Plan::default() });
    let customer = shop.customer.clone();
    let placing = tokio::spawn(async move { customer.place(&tea()).await });
    let taken_on = shop.mesh.admission(Name::Order).lane(Lane::Rest).unwrap().clone();
    until("the order service has accepted the request", async || taken_on.in_flight() == 1).await;

    let Shop { mesh, dir, customer, .. } = shop;
    let stopping = tokio::spawn(mesh.stop());
    until("/readyz fails", async || probe(gateway, "/readyz").await == Some(StatusCode::SERVICE_UNAVAILABLE)).await;
    // An unready service still answers, because load balancers may not have noticed yet, and stays
    // alive for liveness probes.
    assert_eq!(customer.get("/v1/products").await.status, 200);
    assert_eq!(probe(gateway, "/livez").await, Some(StatusCode::OK));

    // Ends the delay, which runs on the test's clock. The services have clocks of their own.
    tokio::time::pause();
    tokio::time::advance(DELAY).await;
    tokio::time::resume();
    until("the port is closed", async || probe(gateway, "/livez").await.is_none()).await;
    assert!(!placing.is_finished());
    order.clear();
    assert_eq!(placing.await.unwrap().status, 201);
    let exits = stopping.await.unwrap();
    assert!(exits.iter().all(|(_, exit)| matches!(exit, Exit::Finished)), "{exits:?}");
    assert_eq!(exits.iter().map(|(name, _)| *name).next(), Some(Name::Gateway), "from the gateway inwards");

    // Events that were not published before the stop are published after the next start.
    let mesh = Mesh::start(Config { drain_delay: Duration::ZERO, ..Config::new(dir.path()) }).await.unwrap();
    let databases = Databases::Files(Files(dir.path().to_owned()));
    books::settled(&databases, Duration::from_secs(60)).await.unwrap();
    let books = books::audit(&databases, &Bus::Log, &Acknowledged::default()).await.unwrap();
    assert!(books.right && books.confirmed == 1, "{books}");
    drop(mesh);
}

#[tokio::test]
async fn every_service_answers_probes_on_its_own_port() {
    let shop = Shop::open().await;
    for name in Name::ALL {
        for path in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(probe(shop.mesh.addr(name), path).await, Some(StatusCode::OK), "{name:?} {path}");
        }
    }
}

#[tokio::test]
async fn a_service_that_is_full_says_so_and_still_answers_probes() {
    let shop = Shop::open().await;
    let gateway = shop.mesh.addr(Name::Gateway);
    shop.mesh.admission(Name::Gateway).lane(Lane::Rest).unwrap().set_limit(0);
    let reply = shop.customer.place(&tea()).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(reply.body["instance"], "/v1/orders");
    assert_eq!(probe(gateway, "/readyz").await, Some(StatusCode::OK));
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 0);
}
