//! The event bus over Kafka.
//!
//! [`KafkaBus`] keeps the guarantees of [`EventBus`](super::EventBus) through librdkafka:
//!
//! * **Publishing** uses an idempotent producer that waits for all in-sync replicas. Events that
//!   could not be sent stay in its queue, in order, for the lifetime of the process; publishing one
//!   again does not queue it a second time, nor if it was stored meanwhile. So an outage neither
//!   reorders nor duplicates the events of a key. After each acknowledgement the other
//!   events of a publication get 500 ms, or as long again as it took, so that a partition without a
//!   leader does not delay the rest. The key is the aggregate's id, hashed like Java's clients do.
//!   After a fatal error, or when the brokers have forgotten it and do not take its records, the
//!   producer is replaced.
//! * **A record** is the event's JSON, as in the embedded log. The headers `event-id`,
//!   `traceparent` and `tracestate` repeat what tools expect there.
//! * **Subscribing** joins a consumer group with cooperative rebalancing: a member that keeps a
//!   partition continues while others are moved. A dedicated thread polls, so that slow handlers do
//!   not expire the member's session. Each partition has one task, which handles one event at a
//!   time. An event that waits for its next attempt holds back those behind it, and its partition
//!   is paused when 256 of them wait.
//! * **Offsets** are committed only for events whose handler returned `Ok`, or that became dead
//!   letters: after 50 ms without a record, after every 256 records, when a partition is revoked,
//!   and on shutdown. Failed attempts and the member are stored in the metadata of the commit, so
//!   that they count across restarts, and a member that has crashed is recognised: it has not
//!   removed itself from there. After a crash the next 512 records are committed one by one, so
//!   that a further crash is counted for the event that was at hand.
//! * **A revoked partition** is finished first: the handler has up to 5 s for the event at hand and
//!   is then dropped. Its later effects are never committed.
//!
//! # Differences from the embedded log
//!
//! | | [`LogBus`](super::LogBus) | [`KafkaBus`] |
//! |---|---|---|
//! | an event published again | stored once, while the log holds it | stored once while it is in the queue; twice after that |
//! | a dead letter | one transaction with the commit of the position: once | written before the commit: a crash in between writes it twice, and [`dead_letters`](super::EventBus::dead_letters) lists it once |
//! | redriving or discarding a dead letter | one transaction | a second record marks it as done; a crash in between publishes it again, and an [`Inbox`](crate::Inbox) handles it once |
//! | a dead letter that is too large | none: the database takes it | its error is cut, then a note replaces the event and says where the event is; redriving fetches it from there |
//! | listing dead letters | reads at most the limit | reads the whole topic |
//! | delivered again after a crash | the event at hand | the events handled since the last commit |
//! | a crash counts as an attempt | for the event that was at hand | for the first event that is not committed, which may have been handled; after that for the one at hand |
//! | the lag of a group | one query | requests for all topics of the cluster with the prefix |
//! | partitions | 8 for each topic | as the topic was created; adding some later reorders the keys |
//! | positions | without gaps | with gaps after transactions or compaction |
//! | [`Start::Latest`](super::Start::Latest) | from the moment of subscribing | the same, but a topic that is new to a live group starts when its partitions are assigned |
//! | an event of a process that lost the brokers | never late | published on reconnection: consumers may see a late duplicate |
//!
//! Topics, including dead-letter topics, are created by the brokers on first use, or by you if the
//! brokers do not (`auto.create.topics.enable`). Until a topic exists, publishing fails as
//! unavailable.
//!
//! [`KafkaConfig::tls`] and [`KafkaConfig::sasl`] encrypt and authenticate connections, with the
//! feature `kafka-tls`. Compressions other than lz4 and snappy, and Kerberos, are features of the
//! crate `rdkafka`: a service that needs one depends on that crate, enables the feature, and sets
//! the options with [`KafkaConfig::option`].
//!
//! # Brokers that are not Apache Kafka
//!
//! Brokers have to store the metadata of commits. Tansu 0.6 does not: an event has all its attempts
//! again after a restart or a rebalance, and a crash is not counted. Its end of a partition is the
//! record after the first of the last batch, so that the lag can be too small. The other tests of
//! the guarantees pass there, except that of crashes at every boundary, which did not end in time.
//!
//! # A fault of librdkafka
//!
//! A broker of Kafka 3.7 or later that no longer leads some partitions answers a fetch of them with
//! their new leaders ([KIP-951]). If one answer names the new leader of a partition and says that
//! another has none, librdkafka from 2.5.0 on (at least up to 2.15.0) reads entries that it has not
//! written ([librdkafka#5280]). Then the process ends with SIGSEGV in
//! `rd_kafka_metadata_update_op`, or a partition gets a wrong leader and is not read any more. It
//! takes partitions with one replica in sync next to others, while a broker shuts down, is replaced
//! or is cut off.
//!
//! No option of librdkafka prevents it. On Linux with glibc the environment does, if each process
//! with a consumer is started with [`GLIBC_TUNABLES`]:
//!
//! ```text
//! GLIBC_TUNABLES=glibc.malloc.tcache_max=256:glibc.malloc.perturb=1
//! ```
//!
//! Then these entries name no broker, and librdkafka skips them with a warning that a new leader is
//! not found. An allocation of more than 256 bytes takes about 0.1 µs longer, also those of Rust
//! code with the default allocator, and a smaller one 0.01 µs. Without the setting, the first
//! consumer of a process logs a warning.
//!
//! The fault remains with another C library, with an allocator that replaces `malloc` for C code,
//! and with brokers that are not Apache Kafka and leave out the id of a topic in such an answer, as
//! tansu 0.6 does after it has lost its topics. Then the process has to be started again; nothing
//! is lost, and the event that was at hand has used up an attempt.
//!
//! [KIP-951]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-951%3A+Leader+discovery+optimisations+for+the+client
//! [librdkafka#5280]: https://github.com/confluentinc/librdkafka/issues/5280

mod allocator;
mod bury;
mod bus;
mod config;
mod context;
mod dead_letters;
mod epochs;
mod lag;
mod member;
mod partition;
mod producer;
mod record;
mod security;
mod stop_signal;

pub use allocator::GLIBC_TUNABLES;
pub use bus::KafkaBus;
pub use config::KafkaConfig;
pub use security::{KafkaTls, SaslMechanism};
