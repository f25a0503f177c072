//! Probes a service from outside, as an orchestrator does.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Timeout of one probe: Kubernetes' default of 1 s.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the status of `path`, or `None` if there is no answer.
pub async fn probe(addr: SocketAddr, path: &str) -> Option<StatusCode> {
    let uri: Uri = format!("http://{addr}{path}").parse().ok()?;
    // A new client each time: an open connection would not show whether the listener still accepts.
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(TIMEOUT, client.get(uri)).await.ok()?.ok()?;
    Some(answer.status())
}

/// Waits until a service is ready.
pub async fn ready(addr: SocketAddr) {
    while probe(addr, "/readyz").await != Some(StatusCode::OK) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
