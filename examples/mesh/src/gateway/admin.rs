//! The way from the gateway's operators to all services: their faults, and what waits for an
//! operator.
//!
//! | | |
//! |---|---|
//! | `GET /admin/services` | the names of the services |
//! | `GET /admin/services/{service}/state` | forwarded to the service's `/admin/state` |
//! | `GET`, `POST /admin/services/{service}/attention/...` | forwarded to its `/admin/attention/...` |
//! | `GET`, `PUT /admin/services/{service}/faults` | forwarded to its `/admin/faults`, for example `{"error_rate": 0.5}`; `{}` ends all faults |
//! | `GET /admin/services/order/sagas...` | forwarded to its `/admin/sagas` |
//!
//! Each service has an admin listener of its own, also the gateway, so the services may run
//! anywhere, and one way leads to all of them.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, Method, StatusCode};

use super::rest::Rest;
use crate::launch::Name;
use crate::problem::{Json, Problem};

/// What may be forwarded. Everything else of a service stays on its own listener.
const FORWARDED: [&str; 4] = ["attention", "faults", "sagas", "state"];

/// The admin listeners of all services.
#[derive(Clone, Debug)]
pub(super) struct Listeners(Arc<[(Name, Rest)]>);

impl Listeners {
    pub(super) fn new(of: impl FnMut(Name) -> (Name, Rest)) -> Self {
        Self(Name::ALL.into_iter().rev().map(of).collect())
    }

    /// All of them, the gateway first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(Name, Rest)> {
        self.0.iter()
    }

    pub(super) fn of(&self, name: &str) -> Result<&Rest, Problem> {
        let found = self.0.iter().find(|(known, _)| known.as_str() == name);
        let unknown = || Problem::from_status(StatusCode::NOT_FOUND, format!("there is no service {name}"));
        found.map(|(_, rest)| rest).ok_or_else(unknown)
    }
}

pub(super) fn routes(listeners: Listeners) -> Router {
    Router::new()
        .route("/admin/services", get(async || Json(Name::ALL.map(Name::as_str))))
        .route("/admin/services/{service}/{*path}", get(pass_on).put(pass_on).post(pass_on))
        .with_state(listeners)
}

async fn pass_on(
    State(listeners): State<Listeners>,
    Path((service, path)): Path<(String, String)>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let rest = listeners.of(&service)?;
    // The path as it was sent, because the extracted one is decoded.
    let sent = uri.path().strip_prefix(&format!("/admin/services/{service}/")).unwrap_or_default();
    let first = path.split('/').next().unwrap_or_default();
    if !FORWARDED.contains(&first) || path.split('/').any(|segment| segment == "..") {
        return Err(Problem::from_status(StatusCode::NOT_FOUND, format!("/admin/{path} is not forwarded")));
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok(rest.forward(method, &format!("/admin/{sent}{query}"), &headers, body?).await?)
}
