//! Fault switches for all services, on the gateway.
//!
//! | | |
//! |---|---|
//! | `GET /admin/faults` | every service's plan; `null` for a service that does not answer |
//! | `GET /admin/faults/{service}` | one service's plan |
//! | `PUT /admin/faults/{service}` | changes it, for example `{"error_rate": 0.5}`; `{}` ends all faults |
//!
//! Each service has its own switch on its own port. The gateway forwards the request, so the
//! services may run anywhere.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::future::join_all;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::rest::Rest;
use crate::faults::{self, Faults};
use crate::launch::{Addresses, Name};
use crate::problem::{Json, Problem};
use crate::stack;

const PATH: &str = "/admin/faults";

#[derive(Debug)]
struct Switches {
    /// The gateway's own switch, which is called directly.
    own: Faults,
    others: Vec<(Name, Rest)>,
}

pub(super) fn routes(own: Faults, addresses: &Addresses) -> Router {
    let others = Name::ALL.into_iter().filter(|name| *name != Name::Gateway);
    let others =
        others.map(|name| (name, Rest::new(name.as_str(), stack::admin_client(), addresses.of(name)))).collect();
    let own_switch = faults::routes_at("/admin/faults/gateway", Name::Gateway.as_str(), &own);
    Router::new()
        .route(PATH, get(show))
        .route("/admin/faults/{service}", get(pass_on).put(pass_on))
        .with_state(Arc::new(Switches { own, others }))
        .merge(own_switch)
}

async fn show(State(switches): State<Arc<Switches>>) -> Json<Map<String, Value>> {
    let asked = switches.others.iter().map(async |(name, rest)| {
        let plan = rest.get(PATH).await.ok().flatten().unwrap_or(Value::Null);
        (name.as_str().to_owned(), plan)
    });
    let mut plans: Map<_, _> = join_all(asked).await.into_iter().collect();
    plans.insert(Name::Gateway.as_str().to_owned(), json!(switches.own.plan()));
    Json(plans)
}

async fn pass_on(
    State(switches): State<Arc<Switches>>,
    Path(service): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let found = switches.others.iter().find(|(name, _)| name.as_str() == service);
    let unknown = || Problem::from_status(StatusCode::NOT_FOUND, format!("there is no service {service}"));
    let (_, rest) = found.ok_or_else(unknown)?;
    Ok(rest.forward(method, PATH, &headers, body?).await?)
}
