//! Domain events, transactional outbox, inbox and sagas over SQLite or PostgreSQL.
//!
//! The layers of the crate `buttress` protect a single call. This crate keeps data consistent when
//! a call has failed, a process has crashed, or a message was delivered twice. It needs a database,
//! SQLite or PostgreSQL ([`db`]). A broker is embedded; Kafka can replace it.
//!
//! | module | purpose |
//! |---|---|
//! | [`event`] | what happened, to which aggregate, when, in which trace |
//! | [`outbox`] | publishes an event if, and only if, its transaction commits |
//! | [`bus`] | consumer groups, retries and dead letters, over the embedded log or Kafka |
//! | [`inbox`] | handles an event once, however often it is delivered |
//! | [`saga`] | a change across services that completes everywhere or is compensated |
//! | [`retention`] | deletes what is no longer needed |
//!
//! # Example
//!
//! An order and its event are written in one transaction, published by a relay, and handled once:
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! use buttress_durable::bus::{EventBus, LogBus, Subscribe};
//! use buttress_durable::{Db, DomainEvent, Inbox, Outbox, args};
//! use futures_util::FutureExt;
//! use std::sync::Arc;
//!
//! # let dir = tempfile::tempdir()?;
//! let db = Db::open(dir.path().join("orders.db")).await?;
//! let mut tx = db.begin().await?;
//! tx.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)", args![]).await?;
//! tx.execute("CREATE TABLE parcels (order_id TEXT NOT NULL)", args![]).await?;
//! tx.commit().await?;
//!
//! let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()));
//! let outbox = Outbox::new(db.clone());
//! let relay = outbox.relay(bus.clone());
//! let handler = Inbox::new(db.clone(), "shipping").handler(|tx, event| {
//!     async move {
//!         tx.execute("INSERT INTO parcels (order_id) VALUES ($1)", args![event.key()]).await?;
//!         Ok(())
//!     }
//!     .boxed()
//! });
//! let shipping = bus.subscribe(Subscribe::new("shipping", ["OrderCreated"])?, Arc::new(handler)).await?;
//!
//! let mut tx = db.begin().await?;
//! tx.execute("INSERT INTO orders (id) VALUES ($1)", args!["order-7"]).await?;
//! let event = DomainEvent::new("OrderCreated", "order-7", db.clock().now(), &())?;
//! outbox.append(&mut tx, &event).await?;
//! tx.commit().await?;
//! outbox.wake();
//! # let parcels = async || -> Result<i64, buttress_durable::DbError> {
//! #     let row: Option<(i64,)> = db.row("SELECT COUNT(*) FROM parcels", args![]).await?;
//! #     Ok(row.map_or(0, |(count,)| count))
//! # };
//! # while parcels().await? == 0 {
//! #     tokio::time::sleep(std::time::Duration::from_millis(5)).await;
//! # }
//! relay.shutdown().await;
//! shipping.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `sqlite` | yes | [`Db::open`](Db): SQLite, built from source by a C compiler |
//! | `postgres` | no | [`Db::connect`](Db): PostgreSQL |
//! | `kafka` | no | `KafkaBus`: the event bus over Kafka; builds librdkafka with a C compiler and make |
//! | `kafka-tls` | no | TLS and SCRAM for `KafkaBus`; links OpenSSL (Debian: `libssl-dev`, `pkg-config`) |
//! | `fault-points` | no | `Db::with_faults`: simulated crashes. For tests only |
//!
//! # Guarantees
//!
//! "Exactly once" means an effect in this database, in the transaction that records it. No library
//! can guarantee it for an effect elsewhere: such a call is made at least once with the same
//! idempotency key, and the participant must make it idempotent.
//!
//! | operation | guarantee |
//! |---|---|
//! | [`Outbox::append`] | atomic with the caller's transaction; idempotent by the event's id |
//! | the relay ([`Outbox::relay`]) | at least once; ordered per topic and key as the transactions committed. What cannot be published holds back only its own key, or topic |
//! | [`EventBus::publish_each`] | at least once, ordered per topic and key, with a result for each event. [`LogBus`]: one transaction for each call, and an event that the log holds is not appended again. `KafkaBus`: not queued again while it is in the queue |
//! | positions of the log | without gaps per partition (except where a dead letter was removed), in commit order, never reused |
//! | [`EventBus::subscribe`] | at least once to every group; ordered per key until an event of that key becomes a dead letter |
//! | a commit of a group's position | only by the member that owns the partition; the commit of a replaced owner has no effect |
//! | a failing, panicking or hanging handler | not acknowledged: retried, then moved to the dead-letter topic before the group continues ([`LogBus`]: in the transaction of the commit) |
//! | a handler whose database or bus is away | not acknowledged: the partition pauses, no attempt is used up, nothing becomes a dead letter |
//! | an event that ends its process | counted when another member takes over: after the last attempt a dead letter |
//! | [`Inbox::handler`] | the writes in its transaction: exactly once for each consumer and event, until [`purge`](Inbox::purge) |
//! | [`Starter::start`](saga::Starter::start) | atomic with the caller's transaction; once for each definition and id |
//! | a [local](saga::Step::local) step, and the events of any step | exactly once |
//! | a remote action or compensation | at least once, always with the same key |
//! | a saga | ends with every step done, or with every step undone that was or may have been done, or is [stuck](saga::Stuck) and listed |
//! | what the caller wrote with the start of a saga | undone by the local compensation of the first step, if the saga is compensated |
//! | an outage of a participant or of the database | uses up no attempts, where the step [says so](saga::StepError::not_sent): the saga waits |
//! | a hook of a [decision](saga::Definition::on_skip) | in the transaction of the decision |
//! | two coordinators on one saga | never both write; calls of one that has lost its lease may still arrive |
//! | order across keys | none |
//! | isolation between sagas | none: others see what a saga has done before it is compensated |
//! | [`Tx::commit`] | fails, and commits nothing, if a statement of the transaction has failed and no savepoint undid it. On SQLite statements on the connection itself are not watched |
//! | a broken connection, a full disk, a silent server | one error, after a limited time; the connection leaves the pool, and everything works again as soon as the database does |
//! | leases and clock jumps | on PostgreSQL measured by the server's clock. A jump may hand work over early or late, and so repeat a call; two owners never both write, and a lease that ends too late to be right is free |
//! | [`Retention`] | each transaction is short; never deletes what waits, is parked or stuck, or what a group has not handled |
//! | a rolling update | older versions run on the tables of newer ones: migrations only add |
//! | a power cut | PostgreSQL: as the server is configured. SQLite as [`Db::open`](Db) sets it: the last transactions may be lost, each as a whole |
//!
//! # How it is tested
//!
//! **Killed processes.** The tests start themselves as a service with a coordinator, a relay, a
//! log, and a consumer with its inbox. The service sends itself SIGKILL before a statement, before
//! or after a commit, or around an effect of a participant: one process for the first occurrence of
//! each boundary, and one for a later occurrence. A new process continues on the same database, and
//! the test counts the effects: of an order that succeeds, one that is declined, and one whose
//! answers are lost. In another test two processes share a database, one of them is killed
//! repeatedly at random moments (the seed is printed), and their logs of calls show that no two
//! calls of one saga overlap. In a third, one process after the other is killed at random, over
//! Kafka's mock cluster in the test's own process.
//!
//! **Simulated crashes.** With the feature `fault-points` a test stops the code at the *n*-th
//! boundary, for every *n* until the run completes: a saga with its relay and log (success with
//! retries, a rejection, a payment whose answer is lost), a relay, and a consumer with its inbox.
//! Others crash repeatedly at random boundaries from a fixed seed, or drop a coordinator after the
//! *n*-th poll. Three coordinators on one database share forty sagas, and no saga may have two
//! calls at the same time. A coordinator and a group member that continue after their lease was
//! lost must change nothing. Four relays and four writers compete for the same keys. All of these
//! run on SQLite files, and on PostgreSQL if `BUTTRESS_TEST_POSTGRES` names a server. The decisions
//! of a saga are a pure state machine, tested with random participants.
//!
//! **Buses.** One set of tests covers the guarantees of every bus. It runs over the log on both
//! databases, over Kafka's mock cluster (brokers in the test's process that fail requests, go down
//! and come back), and over a real broker if `BUTTRESS_TEST_KAFKA` names one (`host:port`); a test
//! with `BUTTRESS_TEST_KAFKA_COMMAND` kills its own broker and starts an empty one. The
//! mock does not replicate, does not check the sequence numbers of producers, and forgets
//! everything when its process ends, so these are not covered by it.
//!
//! **Connections.** Transactions and reads are dropped after the *n*-th poll, for every *n*; SQLite
//! runs out of pages, finds its file read-only or a page damaged; PostgreSQL ends its sessions, and
//! a proxy in front of it falls silent, idle and during a publication. After each, every connection
//! of the pool must work again.
//!
//! **Not tested:** power cuts, a failover of a Kafka broker, and more than one machine.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bus;
mod clock;
pub mod db;
pub mod event;
mod hash;
pub mod inbox;
pub mod outbox;
pub mod retention;
pub mod saga;
mod task;
mod text;
mod unavailable;

pub use bus::{EventBus, LogBus};
pub use clock::{Clock, ManualClock, Timestamp};
pub use db::{Database, Db, DbError, Tx};
pub use event::{DomainEvent, EventError, TraceContext};
pub use inbox::Inbox;
pub use outbox::Outbox;
pub use retention::Retention;
pub use saga::{Coordinator, Definition, Step};
pub use task::{WorkerHealth, WorkerStatus};

// Compiles the README's example.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
