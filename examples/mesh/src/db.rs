//! One database per service. No service reads another service's tables.
//!
//! SQLite files are the embedded default; with `--postgres` each service has its own database on a
//! server. The stores are generic over the two and use one set of statements; [`crate::launch`]
//! chooses the database once.
//! The tables of the outbox, the inbox and the sagas are in the service's own database. Otherwise
//! they could not be written in the same transaction as its rows.

mod in_use;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use buttress::health::{Check, CheckConfig, Group, HealthExt};
use buttress::{Health, InvalidConfig};
use buttress_durable::db::PostgresOptions;
use buttress_durable::retention::RunningRetention;
use buttress_durable::{Database, Db, DbError, Retention};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Postgres, SqlSafeStr, Sqlite};

pub use in_use::{InUse, InUseError};

/// Name of the database that holds the embedded event log. It belongs to the bus, not to a service.
pub const EVENTS: &str = "events";

/// One file of a service's migrations folder: version, name and SQL.
pub type MigrationFile = (i64, &'static str, &'static str);

/// Where the databases are: the configuration of a whole mesh.
#[derive(Clone, Debug)]
pub enum Databases {
    Files(Files),
    Server(Server),
}

/// A directory with a SQLite file for each service.
#[derive(Clone, Debug)]
pub struct Files(pub PathBuf);

/// A PostgreSQL server with a database for each service.
#[derive(Clone, Debug)]
pub struct Server {
    options: Box<PgConnectOptions>,
    /// Prefix of each database's name, so that two meshes can share a server.
    prefix: String,
}

/// Opens databases by name.
pub trait Home: Clone + std::fmt::Debug + Send + Sync + 'static {
    type Database: Database;

    /// Opens a database, creates it if it does not exist, and migrates the `buttress_*` tables.
    fn open(&self, name: &str) -> impl Future<Output = Result<Db<Self::Database>, DbError>> + Send;

    /// Opens an existing database for reading. It is not created and not migrated.
    fn look(&self, name: &str) -> impl Future<Output = Result<Db<Self::Database>, DbError>> + Send;
}

/// Time limit for connecting to create a database.
const CONNECT: Duration = Duration::from_secs(5);

const DAY: Duration = Duration::from_hours(24);

/// Attempts to open a database. Several processes may create the same event log at the same time,
/// and only one succeeds.
const TRIES: u32 = 20;

impl Databases {
    /// Where a service's database and the event log are, for an operator who reads an error. Never
    /// contains a password.
    pub fn place(&self, service: &str) -> String {
        match self {
            Self::Files(Files(dir)) => format!("{service}.db and {EVENTS}.db in {}", dir.display()),
            Self::Server(Server { options, prefix }) => {
                let server = match options.get_socket() {
                    Some(socket) => socket.display().to_string(),
                    None => format!("{}:{}", options.get_host(), options.get_port()),
                };
                format!("{prefix}{service} and {prefix}{EVENTS} at {server}")
            }
        }
    }
}

/// Opens a service's database and migrates its schema.
pub async fn open<H: Home>(home: &H, name: &str, migrations: &[MigrationFile]) -> Result<Db<H::Database>, DbError> {
    let db = home.open(name).await?;
    db.migrate_own(&migrator(migrations)).await?;
    Ok(db)
}

/// Checks every 5 s that the database accepts writes, and makes the service unready while it does
/// not. Readiness
/// probes read the latest result and never wait for a check. Dropping the returned [`Check`] stops
/// it.
pub fn check<D: Database>(health: &Health, db: &Db<D>) -> Check {
    let db = db.clone();
    health.check("database", Group::Readiness, CheckConfig::every(Duration::from_secs(5)), move || {
        let db = db.clone();
        async move { db.check_writable().await }
    })
}

/// Deletes old rows of a service's database in the background, until it is dropped.
///
/// A payment or a reservation may be repeated, and a dead letter redriven, for as long as the inbox
/// remembers its event.
pub fn retain<D: Database>(db: &Db<D>, service: &'static str) -> Result<RunningRetention, InvalidConfig> {
    Retention::new(db.clone()).outbox(DAY).inbox(service, 30 * DAY).sagas(30 * DAY).start()
}

/// Deletes old records of the embedded log. They are younger than what the inboxes remember.
pub fn retain_log<D: Database>(events: &Db<D>) -> Result<RunningRetention, InvalidConfig> {
    Retention::new(events.clone()).log(7 * DAY).dead_letters(29 * DAY).start()
}

