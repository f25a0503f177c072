use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buttress_durable::bus::{BusError, EventBus, Handler, Subscribe, Subscription};
use buttress_durable::db::{DbErrorKind, PostgresOptions};
use buttress_durable::{Db, DbError, DomainEvent, Outbox, args};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use sqlx::Postgres;

use super::proxy::Proxy;
use super::{create_notes, note, notes, works};
use crate::support::{Backend, bounded, close, event, eventually, server};

/// Runs a test on a new database of the server, if there is one.
async fn with_database(test: impl AsyncFnOnce(&str, Db<Postgres>)) {
    if server().is_none() {
        return;
    }
    let home = <Postgres as Backend>::create().await;
    let (address, db) = (<Postgres as Backend>::address(&home), <Postgres as Backend>::connect(&home).await);
    create_notes(&db).await;
    bounded(test(&address, db.clone())).await;
    close(db).await;
    <Postgres as Backend>::destroy(home).await;
}

/// Options for the database at `address` through a proxy that can fall silent.
async fn proxied(address: &str) -> (Proxy, PostgresOptions) {
    let (server, database) = address.rsplit_once('/').unwrap();
    let (user, host) = server.rsplit_once('@').unwrap();
    let to: SocketAddr = tokio::net::lookup_host(host).await.unwrap().next().unwrap();
    let proxy = Proxy::start(to).await;
    let options = PostgresOptions::new(&format!("{user}@{}/{database}", proxy.address)).unwrap();
    // Short, so that the test is.
    let options = options.statement_timeout(Duration::from_millis(500)).lock_timeout(Duration::from_millis(400));
    (proxy, options.idle_in_transaction_timeout(Duration::from_secs(1)).max_connections(5))
}

