//! The dashboard: the state of the whole mesh on one page. It is for operators, so it needs
//! `--admin`.
//!
//! | | |
//! |---|---|
//! | `GET /dashboard` | the page: three files, no build step |
//! | `GET /dashboard/events` | the state of all services, twice a second, as server-sent events |
//! | `GET /admin/sagas`, `/admin/sagas/{id}` | the latest sagas, and one of them, from the order service |
//! | `GET /admin/traces?order=ID` | the latest traces, or those of one order |
//! | `GET /admin/traces/{id}` | one trace, with its spans |
//! | OTLP over gRPC | receives the spans of all services, as a collector does |

mod feed;
mod sagas;
mod traces;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, header};
use tokio_stream::wrappers::WatchStream;

use super::rest::Rest;
use crate::launch::{Addresses, Name};
use crate::stack;
pub(super) use feed::Feed;

pub(super) fn routes(feed: &Feed, addresses: &Addresses) -> Router {
    let orders = Rest::new(Name::Order.as_str(), stack::admin_client(), addresses.of(Name::Order));
    Router::new()
        .route("/", get(async || Redirect::temporary("/dashboard")))
        .route("/dashboard", get(page))
        .route("/dashboard/page.css", get(async || file("text/css; charset=utf-8", include_str!("dashboard/page.css"))))
        .route(
            "/dashboard/page.js",
            get(async || file("text/javascript; charset=utf-8", include_str!("dashboard/page.js"))),
        )
        .route("/dashboard/events", get(events))
        .with_state(feed.clone())
        .merge(sagas::routes(orders))
        .merge(traces::routes(Arc::default()))
}

async fn page() -> Response {
    let mut page = file("text/html; charset=utf-8", include_str!("dashboard/page.html"));
    // The page loads only its own files. Text that customers entered is never executed as a script.
    let policy = HeaderValue::from_static("default-src 'self'; frame-ancestors 'none'");
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    page
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

async fn events(State(feed): State<Feed>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    // Only the latest state, no backlog: a page that was suspended needs the current state, not the
    // states it missed.
    let states =
        WatchStream::new(feed.watch()).filter_map(async |state| state.map(|state| Event::default().data(&*state)));
    Sse::new(states.map(Ok)).keep_alive(KeepAlive::new().interval(Duration::from_secs(5)))
}