/// During a rolling update the old version runs on tables that the new one has migrated, so
/// migrations only add, and a version ignores those that it does not know.
fn migrator(files: &[MigrationFile]) -> Migrator {
    let migration = |&(version, name, sql): &MigrationFile| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(files.iter().map(migration).collect());
    migrator.set_ignore_missing(true);
    migrator
}

async fn tried<D: Database, F: Future<Output = Result<Db<D>, DbError>>>(
    open: impl Fn() -> F,
) -> Result<Db<D>, DbError> {
    for _ in 1..TRIES {
        match open().await {
            Ok(db) => return Ok(db),
            Err(error) => tracing::debug!(%error, "cannot open the database yet"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    open().await
}

// === impl Files ===

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.db"))
    }
}

impl Home for Files {
    type Database = Sqlite;

    async fn open(&self, name: &str) -> Result<Db<Sqlite>, DbError> {
        let path = self.path(name);
        tried(|| Db::open(&path)).await
    }

    async fn look(&self, name: &str) -> Result<Db<Sqlite>, DbError> {
        let options = SqliteConnectOptions::new().filename(self.path(name)).read_only(true);
        let options = options.busy_timeout(Duration::from_secs(5));
        Ok(Db::new(SqlitePoolOptions::new().max_connections(1).connect_with(options).await?))
    }
}

// === impl Server ===

/// Why a server's URL or prefix was rejected.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("postgres: must be a URL such as postgres://user:password@host:5432")]
    Url(#[source] sqlx::Error),
    #[error("database-prefix: must be 1 to 30 of a-z, 0-9 and _, beginning with a letter, not {0:?}")]
    Prefix(String),
}

impl Server {
    /// Parses `postgres://user:password@host:port`. If the URL names a database, new ones are
    /// created from a connection to it.
    pub fn new(url: &str, prefix: &str) -> Result<Self, ServerError> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let begins = prefix.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins || prefix.len() > 30 || !prefix.chars().all(legal) {
            return Err(ServerError::Prefix(prefix.to_owned()));
        }
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(ServerError::Url(sqlx::Error::Configuration("not a postgres:// URL".into())));
        }
        let options = Box::new(PgConnectOptions::from_str(url).map_err(ServerError::Url)?);
        Ok(Self { options, prefix: prefix.to_owned() })
    }

    /// The same databases by way of another address, such as that of a proxy.
    #[must_use]
    pub fn by_way_of(&self, address: SocketAddr) -> Self {
        let options = PgConnectOptions::clone(&self.options).host(&address.ip().to_string()).port(address.port());
        Self { options: Box::new(options), prefix: self.prefix.clone() }
    }

    /// Drops a database. For tests, which remove what they created.
    pub async fn drop_database(&self, name: &str) -> Result<(), DbError> {
        self.run(format!("DROP DATABASE IF EXISTS {}{name} WITH (FORCE)", self.prefix)).await
    }

    fn database(&self, name: &str) -> PgConnectOptions {
        PgConnectOptions::clone(&self.options).database(&format!("{}{name}", self.prefix))
    }

    async fn create(&self, name: &str) -> Result<(), DbError> {
        let mut conn = self.maintain().await?;
        let there: Option<(i32,)> = sqlx::query_as("SELECT 1 FROM pg_database WHERE datname = $1")
            .bind(format!("{}{name}", self.prefix))
            .fetch_optional(&mut conn)
            .await?;
        if there.is_none() {
            self.run(format!("CREATE DATABASE {}{name}", self.prefix)).await?;
        }
        Ok(())
    }

    /// Runs a statement in the maintenance database. Names cannot be placeholders; the SQL holds
    /// only a validated prefix and names from this program.
    async fn run(&self, sql: String) -> Result<(), DbError> {
        let mut conn = self.maintain().await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
        Ok(())
    }

    /// Connects to the maintenance database.
    async fn maintain(&self) -> Result<PgConnection, DbError> {
        let connect = self.maintenance();
        let connected = tokio::time::timeout(CONNECT, connect.connect()).await;
        Ok(connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))?)
    }

    fn maintenance(&self) -> PgConnectOptions {
        let database = self.options.get_database().unwrap_or("postgres").to_owned();
        PgConnectOptions::clone(&self.options).database(&database)
    }

    /// Few connections per service: seven services share a server that accepts 100 by default.
    async fn connect(&self, name: &str, connections: u32) -> Result<Db<Postgres>, DbError> {
        PostgresOptions::from(self.database(name)).max_connections(connections).connect().await
    }
}

