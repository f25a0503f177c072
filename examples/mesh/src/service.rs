//! The inputs of every service, and how it serves and stops.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use buttress_durable::DbError;
use buttress_durable::bus::BusError;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Observed};
use crate::edge::{self, Limits};
use crate::faults::Faults;
use crate::network::Door;
use crate::stack::{Admission, Health, InvalidConfig};
use crate::telemetry::Telemetry;
use crate::token::KeyError;

/// The environment of one service. Its members are handles, so that the starter can observe and
/// control the service.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    /// Bound before the service runs, so that all addresses are known before the first service
    /// starts.
    pub door: Door,
    /// Deadlines and limits of connections.
    pub limits: Limits,
    /// State behind /livez, /readyz and /startupz.
    pub health: Health,
    /// The server-side bulkhead and timeout.
    pub admission: Admission,
    /// Faults to inject.
    pub faults: Faults,
    /// Spans, logs and metrics.
    pub telemetry: Telemetry,
    /// What operators see and do, on a listener of its own.
    pub admin: Admin,
    /// Cancelled to stop the service.
    pub stop: CancellationToken,
    /// How long requests in flight may take after that.
    pub grace: Duration,
}

/// Why a service did not start, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen")]
    Io(#[from] std::io::Error),
    #[error("cannot open the database")]
    Db(#[from] DbError),
    /// The same, with the place of the databases. See [`crate::launch::run`].
    #[error("cannot open {place}")]
    Open { place: String, source: DbError },
    #[error("cannot join the event bus")]
    Bus(#[from] BusError),
    #[error("a layer is configured wrongly")]
    Layer(#[from] InvalidConfig),
    #[error("cannot check the customers' tokens")]
    Token(#[from] KeyError),
    #[error("not an address of a service")]
    Address(#[from] tonic::transport::Error),
}

/// Address of a service, as `host:port`. Stays the same over restarts, like a name in service
/// discovery.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address(Arc<str>);

/// Why a text is not an address.
#[derive(Debug, thiserror::Error)]
#[error("must be host:port, not {0:?}")]
pub struct NotAnAddress(String);

impl Service {
    /// Serves until the service is stopped, then until the requests in flight are done, but at most
    /// for the grace period. Operators are served until the end.
    pub async fn serve(self, app: Router) -> Result<(), StartError> {
        let Self { name, door, health, admission, faults, telemetry, admin, stop, grace, limits } = self;
        let observed =
            Observed { name, telemetry: &telemetry, health: &health, admission: &admission, faults: &faults, limits };
        let _operators = admin.serve(&observed)?;
        let addr = door.local_addr()?;
        // `with_state(())` builds the layers once; otherwise axum applies them again for each
        // request.
        let app = app.with_state::<()>(());
        let serving = match door {
            Door::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                edge::serve(listener, app, limits, stop.clone()).boxed()
            }
            Door::Simulated(listener) => edge::serve(listener, app, limits, stop.clone()).boxed(),
        };
        health.started();
        tracing::info!(service = name, %addr, "serving");
        let overtime = async {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            () = serving => {}
            () = overtime => tracing::warn!(service = name, ?grace, "grace period over, dropping requests in flight"),
        }
        Ok(())
    }
}

// === impl Address ===

impl Address {
    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{self}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string().into())
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let authority: Option<http::uri::Authority> = text.parse().ok();
        match authority {
            Some(authority) if authority.port_u16().is_some_and(|port| port > 0) && !text.contains('@') => {
                Ok(Self(text.into()))
            }
            _ => Err(NotAnAddress(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for right in ["127.0.0.1:8080", "payment:8082", "[::1]:80", "payment.shop.svc.cluster.local:8082"] {
            assert_eq!(right.parse::<Address>().unwrap().to_string(), right);
        }
        for wrong in ["", "payment", "http://payment:8082", "payment:", "payment:0", "payment:99999", "a@b:1", "a b:1"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }
}
