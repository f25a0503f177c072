//! Domain events, outbox, inbox and sagas: what keeps the business right when calls fail anyway.
//!
//! The layers of the crate `buttress` protect a call. This crate is for what has to be right after the call has failed, the
//! process has died, or the message has come twice. It needs a database, SQLite or PostgreSQL ([`db`]), and no broker: one
//! is embedded. Kafka may take its place.
//!
//! | module | for |
//! |---|---|
//! | [`event`] | what happened, to which aggregate, when, in which trace |
//! | [`outbox`] | publishing an event if, and only if, its transaction commits |
//! | [`bus`] | consumer groups, retries and dead letters, over the embedded log or Kafka |
//! | [`inbox`] | handling an event once, however often it comes |
//! | [`saga`] | a change across services that happens everywhere or is undone |
//!
//! # What is promised
//!
//! "Exactly once" means an effect in this database, in the transaction that notes it; no library can promise it for an
//! effect elsewhere. There, a call is made at least once with the same idempotency key, and the participant makes it one.
//!
//! | operation | promise |
//! |---|---|
//! | [`Outbox::append`] | with the caller's transaction, or not at all; written twice, it is there once |
//! | the relay ([`Outbox::relay`]) | at least once; ordered per key as the transactions committed |
//! | [`EventBus::publish`] | at least once, ordered per key. [`LogBus`]: atomic per call, and an event that it still holds is not appended again. `KafkaBus`: not queued again while it waits for the brokers |
//! | positions of the log | without gaps per partition, in the order of the commits, never used twice |
//! | [`EventBus::subscribe`] | at least once to every group; ordered per key until an event of that key becomes a dead letter |
//! | a commit of a group's position | only by the member that owns the partition; a stale one's touches nothing |
//! | a failing, panicking or hanging handler | never acknowledged: tried again, then a dead letter, before the group goes on ([`LogBus`]: in one transaction with it) |
//! | [`Inbox::handler`] | the writes in its transaction: exactly once for each consumer and event, until [`purge`](Inbox::purge) |
//! | [`Starter::start`](saga::Starter::start) | with the caller's transaction, or not at all; once for each id |
//! | a [local](saga::Step::local) step, and the events of any step | exactly once |
//! | a remote action or compensation | at least once, always with the same key |
//! | a saga | ends with every step done, or with every step undone that was or may have been done, or is [stuck](saga::Stuck) and listed |
//! | two coordinators on one saga | never both write; the calls of one that has lost its lease may still arrive |
//! | order across keys | not promised |
//! | isolation between sagas | not promised: others see what a saga has done before it is undone |
//! | leases and clocks that jump | a jump may hand work over early or late, and so repeat a call; never two owners that both write |
//! | a power cut | PostgreSQL: as the server is configured. SQLite as [`Db::open`] sets it: the last transactions may be lost, whole |
//!
//! # What was done to test it
//!
//! Processes are killed. The tests start themselves again as a service with its coordinator, relay, log and a consumer with
//! its inbox. It sends itself SIGKILL before a statement, before a commit or after it, or around an effect of a participant:
//! one process for the first time that any of these boundaries is met, and another one for a later time. Then a new process
//! goes on over the same database, and the effects are counted: an order that succeeds, one that is declined, one whose
//! answers are lost. In other tests two such processes share a database, and one of them is killed at a random moment, again
//! and again (the seed is printed); what they wrote down of their calls shows that no two were ever at one saga at the same
//! time. One runs over Kafka, too.
//!
//! What takes more than a few hundred processes is tested inside of one. With the feature `fault-points`, a test can stop the
//! code, as it were, at the *n*-th boundary, for every *n* until it gets through: a saga with its relay and log (success with
//! retries, a refusal, a payment whose answer is lost), a relay, and a consumer with its inbox. Others crash life after life
//! at random boundaries from a fixed seed, or drop a coordinator after the *n*-th poll. Three coordinators on one database
//! share forty sagas, and no saga may ever have two calls at the same time; a coordinator and a group member that wake up
//! after their lease has gone to another must change nothing; four relays and four writers compete for the same keys. All of
//! them run on SQLite files, and on PostgreSQL when `BUTTRESS_TEST_POSTGRES` names a server. What a saga decides is apart from
//! all that a pure state machine, held against random participants.
//!
//! What every bus promises is one set of tests, run over the log on both databases and over Kafka's mock cluster: brokers in
//! the test's process that speak the protocol, fail requests, go down and come back; and over a real broker when
//! `BUTTRESS_TEST_KAFKA` names one (`host:port`). The mock does not replicate, checks no sequence numbers of producers, and
//! forgets everything when its process ends, so what rests on that is not tested by it.
//!
//! Not tested: power cuts, a PostgreSQL server or a Kafka broker that fails over, more than one machine.
//!
//! # Features
//!
//! `sqlite` (default), `postgres`, `kafka` (builds librdkafka, with gcc and make), and `fault-points`, which is for tests only.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bus;
mod clock;
pub mod db;
pub mod event;
mod hash;
pub mod inbox;
pub mod outbox;
pub mod saga;
mod task;
mod text;

pub use bus::{EventBus, LogBus};
pub use clock::{Clock, ManualClock, Timestamp};
pub use db::{Database, Db, DbError, Tx};
pub use event::{DomainEvent, EventError, TraceContext};
pub use inbox::Inbox;
pub use outbox::Outbox;
pub use saga::{Coordinator, Definition, Step};