mod on_postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_statement_of_the_service_is_noticed() {
        with_database(async |_, db| {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("INSERT INTO notes (id) VALUES ('a')").execute(&mut *tx).await.unwrap();
            sqlx::query("SELECT 1 / 0").execute(&mut *tx).await.unwrap_err();
            assert!(matches!(tx.commit().await, Err(DbError::Aborted(None))));
            assert_eq!(notes(&db).await, Vec::<String>::new());
            works(&db).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_constraint_that_is_checked_at_the_commit_fails_it() {
        with_database(async |_, db| {
            let mut tx = db.begin().await.unwrap();
            let sql = "CREATE TABLE late (id BIGINT UNIQUE DEFERRABLE INITIALLY DEFERRED)";
            tx.execute(sql, args![]).await.unwrap();
            tx.commit().await.unwrap();
            let mut tx = db.begin().await.unwrap();
            tx.execute("INSERT INTO late (id) VALUES (1), (1)", args![]).await.unwrap();
            let error = tx.commit().await.unwrap_err();
            assert_eq!(error.kind(), DbErrorKind::Data, "{error:?}");
            works(&db).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_transaction_is_open_between_two_uses_of_a_connection() {
        with_database(async |_, db| {
            note(&db, "a").await.unwrap();
            let sql =
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
            eventually("all are idle", || async { db.row(sql, args![]).await.unwrap() == Some((0_i64,)) }).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_the_server_ended_all_sessions_everything_works_again() {
        with_database(async |_, db| {
            works(&db).await;
            let mut tx = db.begin().await.unwrap();
            tx.execute("INSERT INTO notes (id) VALUES ('undone')", args![]).await.unwrap();
            let sql = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            db.row::<(i64,)>(sql, args![]).await.unwrap();
            let error = tx.execute("INSERT INTO notes (id) VALUES ('undone')", args![]).await.unwrap_err();
            assert_eq!(error.kind(), DbErrorKind::Unavailable, "{error:?}");
            assert!(tx.commit().await.is_err());
            // Connections that were just used fail once each.
            eventually("a new one is made", || async { note(&db, "new").await.is_ok() }).await;
            eventually("all are new", || async {
                join_all((0..10).map(|_| notes_of(&db))).await.into_iter().all(|ok| ok)
            })
            .await;
            works(&db).await;
            assert_eq!(notes(&db).await, ["new"]);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn connections_to_a_server_that_fell_silent_are_replaced() {
        with_database(async |address, _| {
            let (proxy, options) = proxied(address).await;
            let db = options.connect().await.unwrap();
            works(&db).await;
            let open = db.begin().await.unwrap();
            proxy.silence();
            assert!(open.commit().await.is_err(), "the client gives up");
            // By the service's own statements as well, which nothing limits in the client.
            drop(tokio::time::timeout(Duration::from_millis(50), sqlx::query("SELECT 1").execute(db.pool())).await);
            eventually("it writes again", || async { note(&db, "after").await.is_ok() }).await;
            eventually("every place in the pool is free again", || async {
                join_all((0..5).map(|_| notes_of(&db))).await.into_iter().all(|ok| ok)
            })
            .await;
            works(&db).await;
            close(db).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_froze_while_publishing_frees_its_events() {
        with_database(async |address, db| {
            let (proxy, options) = proxied(address).await;
            let far = options.connect().await.unwrap();
            let append = async |n: i64| {
                let mut tx = db.begin().await.unwrap();
                Outbox::new(db.clone()).append(&mut tx, &event("T", "k", n)).await.unwrap();
                tx.commit().await.unwrap();
            };
            append(0).await;
            let frozen = Publishing { hangs: true, ..Publishing::default() };
            let relay = Outbox::new(far.clone()).relay(Arc::new(frozen.clone()));
            eventually("it publishes", || async { frozen.calls.load(Ordering::SeqCst) > 0 }).await;
            proxy.silence();
            append(1).await;
            let alive = Publishing::default();
            let other = Outbox::new(db.clone()).relay(Arc::new(alive.clone()));
            eventually("the other relay has published all", || async {
                Outbox::new(db.clone()).backlog().await.unwrap().unsent == 0
            })
            .await;
            assert!(alive.events.load(Ordering::SeqCst) >= 2);
            other.shutdown().await;
            drop(relay);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_and_a_lock_are_waited_for_as_long_as_set() {
        with_database(async |address, db| {
            let (_proxy, options) = proxied(address).await;
            let short = options.connect().await.unwrap();
            let slow = short.row::<(i64,)>("SELECT 1::bigint FROM pg_sleep(30)", args![]).await.unwrap_err();
            assert_eq!(slow.kind(), DbErrorKind::Timeout, "{slow:?}");
            let mut holder = db.begin().await.unwrap();
            holder.execute("LOCK TABLE notes", args![]).await.unwrap();
            let waiting = note(&short, "a").await.unwrap_err();
            assert_eq!(waiting.kind(), DbErrorKind::Unavailable, "{waiting:?}");
            holder.rollback().await.unwrap();
            works(&short).await;
            close(short).await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sessions_have_the_limits_of_the_documentation_and_migrations_have_none() {
        with_database(async |address, _| {
            let db = PostgresOptions::new(address).unwrap().connect().await.unwrap();
            let setting = async |name: &str| {
                let row: Option<(String,)> = db.row("SELECT current_setting($1)", args![name]).await.unwrap();
                row.unwrap().0
            };
            for (name, value) in [
                ("statement_timeout", "4s"),
                ("lock_timeout", "3s"),
                ("idle_in_transaction_session_timeout", "10s"),
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
                ("tcp_user_timeout", "15000"),
            ] {
                assert!(setting(name).await.starts_with(value), "{name}: {}", setting(name).await);
            }
            let short = PostgresOptions::new(address).unwrap().statement_timeout(Duration::from_millis(20));
            let sql = "SELECT pg_sleep(0.2)";
            let migration = sqlx::migrate::Migration::new(
                1,
                "slow".into(),
                sqlx::migrate::MigrationType::Simple,
                sqlx::SqlSafeStr::into_sql_str(sql),
                false,
            );
            let migrator = sqlx::migrate::Migrator::with_migrations(vec![migration]);
            let short = short.connect().await.unwrap();
            short.migrate_own(&migrator).await.unwrap();
            assert!(short.row::<(i64,)>("SELECT 1::bigint FROM pg_sleep(1)", args![]).await.is_err());
            close(short).await;
            close(db).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_limit_of_zero_or_beyond_the_servers_range_is_refused_with_its_name() {
    let options = PostgresOptions::new("postgres://nobody@127.0.0.1:1/none").unwrap();
    for wrong in [Duration::ZERO, Duration::MAX, Duration::from_micros(999)] {
        let error = |options: PostgresOptions| async move { options.connect().await.unwrap_err().to_string() };
        assert!(error(options.clone().statement_timeout(wrong)).await.contains("`statement_timeout`"));
        assert!(error(options.clone().lock_timeout(wrong)).await.contains("`lock_timeout`"));
        let idle = error(options.clone().idle_in_transaction_timeout(wrong)).await;
        assert!(idle.contains("`idle_in_transaction_timeout`"), "{idle}");
    }
    assert!(PostgresOptions::new("http://x").unwrap_err().to_string().contains("`url`"));
}

async fn notes_of(db: &Db<Postgres>) -> bool {
    db.rows::<(String,)>("SELECT id FROM notes", args![]).await.is_ok()
}

/// A bus that counts, or hangs.
#[derive(Clone, Debug, Default)]
struct Publishing {
    hangs: bool,
    calls: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
}

impl EventBus for Publishing {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.hangs {
                std::future::pending::<()>().await;
            }
            self.events.fetch_add(events.len(), Ordering::SeqCst);
            events.iter().map(|_| Ok(())).collect()
        }
        .boxed()
    }

    fn subscribe(&self, _: Subscribe, _: Arc<dyn Handler>) -> BoxFuture<'_, Result<Subscription, BusError>> {
        async { Err(BusError::Unknown("not a bus to subscribe to".to_owned())) }.boxed()
    }
}
