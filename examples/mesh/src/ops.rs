//! The client of `mesh ops`: asks the gateway's admin listener, which forwards to all services.
//!
//! It prints tables for people and JSON for programs, from the same answers.

mod table;

use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use table::Table;

use crate::admin::Token;
use crate::admin::attention::{Action, Decision, Filter, Item, Kind, Outcome};
use crate::launch::Name;

/// Timeout of one request: longer than the gateway waits for a service.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The gateway's admin listener.
#[derive(Clone, Debug)]
pub struct Gateway {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    token: Option<Token>,
}

/// What a service said about something: its name, and the answer.
#[derive(Clone, Debug, Serialize)]
pub struct Of<T> {
    pub service: &'static str,
    #[serde(flatten)]
    pub said: T,
}

/// What the services said, and those that did not answer: one that is down must not hide what waits
/// at the others.
#[derive(Clone, Debug)]
pub struct Answers<T> {
    pub said: Vec<Of<T>>,
    pub away: Vec<&'static str>,
}

/// The state of a service, as an operator wants to see it first.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// `None` if the service does not answer.
    pub ready: Option<bool>,
    /// Why it is degraded.
    pub degraded: Vec<String>,
    pub stuck_sagas: u64,
    pub dead_letters: u64,
    pub parked: u64,
    /// Events that its consumer group has not handled.
    pub lag: u64,
    /// Events that it has not published.
    pub unsent: u64,
    /// Requests that were refused because their customer was over its rate.
    pub over_rate: u64,
    /// Requests that the load shed refused.
    pub shed: u64,
}

impl Gateway {
    /// `url` is the base URL of the gateway's admin listener.
    pub fn new(url: &str, token: Option<Token>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, url: url.trim_end_matches('/').to_owned(), token }
    }

    /// The state of every service.
    pub async fn overview(&self) -> anyhow::Result<Vec<Of<Overview>>> {
        let mut all = Vec::new();
        for name in Name::ALL.into_iter().rev() {
            let state: Option<Value> = match self.get(&format!("/admin/services/{}/state", name.as_str())).await {
                Ok(state) => state,
                Err(error) if error.is::<Away>() => None,
                Err(error) => return Err(error),
            };
            all.push(Of { service: name.as_str(), said: overview(state.as_ref()) });
        }
        Ok(all)
    }

    /// Items of one kind that wait for an operator, of all services, oldest first.
    pub async fn waiting(&self, kind: Kind, filter: &Filter) -> anyhow::Result<Answers<Item>> {
        let mut all = Answers::new();
        for name in Name::ALL {
            let path = format!("/admin/services/{}/attention/{kind}?{}", name.as_str(), query(filter));
            let items: Option<Vec<Item>> = all.unless_away(name, self.get(&path).await)?;
            all.said.extend(items.into_iter().flatten().map(|said| Of { service: name.as_str(), said }));
        }
        all.said.sort_by_key(|item| item.said.since_ms);
        Ok(all)
    }

    /// Decides about items of one kind, in every service that has the kind. An id is tried at each
    /// service that lists it.
    pub async fn decide(&self, kind: Kind, action: Action, decision: &Decision) -> anyhow::Result<Answers<Outcome>> {
        let mut all = Answers::new();
        for name in Name::ALL {
            let path = format!("/admin/services/{}/attention/{kind}/{}", name.as_str(), action.as_str());
            let body = serde_json::to_vec(decision)?;
            let (status, body) = self.send(Method::POST, &path, body.into()).await?;
            let outcome = all.unless_away(name, read(status, &body))?;
            all.said.extend(outcome.map(|said| Of { service: name.as_str(), said }));
        }
        Ok(all)
    }

    /// The sagas with a status, newest first.
    pub async fn sagas(&self, status: &str, limit: u32) -> anyhow::Result<Vec<Value>> {
        let path = format!("/admin/services/order/sagas?newest=true&status={status}&limit={limit}");
        let page: Option<Value> = self.get(&path).await?;
        Ok(page.and_then(|mut page| page["sagas"].as_array_mut().map(std::mem::take)).unwrap_or_default())
    }

    /// Reads a resource. `None` if the answer is 404.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let (status, body) = self.send(Method::GET, path, Bytes::new()).await?;
        read(status, &body)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("--url: must be the address of the gateway's admin listener, like http://127.0.0.1:9080")?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(header::AUTHORIZATION, token.header());
        }
        let asking = async {
            let (parts, body) = self.client.request(request).await?.into_parts();
            let body = Body::new(body).collect().await?.to_bytes();
            anyhow::Ok((parts.status, body))
        };
        let url = &self.url;
        match tokio::time::timeout(TIMEOUT, asking).await {
            Ok(answer) => answer.with_context(|| {
                format!(
                    "no answer from {url}: start the mesh, or name the gateway's admin listener, which `mesh up` prints \
                     as the dashboard, with --url"
                )
            }),
            Err(_) => bail!(
                "no answer from {url} within {} s: see the gateway's log, or repeat the command later",
                TIMEOUT.as_secs()
            ),
        }
    }
}

impl<T> Answers<T> {
    fn new() -> Self {
        Self { said: Vec::new(), away: Vec::new() }
    }

    /// Passes an answer on, and remembers a service that gave none.
    fn unless_away<U>(&mut self, name: Name, answer: anyhow::Result<Option<U>>) -> anyhow::Result<Option<U>> {
        match answer {
            Err(error) if error.is::<Away>() => {
                self.away.push(name.as_str());
                Ok(None)
            }
            answer => answer,
        }
    }
}

