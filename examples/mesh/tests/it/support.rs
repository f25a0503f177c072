//! A mesh in a temporary directory, a customer, and bounded waiting.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh::db;
use mesh::demo::books::{self, Books};
use mesh::mesh::{Config, Mesh, Name};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    pub(crate) dir: TempDir,
    pub(crate) customer: Customer,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    pub(crate) async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { drain_delay: Duration::ZERO, ..Config::new(dir.path()) };
        change(&mut config);
        let mesh = Mesh::start(config).await.unwrap();
        let customer = Customer::new(mesh.url(Name::Gateway));
        Self { mesh, dir, customer }
    }

    /// One number from a service's database.
    pub(crate) async fn count(&self, service: Name, sql: &'static str) -> i64 {
        let db = db::open_read_only(&self.dir.path().join(format!("{}.db", service.as_str()))).await.unwrap();
        let (count,): (i64,) = sqlx::query_as(sql).fetch_one(&db).await.unwrap();
        db.close().await;
        count
    }

    pub(crate) async fn until_count(&self, service: Name, sql: &'static str, expected: i64) {
        until(sql, async || self.count(service, sql).await == expected).await;
    }

    /// Waits until every order is finished, and audits.
    pub(crate) async fn settled_books(&self) -> Books {
        let open = "SELECT COUNT(*) FROM orders WHERE state NOT IN ('confirmed', 'cancelled')";
        self.until_count(Name::Order, open, 0).await;
        books::audit(self.dir.path(), &[]).await.unwrap()
    }
}

#[derive(Clone)]
pub(crate) struct Customer {
    client: Client<HttpConnector, Full<Bytes>>,
    gateway: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Customer {
    pub(crate) fn new(gateway: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), gateway }
    }

    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Reply {
        *request.uri_mut() = format!("{}{}", self.gateway, request.uri()).parse().unwrap();
        let asking = async {
            let response = self.client.request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            Reply { status: parts.status, headers: parts.headers, body }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time")
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Full::default()).unwrap()).await
    }

    pub(crate) async fn place(&self, order: &Value) -> Reply {
        self.send(post(order.to_string())).await
    }

    pub(crate) async fn place_with_key(&self, key: &str, order: &Value) -> Reply {
        let mut request = post(order.to_string());
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        self.send(request).await
    }
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/v1/orders").header(header::CONTENT_TYPE, "application/json").body(Full::new(body.into())).unwrap()
}

/// Two packets of tea: 15.80.
pub(crate) fn tea() -> Value {
    json!({ "customer": "alice", "items": [{ "sku": "tea", "quantity": 2 }] })
}

/// Asks again and again until the answer is yes, but not for ever.
pub(crate) async fn until<Fut: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> Fut) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, asking).await.is_ok(), "never came true: {what}");
}
