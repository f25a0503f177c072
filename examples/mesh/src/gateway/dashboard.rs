//! The dashboard: the state of the whole mesh on one page. It is for operators, so it is on the
//! gateway's admin listener.
//!
//! | | |
//! |---|---|
//! | `GET /dashboard` | the page: three files, no build step |
//! | `GET /dashboard/events` | the state of all services, twice a second, as server-sent events |
//! | `POST /dashboard/orders` | places an order, as a customer does |
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
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, header};

use super::admin::Listeners;
use super::rest::{Rest, with_key};
use crate::problem::Problem;
pub(super) use feed::Feed;

/// `orders` places the orders of the page's form.
pub(super) fn routes(feed: &Feed, listeners: Listeners, orders: Rest) -> Router {
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
        .route("/dashboard/orders", post(place))
        .with_state(orders)
        .merge(sagas::routes(listeners))
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
    let states = feed.watch().map(|state| Ok(Event::default().data(&*state)));
    Sse::new(states).keep_alive(KeepAlive::new().interval(Duration::from_secs(5)))
}

/// Places an order through the gateway's own client of the order service. The customers' port is
/// another origin, which the page's policy does not allow.
async fn place(
    State(orders): State<Rest>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Ok(orders.forward(Method::POST, "/v1/orders", &with_key(&headers), body?).await?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    /// The colours of a theme: the first `:root` is the light one, the second the dark one.
    fn theme(number: usize) -> HashMap<&'static str, [f64; 3]> {
        let css = include_str!("dashboard/page.css");
        let block = css.split(":root {").nth(number + 1).unwrap().split('}').next().unwrap();
        let colour = |declaration: &'static str| {
            let (name, value) = declaration.trim().strip_prefix("--")?.split_once(": #")?;
            assert_eq!(value.len(), 6, "{name}");
            let part = |at: usize| f64::from(u8::from_str_radix(&value[at..at + 2], 16).unwrap()) / 255.0;
            Some((name, [part(0), part(2), part(4)]))
        };
        block.split(';').filter_map(colour).collect()
    }

    /// WCAG 2.2, "relative luminance".
    fn luminance(colour: [f64; 3]) -> f64 {
        let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
        let [r, g, b] = colour.map(linear);
        0.2126 * r + 0.7152 * g + 0.0722 * b
    }

    /// WCAG 2.2, "contrast ratio".
    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn text_can_be_read_and_controls_can_be_seen_in_both_themes() {
        for number in [0, 1] {
            let theme = theme(number);
            for ground in ["paper", "card"] {
                for text in ["ink", "soft", "good", "warn", "bad", "cool"] {
                    let ratio = contrast(theme[text], theme[ground]);
                    assert!(ratio >= 4.5, "theme {number}: {text} on {ground} has {ratio:.2}");
                }
                let ratio = contrast(theme["edge"], theme[ground]);
                assert!(ratio >= 3.0, "theme {number}: the edge of a control on {ground} has {ratio:.2}");
            }
            // A pressed switch.
            assert!(contrast(theme["paper"], theme["bad"]) >= 4.5, "theme {number}");
        }
    }
}
