//! A mesh in a temporary directory or on a server, a customer, and waiting with a timeout.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buttress_durable::{DbError, DomainEvent, EventBus, LogBus, args};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh::bus::Bus;
use mesh::db::{Databases, EVENTS, Files, Home, Server};
use mesh::demo::books::{self, Acknowledged, Books};
use mesh::mesh::{Config, Mesh, Name};
use mesh::token::Tokens;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than any wait in these tests takes on a busy machine. A longer wait is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    pub(crate) dir: TempDir,
    pub(crate) customer: Customer,
    databases: Databases,
}

/// Which databases a test uses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Sqlite,
    Postgres,
}

/// Runs each test on SQLite, and on PostgreSQL if a server is configured. The module's name selects
/// those that need it: see .config/nextest.toml.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::support::Place::Sqlite).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                if $crate::support::server().is_some() {
                    super::$test($crate::support::Place::Postgres).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

/// What a variable of the environment names for the calling test. Without it, `cargo test` leaves
/// the test out with a note; other runners select tests by name, so for them it is a failure.
pub(crate) fn offered(variable: &str) -> Option<String> {
    static LEFT_OUT: AtomicU64 = AtomicU64::new(1);
    let offered = std::env::var(variable).ok();
    if offered.is_none() {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or_default();
        assert!(std::env::var_os("NEXTEST").is_none(), "{test} needs what {variable} names, and it is not set");
        let count = LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        // Not `eprintln!`, which the test harness captures.
        let note = format!("left out, {count} by now: {test} needs {variable}, which is not set\n");
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
    offered
}

/// The PostgreSQL server for tests.
pub(crate) fn server() -> Option<String> {
    offered("BUTTRESS_TEST_POSTGRES")
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    pub(crate) async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::open_at(Place::Sqlite, change).await
    }

    pub(crate) async fn open_at(place: Place, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let databases = match place {
            Place::Sqlite => Databases::Files(Files(dir.path().to_owned())),
            Place::Postgres => {
                let prefix = format!("t{}_", &uuid::Uuid::now_v7().simple().to_string()[8..]);
                Databases::Server(Server::new(&server().unwrap(), &prefix[..20]).unwrap())
            }
        };
        let mut config = Config {
            drain_delay: Duration::ZERO,
            databases: databases.clone(),
            // Alice places most orders of the tests.
            orders_per_second: 1_000_000,
            ..Config::new(dir.path())
        };
        change(&mut config);
        let mesh = Mesh::start(config).await.unwrap();
        let customer = Customer::new(mesh.url(Name::Gateway)).with_tokens(mesh.tokens());
        Self { mesh, dir, customer, databases }
    }

    /// A client of a service's admin listener.
    pub(crate) fn operator(&self, service: Name) -> Customer {
        Customer::new(self.mesh.admin_url(service))
    }

    /// Kills the mesh and drops its databases on a server.
    pub(crate) async fn close(mut self) {
        for name in Name::ALL {
            self.mesh.crash(name).await;
        }
        if let Databases::Server(server) = &self.databases {
            for name in Name::ALL.map(Name::as_str).into_iter().chain([EVENTS]) {
                server.drop_database(name).await.unwrap();
            }
        }
    }

    /// Reads one number from a service's database.
    pub(crate) async fn count(&self, service: Name, sql: &'static str) -> i64 {
        async fn count(home: &impl Home, service: Name, sql: &'static str) -> Result<i64, DbError> {
            let db = home.look(service.as_str()).await?;
            let count = db.row::<(i64,)>(sql, args![]).await?.map_or(0, |(count,)| count);
            db.pool().close().await;
            Ok(count)
        }
        match &self.databases {
            Databases::Files(home) => count(home, service, sql).await.unwrap(),
            Databases::Server(home) => count(home, service, sql).await.unwrap(),
        }
    }

    /// Publishes an event on the embedded log, as no service would.
    pub(crate) async fn publish(&self, event: &DomainEvent) {
        async fn publish(home: &impl Home, event: &DomainEvent) {
            let bus = LogBus::new(home.open(EVENTS).await.unwrap());
            bus.publish(std::slice::from_ref(event)).await.unwrap();
            bus.db().pool().close().await;
        }
        match &self.databases {
            Databases::Files(home) => publish(home, event).await,
            Databases::Server(home) => publish(home, event).await,
        }
    }

    /// Changes a service's database directly.
    pub(crate) async fn cook(&self, service: Name, sql: &'static str) {
        async fn cook(home: &impl Home, service: Name, sql: &'static str) -> Result<u64, DbError> {
            let db = home.open(service.as_str()).await?;
            let mut tx = db.begin().await?;
            let cooked = tx.execute(sql, args![]).await?;
            tx.commit().await?;
            db.pool().close().await;
            Ok(cooked)
        }
        let cooked = match &self.databases {
            Databases::Files(home) => cook(home, service, sql).await.unwrap(),
            Databases::Server(home) => cook(home, service, sql).await.unwrap(),
        };
        // A statement that defines something changes no row.
        assert!(cooked == 1 || sql.starts_with("CREATE "), "{sql}");
    }

    pub(crate) async fn until_count(&self, service: Name, sql: &'static str, expected: i64) {
        until(sql, async || self.count(service, sql).await == expected).await;
    }

    /// Waits until no order, saga or event is in progress, and audits.
    pub(crate) async fn settled_books(&self) -> Books {
        let waiting = books::settled(&self.databases, PATIENCE).await.unwrap();
        assert_eq!(waiting, None, "never settled");
        books::audit(&self.databases, &Bus::Log, &Acknowledged::default()).await.unwrap()
    }
}

