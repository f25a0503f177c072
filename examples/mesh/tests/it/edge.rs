//! Clients that are slow, silent or many, over real sockets against a whole mesh.

use std::time::Duration;

use mesh::edge::Limits;
use mesh::faults::Plan;
use mesh::mesh::{Exit, Name};
use mesh::stack::Lane;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Shop, tea, until};

/// Longer than a test takes: no deadline must end what the test holds open.
const NEVER: Duration = Duration::from_secs(600);

fn patient(limits: &mut Limits) {
    *limits = Limits { head: NEVER, body: NEVER, idle: NEVER, write: NEVER, ..*limits };
}

/// Opens a connection to the gateway and sends the beginning of a request.
async fn begin(shop: &Shop, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(shop.mesh.addr(Name::Gateway)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

const HALF_HEAD: &str = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nX-a: ";
const HALF_BODY: &str = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                         Content-Length: 5000\r\n\r\n{";
const HALF_CHUNK: &str = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                          Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n";

#[tokio::test]
async fn slow_clients_of_every_shape_hold_no_place_of_others() {
    let shop = Shop::open_with(|config| patient(&mut config.limits)).await;
    let mut slow = Vec::new();
    // More of each than the gateway has places.
    for shape in ["", HALF_HEAD, HALF_BODY, HALF_CHUNK] {
        for _ in 0..80 {
            slow.push(begin(&shop, shape).await);
        }
    }
    assert_eq!(shop.customer.get("/v1/products").await.status, 200);
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    for lane in shop.mesh.admission(Name::Gateway).bulkheads() {
        assert_eq!((lane.in_flight(), lane.rejected()), (0, 0), "{:?}", lane.name());
    }
    drop(slow);
}

#[tokio::test]
async fn a_slow_upload_is_answered_408_as_a_problem() {
    let shop = Shop::open_with(|config| {
        patient(&mut config.limits);
        config.limits.body = Duration::from_millis(100);
    })
    .await;
    for shape in [HALF_BODY, HALF_CHUNK] {
        let mut slow = begin(&shop, shape).await;
        let mut answer = String::new();
        // Read to the end: the connection is closed as well.
        slow.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("application/problem+json") && answer.contains("the body was not sent in time"));
    }
}

#[tokio::test]
async fn half_a_head_on_the_operators_listener_is_closed() {
    let shop = Shop::open_with(|config| {
        patient(&mut config.limits);
        config.limits.head = Duration::from_millis(100);
    })
    .await;
    let url = shop.mesh.admin_url(Name::Gateway);
    let mut slow = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    slow.write_all(HALF_HEAD.as_bytes()).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(20), slow.read(&mut [0])).await;
    assert!(end.expect("the connection ends").is_ok_and(|bytes| bytes == 0));
}

#[tokio::test]
async fn silent_and_idle_sockets_do_not_hold_up_a_shutdown() {
    let shop = Shop::open_with(|config| {
        patient(&mut config.limits);
        config.grace = NEVER;
    })
    .await;
    let mut quiet = Vec::new();
    for shape in ["", HALF_HEAD] {
        quiet.push(begin(&shop, shape).await);
    }
    let mut idle = begin(&shop, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
    quiet.push(idle);
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    // Only the grace period, which is longer than the test may take, could end them otherwise.
    let exits = tokio::time::timeout(Duration::from_secs(60), shop.mesh.stop()).await.expect("stopped");
    assert!(exits.iter().all(|(_, exit)| matches!(exit, Exit::Finished)), "{exits:?}");
    for mut socket in quiet {
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once_and_places_come_back() {
    let shop = Shop::open_with(|config| {
        patient(&mut config.limits);
        config.limits.connections = 20;
    })
    .await;
    // One of them may be refused for a connection that the start of the mesh had open, so more are
    // opened, and held, until one is refused.
    let mut held = futures_util::future::join_all((0..20).map(|_| begin(&shop, ""))).await;
    loop {
        let mut more = begin(&shop, "").await;
        match tokio::time::timeout(Duration::from_secs(1), more.read(&mut [0])).await {
            Ok(Ok(0) | Err(_)) => break,
            _ => held.push(more),
        }
        assert!(held.len() < 60, "no connection is refused");
    }
    drop(held);
    until("others are served", async || {
        mesh::probe::probe(shop.mesh.addr(Name::Gateway), "/livez").await == Some(http::StatusCode::OK)
    })
    .await;
}

#[tokio::test]
async fn a_service_that_hangs_fills_the_lane_of_order_views_and_no_other() {
    let shop = Shop::open().await;
    let placed = shop.customer.place(&tea()).await;
    let location = placed.headers["location"].to_str().unwrap().to_owned();
    shop.settled_books().await;
    shop.mesh.faults(Name::Shipping).set(Plan { hang_rate: 1.0, ..Plan::default() });
    // An open circuit would end the hanging of all but the first views.
    shop.mesh.gateway_clients().shipping.breaker().disable();

    let views = shop.mesh.admission(Name::Gateway).lane(Lane::OrderViews).unwrap().clone();
    let mut viewing = JoinSet::new();
    // Each of those that get a place holds it for three attempts, longer than the rest may wait.
    for _ in 0..3 * views.limit() {
        let (customer, location) = (shop.customer.clone(), location.clone());
        viewing.spawn(async move { customer.get(&location).await });
    }
    until("the lane is full", async || views.in_flight() == views.limit() && views.waiting() > 0).await;
    for _ in 0..20 {
        assert_eq!(shop.customer.get("/v1/products").await.status, 200);
    }
    assert_eq!(shop.customer.get("/shop/reviews/tea").await.status, 200);
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    let (mut answered, mut refused) = (0, 0);
    while let Some(view) = viewing.join_next().await {
        let view = view.unwrap();
        match view.status.as_u16() {
            200 => {
                assert_eq!(view.body["missing"], serde_json::json!(["shipping"]));
                answered += 1;
            }
            503 => {
                assert!(view.headers.contains_key("retry-after"));
                refused += 1;
            }
            other => panic!("{other}: {}", view.body),
        }
    }
    assert!(answered >= views.limit() && refused > 0, "{answered} answered, {refused} refused");
    let metrics = shop.operator(Name::Gateway).text("/metrics").await;
    let line =
        format!(r#"resilience_bulkhead_rejected_total{{service="gateway",policy="gateway, order views"}} {refused}"#);
    assert!(metrics.contains(&line), "{line}\n{metrics}");
}