/// Parses an answer. `None` if it is 404: the service has no such kind.
fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> anyhow::Result<Option<T>> {
    match status {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => serde_json::from_slice(body).map(Some).context("the answer cannot be read"),
        status => Err(refused(status, body)),
    }
}

/// A service does not answer the gateway.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Away(String);

/// What a refusal means for the operator, and what to do about it.
fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = problem["detail"].as_str().filter(|detail| !detail.is_empty());
    match status {
        StatusCode::UNAUTHORIZED => anyhow::Error::msg(
            "the gateway wants the operators' token: set MESH_ADMIN_TOKEN or --admin-token-file to the one that it was \
             started with",
        ),
        // Without a token the listener answers to loopback names only, so that no page of a browser
        // reaches it under a name of its own.
        StatusCode::MISDIRECTED_REQUEST => anyhow::Error::msg(
            "the gateway answers operators without a token on localhost only: use --url with localhost",
        ),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Away(detail.unwrap_or("the service does not answer").to_owned()).into()
        }
        // The detail names the flag and its rule.
        status if status.is_client_error() => match detail {
            Some(detail) => anyhow::anyhow!("{detail}"),
            None => anyhow::anyhow!(
                "the gateway does not understand the command (status {}): use the same version of mesh on both sides",
                status.as_u16()
            ),
        },
        status => anyhow::anyhow!(
            "a service failed (status {}{}): see its log for the cause",
            status.as_u16(),
            detail.map(|detail| format!(", {detail}")).unwrap_or_default()
        ),
    }
}

/// A filter as a query string.
fn query(filter: &Filter) -> String {
    let mut pairs = vec![format!("limit={}", filter.limit)];
    let texts = [("name", &filter.name), ("at", &filter.at), ("error", &filter.error)];
    pairs.extend(texts.into_iter().filter_map(|(key, text)| Some(format!("{key}={}", encode(text.as_ref()?)))));
    pairs.extend(filter.older_than_s.map(|seconds| format!("older_than_s={seconds}")));
    pairs.join("&")
}

/// Percent-encodes everything but letters and digits.
fn encode(text: &str) -> String {
    let byte = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

fn overview(state: Option<&Value>) -> Overview {
    let empty = Value::Null;
    let state = state.unwrap_or(&empty);
    // Gauges with labels have a key for each of them.
    let sum = |name: &str| {
        let gauges = state["gauges"].as_object();
        let of = |key: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '));
        let values = gauges.into_iter().flatten().filter(|(key, _)| of(key)).filter_map(|(_, value)| value.as_f64());
        values.sum::<f64>() as u64
    };
    let reasons = state["degraded"].as_array().into_iter().flatten();
    let rates = state["rates"].as_array().into_iter().flatten();
    let shed = state["load_shed"]["shed"].as_object().into_iter().flatten();
    Overview {
        ready: state["ready"].as_bool(),
        degraded: reasons.filter_map(|reason| reason.as_str().map(str::to_owned)).collect(),
        stuck_sagas: sum("saga.stuck"),
        dead_letters: sum("bus.dead.letters"),
        parked: sum("outbox.parked"),
        lag: sum("bus.lag"),
        unsent: sum("outbox.waiting"),
        over_rate: rates.filter_map(|rate| rate["rejected"].as_u64()).sum(),
        shed: shed.filter_map(|(_, shed)| shed.as_u64()).sum(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_filter_survives_the_query_string() {
        let filter =
            Filter { error: Some("a b&c=ü".to_owned()), older_than_s: Some(7), limit: 9, ..Filter::default() };
        assert_eq!(query(&filter), "limit=9&error=a%20b%26c%3D%C3%BC&older_than_s=7");
        let uri: http::Uri = format!("/?{}", query(&filter)).parse().unwrap();
        let axum::extract::Query(read) = axum::extract::Query::<Filter>::try_from_uri(&uri).unwrap();
        assert_eq!(read, filter);
    }

    #[test]
    fn gauges_are_added_up_over_their_labels() {
        let state = json!({
            "ready": true,
            "degraded": ["relay: no success for 61 s"],
            "rates": [{ "rejected": 2 }, { "rejected": 3 }],
            "load_shed": { "shed": { "critical": 1, "sheddable": 6 } },
            "gauges": { "saga.stuck": 2.0, "saga.stuck.by.definition order": 2.0, "bus.lag shipping A": 3.0, "bus.lag shipping B": 4.0 },
        });
        let Overview { ready, degraded, stuck_sagas, lag, parked, over_rate, shed, .. } = overview(Some(&state));
        assert_eq!((ready, degraded.len(), stuck_sagas, lag, parked), (Some(true), 1, 2, 7, 0));
        assert_eq!((over_rate, shed), (5, 7));
        assert_eq!(overview(None).ready, None);
    }

    #[test]
    fn a_service_that_is_away_is_told_apart_from_a_refusal() {
        assert!(refused(StatusCode::BAD_GATEWAY, b"{}").is::<Away>());
        let error = refused(StatusCode::UNPROCESSABLE_ENTITY, br#"{"detail": "note: must say why"}"#);
        assert_eq!((error.to_string().as_str(), error.is::<Away>()), ("note: must say why", false));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let told = |status, body: &str| refused(status, body.as_bytes()).to_string();
        assert!(told(StatusCode::UNAUTHORIZED, "").contains("--admin-token-file"));
        assert!(told(StatusCode::MISDIRECTED_REQUEST, "").contains("--url"));
        assert!(told(StatusCode::METHOD_NOT_ALLOWED, "").contains("same version"));
        let failed = told(StatusCode::INTERNAL_SERVER_ERROR, r#"{"detail": "internal error"}"#);
        assert!(failed.contains("internal error") && failed.contains("see its log"), "{failed}");
    }
}
