//! The operators' side of a service, on a listener of its own.
//!
//! | | |
//! |---|---|
//! | `GET /metrics` | all metrics, for Prometheus |
//! | `GET /admin/state` | the last ten seconds and the state of every layer, as JSON |
//! | `GET /admin/attention/{kind}` | what waits for an operator: `sagas`, `dead-letters`, `parked` |
//! | `POST /admin/attention/{kind}/{action}` | decides about it, one by one or by a filter |
//! | `GET`, `PUT /admin/faults` | the demo's fault switches (feature `faults`) |
//! | `/livez`, `/readyz`, `/startupz` | as on the customers' port |
//!
//! It listens on loopback unless told otherwise, never on the customers' port, and lets in only
//! requests that pass the `guard`. The gateway adds the dashboard and the way to the other
//! services; the order service adds its sagas.

pub mod attention;
mod credential;
mod guard;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use buttress_http::prelude::*;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use credential::{BadToken, Token};

use crate::edge::{self, Limits};
use crate::faults::{self, Faults};
use crate::problem;
use crate::stack::{Admission, Health};
use crate::telemetry::Telemetry;
use attention::Queues;
use guard::Guard;

/// Where a service accepts its operators' connections.
#[derive(Debug)]
pub struct AdminDoor {
    listener: TcpListener,
    token: Option<Token>,
}

/// Why an admin listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminDoorError {
    #[error(
        "admin-listen: {0} can be reached from other machines, so it needs a token: set MESH_ADMIN_TOKEN or \
         --admin-token-file"
    )]
    Open(SocketAddr),
    #[error("admin-listen: cannot listen on {addr}")]
    Io { addr: SocketAddr, source: io::Error },
}

impl AdminDoor {
    /// Listens on `addr`. Without a token, `addr` must be loopback.
    pub fn bind(addr: SocketAddr, token: Option<Token>) -> Result<Self, AdminDoorError> {
        if token.is_none() && !addr.ip().is_loopback() {
            return Err(AdminDoorError::Open(addr));
        }
        let listener = TcpListener::bind(addr).map_err(|source| AdminDoorError::Io { addr, source })?;
        Ok(Self { listener, token })
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the operators of a service can see and do. The parts of a service add to it before it
/// [serves](crate::service::Service::serve).
#[derive(Debug, Default)]
pub struct Admin {
    /// `None` in a simulation, which has no operators.
    door: Option<AdminDoor>,
    routes: Router,
    queues: Queues,
}

impl Admin {
    pub fn new(door: AdminDoor) -> Self {
        Self { door: Some(door), ..Self::default() }
    }

    /// Adds endpoints.
    pub(crate) fn add(&mut self, routes: Router) {
        self.routes = std::mem::take(&mut self.routes).merge(routes);
    }

    /// Adds work that may come to wait for an operator.
    pub(crate) fn queue(&mut self, queue: impl attention::Queue) {
        self.queues.add(queue);
    }

    /// Serves the operators until the returned handle is dropped. `None` without a listener.
    pub(crate) fn serve(self, of: &Observed<'_>) -> io::Result<Option<Serving>> {
        let Self { door, routes, queues } = self;
        let Some(AdminDoor { listener, token }) = door else { return Ok(None) };
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let guard = Guard::new(addr, token);
        let app = routes
            .merge(attention::routes(of.name, queues))
            .merge(of.telemetry.routes(of.health, of.admission, of.faults))
            .merge(faults::routes(of.name, of.faults))
            .fallback(problem::not_found)
            .layer(from_fn(problem::render))
            .layer(from_fn_with_state(guard, guard::admit))
            // Outside of the guard: an orchestrator's probes carry no token and reveal nothing.
            .layer(HealthLayer::new(of.health.clone()).http())
            .with_state(());
        tracing::info!(%addr, "serving operators");
        // Ends with the service.
        let accept = tokio::spawn(edge::serve(listener, app, of.limits, CancellationToken::new()));
        let readings = tokio::spawn(of.telemetry.clone().keep_reading());
        Ok(Some(Serving { _tasks: [AbortOnDropHandle::new(accept), AbortOnDropHandle::new(readings)] }))
    }
}

/// The handles of a service whose state its operators see.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) name: &'static str,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) health: &'a Health,
    pub(crate) admission: &'a Admission,
    pub(crate) faults: &'a Faults,
    pub(crate) limits: Limits,
}

/// A served admin listener. Dropping it closes the listener and its connections.
#[derive(Debug)]
pub(crate) struct Serving {
    _tasks: [AbortOnDropHandle<()>; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_served_without_a_token() {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let error = AdminDoor::bind(any, None).unwrap_err().to_string();
        assert!(error.starts_with("admin-listen: 0.0.0.0:0 ") && error.contains("MESH_ADMIN_TOKEN"), "{error}");
        assert!(AdminDoor::bind(any, Some(Token::new("0123456789abcdef").unwrap())).is_ok());
        for loopback in ["127.0.0.1:0", "127.8.9.1:0"] {
            assert!(AdminDoor::bind(loopback.parse().unwrap(), None).is_ok(), "{loopback}");
        }
    }
}
