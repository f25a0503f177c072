use std::str::FromStr;
use std::time::Duration;

use buttress_core::InvalidConfig;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, Postgres};

use super::session::{returns_by_itself, within};
use super::{Db, DbError};

/// Configures the connections to a PostgreSQL server: how many, and how long anything may take.
///
/// Every wait ends: for a connection, for a lock, for a statement, for a client that begins a
/// transaction and then stops, and for a server that stops answering without closing the
/// connection. Such a connection leaves the pool.
///
/// ```no_run
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::db::PostgresOptions;
/// use std::time::Duration;
///
/// let options = PostgresOptions::new("postgres://shop@db.internal/orders")?
///     .max_connections(5)
///     .statement_timeout(Duration::from_secs(3));
/// let db = options.connect().await?;
/// db.migrate().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The limits are parameters of the session, sent when it starts. A pooler between, such as
/// PgBouncer, must be configured to accept them.
#[derive(Clone, Debug)]
#[must_use]
pub struct PostgresOptions {
    connect: PgConnectOptions,
    max_connections: u32,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    lock_timeout: Duration,
    idle_in_transaction_timeout: Duration,
}

/// A connection that was idle for longer is pinged before its next use: the server may have been
/// restarted or replaced. A ping before every use costs about a quarter of the throughput.
const RESTED: Duration = Duration::from_secs(1);

/// Time limit for a ping.
const PING: Duration = Duration::from_secs(1);

/// How much longer the client waits for a statement than the server runs it.
const GRACE: Duration = Duration::from_secs(1);

/// What the server does about a client that has vanished without closing the connection. Detects it
/// after 10 s + 3 * 5 s if the connection is idle, and after 15 s if the server has sent something.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "15000"),
];

impl PostgresOptions {
    /// Parses `postgres://user:password@host:port/database`, and uses the defaults for the rest.
    ///
    /// # Errors
    ///
    /// [`DbError::Config`] if it is another kind of URL; [`DbError::Sqlx`] if it is malformed.
    pub fn new(url: &str) -> Result<Self, DbError> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(InvalidConfig::new("url", "must begin with `postgres://` or `postgresql://`").into());
        }
        Ok(PgConnectOptions::from_str(url)?.into())
    }

    /// Sets how many connections the pool opens at most. Default: 10; at least 1.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Sets how long to wait for a connection: a free one, or a new one. Default: 2 s, which is
    /// shorter than most callers' timeouts, so that they receive this error and not their own.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Sets how long a statement may run on the server (`statement_timeout`). Default: 4 s. The
    /// client waits for 1 s longer, and gives the connection up then. See [`Db::with_limit`] for
    /// what it limits.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// Sets how long a statement may wait for a lock (`lock_timeout`). Default: 3 s. It should be
    /// shorter than the statement timeout, which covers the wait as well.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// Sets after which time the server ends a session that is in a transaction and does nothing
    /// (`idle_in_transaction_session_timeout`). Default: 10 s.
    ///
    /// It frees the locks of a process that stopped in a transaction. It must be longer than
    /// anything that a healthy process does in a transaction other than statements; the outbox's
    /// relay publishes in one.
    pub fn idle_in_transaction_timeout(mut self, timeout: Duration) -> Self {
        self.idle_in_transaction_timeout = timeout;
        self
    }

    /// Opens a pool. It connects once, and does not migrate the tables: call
    /// [`Db::migrate`].
    ///
    /// # Errors
    ///
    /// [`DbError::Config`] if a timeout is shorter than 1 ms or longer than 24 days;
    /// [`DbError::Sqlx`] if the server cannot be reached.
    pub async fn connect(&self) -> Result<Db<Postgres>, DbError> {
        let pool = PgPoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(self.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|conn, found| {
                async move {
                    if found.idle_for > RESTED {
                        ping(conn).await?;
                    }
                    Ok(true)
                }
                .boxed()
            })
            // sqlx pings each connection that returns, without a limit. Sessions of this crate set
            // one; others are pinged here first.
            .after_release(|conn, _| if returns_by_itself() { tested(conn) } else { std::future::ready(Ok(true)).boxed() });
        let pool = pool.connect_with(self.session()?).await?;
        Ok(Db::new(pool).with_limit(self.statement_timeout.saturating_add(GRACE)))
    }

    /// Returns the options of a connection, with the parameters of its session.
    fn session(&self) -> Result<PgConnectOptions, DbError> {
        let timeouts = [
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
            ("idle_in_transaction_timeout", self.idle_in_transaction_timeout),
        ];
        let mut connect = self.connect.clone().options(KEEPALIVE);
        for (field, timeout) in timeouts {
            // Zero would mean no limit, and the server's parameter is an int4.
            let millis = i32::try_from(timeout.as_millis()).ok().filter(|millis| *millis > 0);
            let millis = millis.ok_or_else(|| InvalidConfig::new(field, "must be 1 ms to 24 days"))?;
            let parameter = field.replace("transaction_timeout", "transaction_session_timeout");
            connect = connect.options([(parameter, millis.to_string())]);
        }
        Ok(connect)
    }
}

impl From<PgConnectOptions> for PostgresOptions {
    fn from(connect: PgConnectOptions) -> Self {
        Self {
            connect,
            max_connections: 10,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(4),
            lock_timeout: Duration::from_secs(3),
            idle_in_transaction_timeout: Duration::from_secs(10),
        }
    }
}

async fn ping(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    within(Some(PING), conn.ping()).await
}

/// Whether a connection that returns is in order.
fn tested(conn: &mut PgConnection) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
    async move {
        ping(conn).await?;
        Ok(!conn.is_in_transaction())
    }
    .boxed()
}
