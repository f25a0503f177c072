//! What every service is given by whoever starts it, and how it serves and ends.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use buttress_durable::DbError;
use buttress_durable::bus::BusError;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::faults::{self, Faults};
use crate::network::Door;
use crate::stack::{Admission, Health, InvalidConfig};
use crate::telemetry::Telemetry;

/// One service's share of the world outside. Everything in it is a handle, so that whoever started the service can
/// watch and steer it.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    /// Open before the service runs, so that the others know the address before the first of them runs.
    pub door: Door,
    /// Behind /livez, /readyz and /startupz.
    pub health: Health,
    /// How much it takes on at once.
    pub admission: Admission,
    /// What is to go wrong on purpose.
    pub faults: Faults,
    /// What can be seen of it.
    pub telemetry: Telemetry,
    /// Offer switches for operators under /admin. Not in production, unless something in front keeps customers out.
    pub admin: bool,
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
    Db(#[from] DbError),
    #[error("cannot join the event bus")]
    Bus(#[from] BusError),
    #[error("a layer is configured wrongly")]
    Layer(#[from] InvalidConfig),
    #[error("not an address of a service")]
    Address(#[from] tonic::transport::Error),
}

/// Where a service is: `host:port`. Stays the same over restarts, as a name in a discovery service would.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address(Arc<str>);

/// Why something is not an address.
#[derive(Debug, thiserror::Error)]
#[error("must be host:port, not {0:?}")]
pub struct NotAnAddress(String);

impl Service {
    /// What every service offers to operators: its metrics, and with [`admin`](Self::admin) its state and its fault switch.
    pub fn admin_routes(&self) -> Router {
        let seen = self.telemetry.routes(self);
        if self.admin { seen.merge(faults::routes(self.name, &self.faults)) } else { seen }
    }

    /// Serves until told to stop, then until the requests in flight are done, but no longer than the grace period.
    pub async fn serve(self, app: Router) -> Result<(), StartError> {
        let Self { name, door, health, stop, grace, .. } = self;
        let addr = door.local_addr()?;
        let serving = match door {
            Door::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|connection| {
                    // Small answers should not wait for the next packet. A connection that refuses is about to fail anyway.
                    let _ = connection.set_nodelay(true);
                });
                accept(listener, app, stop.clone()).boxed()
            }
            Door::Simulated(listener) => accept(listener, app, stop.clone()).boxed(),
        };
        health.started();
        tracing::info!(service = name, %addr, "serving");
        let overtime = async {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            served = serving => served?,
            () = overtime => tracing::warn!(service = name, ?grace, "requests still in flight, ending anyway"),
        }
        Ok(())
    }
}

async fn accept<L>(listener: L, app: Router, stop: CancellationToken) -> std::io::Result<()>
where
    L: Listener<Addr = SocketAddr>,
{
    // `with_state(())`: otherwise axum applies every layer again for each connection.
    let app = app.with_state(()).into_make_service();
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
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
