//! Test databases, crashes on demand, and waiting for conditions.

use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buttress_durable::db::{Arg, FaultPoint};
use buttress_durable::{Clock, Database, Db, DomainEvent, ManualClock, Timestamp};
use sqlx::{Connection, Postgres, Sqlite};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Far longer than any condition takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A database for one test, which outlives the simulated processes.
pub(crate) trait Backend: Database {
    type Home: Send + Sync;
    /// Whether it is on a server.
    const SERVER: bool;

    fn create() -> impl Future<Output = Self::Home> + Send;
    /// Returns the address by which another process opens it.
    fn address(home: &Self::Home) -> String;
    fn open_at(address: &str) -> impl Future<Output = Db<Self>> + Send;
    fn destroy(home: Self::Home) -> impl Future<Output = ()> + Send;

    fn connect(home: &Self::Home) -> impl Future<Output = Db<Self>> + Send {
        async { Self::open_at(&Self::address(home)).await }
    }
}

impl Backend for Sqlite {
    type Home = TempDir;
    const SERVER: bool = false;

    async fn create() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    fn address(home: &TempDir) -> String {
        home.path().join("test.db").to_str().unwrap().to_owned()
    }

    async fn open_at(address: &str) -> Db<Self> {
        Db::open(address).await.unwrap()
    }

    async fn destroy(home: TempDir) {
        home.close().unwrap();
    }
}

impl Backend for Postgres {
    type Home = String;
    const SERVER: bool = true;

    async fn create() -> String {
        let name = format!("buttress_{}", uuid::Uuid::now_v7().simple());
        admin(format!("CREATE DATABASE {name}")).await;
        name
    }

    fn address(home: &String) -> String {
        format!("{}/{home}", server().unwrap())
    }

    async fn open_at(address: &str) -> Db<Self> {
        Db::connect(address).await.unwrap()
    }

    async fn destroy(home: String) {
        admin(format!("DROP DATABASE {home} WITH (FORCE)")).await;
    }
}

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
        // Not eprintln: the test harness would capture it.
        let note = format!("left out, {count} by now: {test} needs {variable}, which is not set\n");
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
    offered
}

/// The server to test on, if there is one: `postgres://user@host:port`.
pub(crate) fn server() -> Option<String> {
    offered("BUTTRESS_TEST_POSTGRES").map(|url| url.trim_end_matches('/').to_owned())
}

async fn admin(sql: String) {
    let url = format!("{}/postgres", server().unwrap());
    let mut conn = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
}

/// Runs each generic test on SQLite, and on PostgreSQL if there is a server. The module's name
/// selects those that need it: see .config/nextest.toml.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::support::bounded(super::$test::<sqlx::Sqlite>()).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if $crate::support::server().is_some() {
                    $crate::support::bounded(super::$test::<sqlx::Postgres>()).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;

pub(crate) async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(10 * LIMIT, test).await.expect("the test hangs");
}

/// Waits up to one minute until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let look = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"));
}

pub(crate) fn clock() -> ManualClock {
    ManualClock::new(Timestamp::from_millis(1_700_000_000_000))
}

pub(crate) fn event(topic: &str, key: &str, number: i64) -> DomainEvent {
    DomainEvent::new(topic, key, Timestamp::from_millis(number), &number).unwrap()
}

pub(crate) async fn execute<D: Database>(conn: &mut D::Connection, sql: &'static str, args: &[Arg<'_>]) -> u64 {
    D::execute(conn, sql, args).await.unwrap()
}

pub(crate) async fn ints<D: Database>(db: &Db<D>, sql: &'static str) -> Vec<i64> {
    let mut conn = db.pool().acquire().await.unwrap();
    let rows = D::fetch(&mut conn, sql, &[]).await.unwrap();
    rows.iter().map(|row| D::int(row, 0).unwrap()).collect()
}

/// A process that crashes at its n-th boundary: a statement, a commit, or a call of a participant.
#[derive(Clone, Debug)]
pub(crate) struct Crash {
    at: u64,
    seen: Arc<AtomicU64>,
    dead: Arc<watch::Sender<bool>>,
}

impl Crash {
    pub(crate) fn at(n: u64) -> Self {
        Self { at: n, seen: Arc::default(), dead: Arc::new(watch::channel(false).0) }
    }

    pub(crate) fn never() -> Self {
        Self::at(u64::MAX)
    }

    fn hit(&self) -> bool {
        if self.seen.fetch_add(1, Ordering::SeqCst) + 1 >= self.at {
            self.dead.send_replace(true);
        }
        *self.dead.borrow()
    }

    /// A boundary of the test itself, for example before and after a participant's effect.
    pub(crate) async fn boundary(&self) {
        if self.hit() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs until the end or the crash. A crash drops everything that `life` owns.
    pub(crate) async fn live<T>(&self, life: impl Future<Output = T>) -> Option<T> {
        let mut dead = self.dead.subscribe();
        tokio::select! {
            biased;
            _ = dead.wait_for(|dead| *dead) => None,
            value = life => Some(value),
        }
    }
}

/// Opens the service's database as one process.
pub(crate) async fn open<D: Backend>(home: &D::Home, clock: Clock, crash: &Crash) -> Db<D> {
    let crash = crash.clone();
    D::connect(home).await.with_clock(clock).with_faults(move |_: FaultPoint| crash.hit())
}

/// Closes the connections of a process, as the operating system would.
pub(crate) async fn close<D: Database>(db: Db<D>) {
    db.pool().close().await;
}

/// Returns the database of a process, and the moments at which it runs a statement that begins with
/// `sql`.
#[expect(clippy::disallowed_methods, reason = "the paused clock of a test, which measures pauses")]
pub(crate) fn watched<D: Database>(db: Db<D>, sql: &'static str) -> (Db<D>, mpsc::UnboundedReceiver<Instant>) {
    let (seen, moments) = mpsc::unbounded_channel();
    let db = db.with_faults(move |point| {
        if matches!(point, FaultPoint::Statement(statement) if statement.starts_with(sql)) {
            let _ = seen.send(Instant::now());
        }
        false
    });
    (db, moments)
}

/// Starts a worker on a paused clock, and returns three pauses between its statements that begin
/// with `sql`. They are slightly longer than the worker's own: virtual time runs on while it waits
/// for the database.
pub(crate) async fn pauses<W>(sql: &'static str, start: impl AsyncFnOnce(Db<Sqlite>) -> W) -> Vec<Duration> {
    let home = Sqlite::create().await;
    let (db, mut moments) = watched(Sqlite::connect(&home).await, sql);
    // Opens all connections first: on a paused clock the time to wait for one is over at once.
    let most = db.pool().options().get_max_connections();
    let open = futures_util::future::join_all((0..most).map(|_| db.pool().acquire())).await;
    drop(open);
    while db.pool().num_idle() < most as usize {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    // A paused clock jumps to the next timer when all tasks wait, also when they wait for the
    // database. This timer keeps the jumps short.
    let ticks = tokio::spawn(async {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
        }
    });
    let worker = start(db.clone()).await;
    // What ran while it was set up.
    while moments.try_recv().is_ok() {}
    let mut last = moments.recv().await.unwrap();
    let mut pauses = Vec::new();
    while pauses.len() < 3 {
        let next = moments.recv().await.unwrap();
        pauses.push(next - last);
        last = next;
    }
    ticks.abort();
    drop(worker);
    pauses
}