#[derive(Clone)]
pub(crate) struct Customer {
    client: Client<HttpConnector, Full<Bytes>>,
    gateway: String,
    tokens: Option<Tokens>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Customer {
    pub(crate) fn new(gateway: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), gateway, tokens: None }
    }

    /// Sends tokens: of the customer whom a body names, otherwise of alice.
    pub(crate) fn with_tokens(self, tokens: &Tokens) -> Self {
        Self { tokens: Some(tokens.clone()), ..self }
    }

    /// A token of a customer.
    pub(crate) fn token(&self, customer: &str) -> String {
        let token = self.tokens.as_ref().unwrap().issue(&customer.parse().unwrap(), mesh::clock::now_ms());
        format!("Bearer {token}")
    }

    pub(crate) async fn get_as(&self, customer: &str, path: &str) -> Reply {
        let request = Request::get(path).header(header::AUTHORIZATION, self.token(customer));
        self.send(request.body(Full::default()).unwrap()).await
    }

    async fn sign(&self, request: &mut Request<Full<Bytes>>) {
        if self.tokens.is_none() || request.headers().contains_key(header::AUTHORIZATION) {
            return;
        }
        let body = request.body().clone().collect().await.unwrap().to_bytes();
        let named = serde_json::from_slice::<Value>(&body).ok().and_then(|body| {
            let named = body.get("customer").or_else(|| body.get("author"))?.as_str()?;
            named.parse::<mesh::input::Customer>().ok()
        });
        let token = self.token(named.as_ref().map_or("alice", mesh::input::Customer::as_str));
        request.headers_mut().insert(header::AUTHORIZATION, token.parse().unwrap());
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        self.try_send(request).await.expect("an answer")
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let body = self.client.get(format!("{}{path}", self.gateway).parse().unwrap()).await.unwrap().into_body();
        String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap()
    }

    /// `None` if the connection broke.
    pub(crate) async fn try_send(&self, mut request: Request<Full<Bytes>>) -> Option<Reply> {
        *request.uri_mut() = format!("{}{}", self.gateway, request.uri()).parse().unwrap();
        self.sign(&mut request).await;
        let asking = async {
            let (parts, body) = self.client.request(request).await.ok()?.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            Some(Reply { status: parts.status, headers: parts.headers, body })
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
        self.send(keyed(key, order)).await
    }

    /// Repeats the request with the same key until the order is decided.
    pub(crate) async fn place_until_decided(&self, key: &str, order: &Value) -> Reply {
        loop {
            match self.try_send(keyed(key, order)).await {
                Some(reply) if reply.status == 201 || reply.body.get("order_id").is_some() => return reply,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

fn keyed(key: &str, order: &Value) -> Request<Full<Bytes>> {
    let mut request = post(order.to_string());
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/v1/orders").header(header::CONTENT_TYPE, "application/json").body(Full::new(body.into())).unwrap()
}

/// Two packets of tea, 15.80 in total.
pub(crate) fn tea() -> Value {
    json!({ "customer": "alice", "items": [{ "sku": "tea", "quantity": 2 }] })
}

/// Polls a condition until it is true, at most for `PATIENCE`.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, asking).await.is_ok(), "never came true: {what}");
}

/// A process of the program under test, killed when dropped. What it logs is kept.
pub(crate) struct Running {
    pub(crate) child: tokio::process::Child,
    log: std::path::PathBuf,
}

impl Running {
    /// Starts `mesh` with `args`, and logs as JSON into `dir`.
    pub(crate) fn start(dir: &TempDir, args: &[&str]) -> Self {
        let log = dir.path().join(format!("log of {}", args[0]));
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["--log", "json"])
            .args(args)
            .env("MESH_DATA_DIR", dir.path())
            .env("RUST_LOG", "info")
            .stdout(std::process::Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// The lines of its log.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let whole = text.lines().filter(|line| line.ends_with('}'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
    }

    #[cfg(unix)]
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}
