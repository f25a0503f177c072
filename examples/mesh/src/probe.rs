//! Asking a service how it is, from outside, as an orchestrator would.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// How long one question may take: Kubernetes' default.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The status that `path` answers with. `None` if nobody answers.
pub async fn probe(addr: SocketAddr, path: &str) -> Option<StatusCode> {
    let uri: Uri = format!("http://{addr}{path}").parse().ok()?;
    // A client of its own each time: a kept connection would say nothing about the listener.
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(TIMEOUT, client.get(uri)).await.ok()?.ok()?;
    Some(answer.status())
}

/// Waits until a service says that it is ready for traffic.
pub async fn ready(addr: SocketAddr) {
    while probe(addr, "/readyz").await != Some(StatusCode::OK) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