impl Home for Server {
    type Database = Postgres;

    async fn open(&self, name: &str) -> Result<Db<Postgres>, DbError> {
        tried(|| async {
            self.create(name).await?;
            // Every service has a few connections to the log in addition to those to its own
            // database.
            let db = self.connect(name, if name == EVENTS { 3 } else { 5 }).await?;
            db.migrate().await?;
            Ok(db)
        })
        .await
    }

    async fn look(&self, name: &str) -> Result<Db<Postgres>, DbError> {
        self.connect(name, 1).await
    }
}

#[cfg(test)]
mod tests {
    use buttress_durable::args;

    use super::*;

    #[test]
    fn what_names_no_server_is_refused_with_the_rule() {
        let refused = |url, prefix| Server::new(url, prefix).unwrap_err().to_string();
        assert!(refused("sqlite://x", "mesh_").starts_with("postgres:"));
        for prefix in ["", "Mesh", "1mesh", "me-sh", "mesh; DROP", &"m".repeat(31)] {
            assert!(refused("postgres://localhost", prefix).starts_with("database-prefix:"), "{prefix:?}");
        }
        assert!(Server::new("postgres://postgres@127.0.0.1:5432", "mesh_").is_ok());
    }

    #[tokio::test]
    async fn a_database_is_created_when_it_is_opened_and_not_when_it_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let home = Files(dir.path().to_owned());
        assert!(home.look("order").await.is_err());
        assert!(!dir.path().join("order.db").exists());
        let db = home.open("order").await.unwrap();
        assert!(dir.path().join("order.db").exists());
        assert_eq!(home.look("order").await.unwrap().row("SELECT 7", args![]).await.unwrap(), Some((7_i64,)));
        db.pool().close().await;
    }

    #[tokio::test]
    async fn the_old_version_runs_on_tables_that_the_new_one_has_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let home = Files(dir.path().to_owned());
        let first: MigrationFile = (1, "init", "CREATE TABLE notes (id TEXT)");
        let new = open(&home, "order", &[first, (2, "more", "CREATE TABLE more (id TEXT)")]).await.unwrap();
        let old = open(&home, "order", &[first]).await.unwrap();
        assert_eq!(old.rows::<(String,)>("SELECT id FROM more", args![]).await.unwrap(), []);
        old.pool().close().await;
        new.pool().close().await;
    }

    #[tokio::test]
    async fn ages_fit_together() {
        let dir = tempfile::tempdir().unwrap();
        let db = Files(dir.path().to_owned()).open("order").await.unwrap();
        // The log and the inboxes are in different databases, so that only this test compares them.
        let all = Retention::new(db.clone()).inbox("order", 30 * DAY).log(7 * DAY).dead_letters(29 * DAY).start();
        assert!(all.is_ok() && retain(&db, "order").is_ok() && retain_log(&db).is_ok());
        db.pool().close().await;
    }

    #[test]
    fn the_longest_prefix_is_a_prefix() {
        let server = Server::new("postgresql://localhost", &"m".repeat(30)).unwrap();
        assert_eq!(server.database("order").get_database(), Some(format!("{}order", "m".repeat(30)).as_str()));
        assert_eq!(server.maintenance().get_database(), Some("postgres"));
        let named = Server::new("postgres://localhost/main", "m_").unwrap();
        assert_eq!(named.maintenance().get_database(), Some("main"));
        assert!(Server::new("http://localhost", "m_").is_err());
    }

    #[tokio::test]
    async fn readiness_follows_the_database() {
        use buttress::health::Probe;

        let dir = tempfile::tempdir().unwrap();
        let db = Files(dir.path().to_owned()).open("order").await.unwrap();
        let health = Health::new();
        health.started();
        let serving = |health: &Health| health.status(Probe::Readiness).is_serving();
        let until = async |wanted| {
            while serving(&health) != wanted {
                tokio::task::yield_now().await;
            }
        };
        let running = check(&health, &db);
        until(true).await;
        db.pool().close().await;
        // Each new check looks at once.
        drop(running);
        let _running = check(&health, &db);
        until(false).await;
        assert!(health.status(Probe::Liveness).is_serving(), "a restart would not help");
    }
}
