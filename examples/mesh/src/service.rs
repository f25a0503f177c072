//! What every service is given by whoever starts it, and how it serves and ends.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio_util::sync::CancellationToken;

use crate::faults::Faults;
use crate::stack::{Admission, Health, InvalidConfig};

/// One service's share of the world outside. Everything in it is a handle, so that whoever started the service can
/// watch and steer it.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    /// Bound by the starter, so that the others know the address before the first of them runs.
    pub listener: TcpListener,
    /// Behind /livez, /readyz and /startupz.
    pub health: Health,
    /// How much it takes on at once.
    pub admission: Admission,
    /// What is to go wrong on purpose.
    pub faults: Faults,
    /// Cancelled when it should end.
    pub stop: CancellationToken,
    /// How long requests in flight may take after that.
    pub grace: Duration,
}

/// Why a service did not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen")]
    Io(#[from] std::io::Error),
    #[error("cannot open the database")]
    Db(#[from] sqlx::Error),
    #[error("a layer is configured wrongly")]
    Layer(#[from] InvalidConfig),
    #[error("not an address of a service")]
    Address(#[from] tonic::transport::Error),
}

impl Service {
    /// Serves until told to stop, then until the requests in flight are done, but no longer than the grace period.
    pub async fn serve(self, app: Router) -> Result<(), StartError> {
        let Self { name, listener, health, stop, grace, .. } = self;
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|connection| {
            // Small answers should not wait for the next packet. A connection that refuses is about to fail anyway.
            let _ = connection.set_nodelay(true);
        });
        health.started();
        tracing::info!(service = name, %addr, "serving");
        // `with_state(())`: otherwise axum applies every layer again for each connection.
        let serving = axum::serve(listener, app.with_state(()).into_make_service())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let overtime = async {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            served = serving.into_future() => served?,
            () = overtime => tracing::warn!(service = name, ?grace, "requests still in flight, ending anyway"),
        }
        Ok(())
    }
}

/// The base URL of a service.
pub fn url(addr: SocketAddr) -> String {
    format!("http://{addr}")
}
