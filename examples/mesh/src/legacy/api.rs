//! The monolith's pages. The catalogue has moved out: see the gateway's strangler table.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buttress_durable::Database;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::store::{Customer, Review, Store};
use crate::input::{self, Errors, Key, Prose, Sku};
use crate::page::PageQuery;
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
    let unknown = || Problem::from_status(StatusCode::NOT_FOUND, "there is no such customer");
    let id: input::Customer = id.parse().map_err(|_| unknown())?;
    let customer = store.customer(id.as_str()).await.map_err(|error| Problem::failed("legacy", &error))?;
    let Customer { id, name, since } = customer.ok_or_else(unknown)?;
    Ok(Json(json!({ "customer_no": id, "name": name, "customer_since": since })))
}

async fn reviews<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(sku): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let sku = product(&sku)?;
    let page = page.parse(|after| after.parse::<Key>().map(drop))?;
    let reviews = store.reviews(sku.as_str(), &page).await.map_err(|error| Problem::failed("legacy", &error))?;
    let (reviews, next) = page.cut(reviews, |review| review.id.clone());
    let reviews: Vec<_> = reviews
        .into_iter()
        .map(|Review { author, stars, text, .. }| json!({ "author": author, "stars": stars, "text": text }))
        .collect();
    Ok(Json(json!({ "sku": sku, "reviews": reviews, "next": next })))
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
    Json(draft): Json<Draft>,
) -> Result<Response, Problem> {
    let sku = product(&sku)?;
    let mut errors = Errors::default();
    let (author, text) =
        (errors.parse::<input::Customer>("author", &draft.author), errors.parse::<Prose>("text", &draft.text));
    if !(1..=5).contains(&draft.stars) {
        errors.add("stars", "must be between 1 and 5");
    }
    let (Some(author), Some(text), true) = (author, text, errors.is_empty()) else {
        return Err(Problem::invalid("invalid-review", "The review is not valid", &errors.into_vec()));
    };
    let adding = store.add_review(sku.as_str(), author.as_str(), draft.stars, text.as_str());
    let id = adding.await.map_err(|error| Problem::failed("legacy", &error))?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id, "sku": sku }))).into_response())
}

fn product(sku: &str) -> Result<Sku, Problem> {
    sku.parse().map_err(|_| Problem::from_status(StatusCode::NOT_FOUND, "there is no such product"))
}
