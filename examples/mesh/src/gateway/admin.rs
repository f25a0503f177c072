//! Fault switches over HTTP, for people who want to see the mesh suffer.
//!
//! | | |
//! |---|---|
//! | `GET /admin/faults` | every service's plan |
//! | `PUT /admin/faults/{service}` | changes one, for example `{"error_rate": 0.5}`; `{}` ends all faults |

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::faults::{Faults, Plan};
use crate::problem::{Json, Problem};

type Switches = Arc<[(&'static str, Faults)]>;

pub(super) fn routes(switches: Vec<(&'static str, Faults)>) -> Router {
    Router::new()
        .route("/admin/faults", get(show))
        .route("/admin/faults/{service}", put(change))
        .with_state(switches.into())
}

async fn show(State(switches): State<Switches>) -> Json<Map<String, Value>> {
    Json(switches.iter().map(|(service, faults)| ((*service).to_owned(), json!(faults.plan()))).collect())
}

async fn change(
    State(switches): State<Switches>,
    Path(service): Path<String>,
    Json(plan): Json<Plan>,
) -> Result<Json<Plan>, Problem> {
    let (service, faults) = switches.iter().find(|(name, _)| *name == service).ok_or_else(|| {
        Problem::from_status(StatusCode::NOT_FOUND, format!("no service {service} with a fault switch"))
    })?;
    plan.check().map_err(|rule| Problem::from_status(StatusCode::UNPROCESSABLE_ENTITY, rule))?;
    tracing::warn!(service, ?plan, "faults changed");
    faults.set(plan.clone());
    Ok(Json(plan))
}
