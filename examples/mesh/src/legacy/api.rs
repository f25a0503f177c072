//! The monolith's pages, unchanged. The catalogue has moved out: see the gateway's strangler table.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buttress_durable::Database;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::store::{Customer, Review, Store};
use crate::problem::{Json, Problem};

pub(super) fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    Router::new()
        .route("/shop/customers/{id}", get(customer::<D>))
        .route("/shop/reviews/{sku}", get(reviews::<D>).post(add_review::<D>))
        .with_state(store)
}

async fn customer<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let customer = store.customer(&id).await.map_err(|error| Problem::failed("legacy", &error))?;
    let Customer { id, name, since } =
        customer.ok_or_else(|| Problem::from_status(StatusCode::NOT_FOUND, format!("no customer is called {id}")))?;
    Ok(Json(json!({ "customer_no": id, "name": name, "customer_since": since })))
}

async fn reviews<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(sku): Path<String>,
) -> Result<Json<Value>, Problem> {
    let reviews = store.reviews(&sku).await.map_err(|error| Problem::failed("legacy", &error))?;
    let reviews: Vec<_> = reviews
        .into_iter()
        .map(|Review { author, stars, text }| json!({ "author": author, "stars": stars, "text": text }))
        .collect();
    Ok(Json(json!({ "sku": sku, "reviews": reviews })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    author: String,
    stars: i64,
    text: String,
}

async fn add_review<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(sku): Path<String>,
    Json(Draft { author, stars, text }): Json<Draft>,
) -> Result<Response, Problem> {
    if !(1..=5).contains(&stars) {
        return Err(Problem::from_status(StatusCode::UNPROCESSABLE_ENTITY, "stars: must be between 1 and 5"));
    }
    let review = Review { author, stars, text };
    let id = store.add_review(&sku, &review).await.map_err(|error| Problem::failed("legacy", &error))?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id, "sku": sku }))).into_response())
}
