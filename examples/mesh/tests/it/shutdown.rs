//! Shutdown with what operators have open.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh::mesh::Name;
use mesh::process::Exit;

use crate::support::Shop;
#[cfg(unix)]
use crate::support::{Running, until};

#[tokio::test]
async fn an_open_dashboard_does_not_delay_a_shutdown() {
    // Requests in flight may take an hour; an open page is not one of them.
    let shop = Shop::open_with(|config| config.grace = Duration::from_secs(3_600)).await;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let url = format!("{}/dashboard/events", shop.mesh.admin_url(Name::Gateway));
    let mut page = client.get(url.parse().unwrap()).await.unwrap().into_body();
    assert!(page.frame().await.unwrap().is_ok(), "it shows a state");
    let exits = shop.mesh.stop().await;
    assert!(exits.iter().all(|(_, exit)| matches!(exit, Exit::Finished)), "{exits:?}");
    while let Some(Ok(_)) = page.frame().await {}
}

#[cfg(unix)]
#[tokio::test]
async fn a_second_sigterm_ends_a_service_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["legacy", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain-delay", "3600"];
    let mut running = Running::start(&dir, &args);
    let says = |running: &Running, message: &str| running.lines().iter().any(|line| line["message"] == message);
    until("it serves", async || says(&running, "serving")).await;
    running.terminate();
    until("it drains", async || says(&running, "no longer ready")).await;
    assert!(running.child.try_wait().unwrap().is_none(), "it waits for load balancers");
    running.terminate();
    let status = running.child.wait().await.unwrap();
    assert_eq!(status.code(), Some(1));
    let last = running.lines().pop().unwrap();
    assert_eq!((&last["level"], &last["service"]), (&"WARN".into(), &"legacy".into()), "{last}");
    assert!(last["message"].as_str().unwrap().starts_with("asked twice to stop, exiting at once"), "{last}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_service_that_is_stopped_says_so_last() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["legacy", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain-delay", "0"];
    let mut running = Running::start(&dir, &args);
    until("it serves", async || running.lines().iter().any(|line| line["message"] == "serving")).await;
    running.terminate();
    assert_eq!(running.child.wait().await.unwrap().code(), Some(0));
    let last = running.lines().pop().unwrap();
    assert_eq!((&last["message"], &last["service"]), (&"stopped".into(), &"legacy".into()), "{last}");
}
