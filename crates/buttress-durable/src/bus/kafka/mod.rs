//! The event bus over Kafka.
//!
//! [`KafkaBus`] keeps the promises of [`EventBus`](super::EventBus) with Kafka's own means, through librdkafka:
//!
//! * **Publishing** is done by an idempotent producer that waits for all replicas. Events that could not be sent stay in its
//!   queue, in order, for as long as the process lives; published again, they are not queued a second time. So an outage
//!   neither reorders the events of a key nor doubles them. The key is the aggregate, hashed as Java's clients do.
//! * **A record** is the event's JSON, as in the embedded log. The headers `event-id`, `traceparent` and `tracestate` repeat
//!   what tools look for there.
//! * **Subscribing** joins a consumer group whose members share the partitions (cooperatively: whoever keeps a partition
//!   goes on with it while others change hands). A thread of its own polls, so no handler, however slow, lets the group
//!   believe that its member is dead. Each partition is worked on by one task, one event after the other; one that has to
//!   wait for its next attempt keeps those behind it waiting, and its partition is paused once many do.
//! * **Offsets** are committed by us alone, for events whose handler has said `Ok`: whenever nothing has come for 50 ms, after
//!   every 256 records that were handed out, when a partition is given away, and on shutdown. Failed attempts are kept in
//!   the metadata of the commit, so they count across restarts.
//! * **A partition that is taken away** is finished with first: the handler gets up to five seconds for the event at hand, and
//!   is dropped then. Nothing of it is committed after that.
//!
//! # Differences from the embedded log
//!
//! | | [`LogBus`](super::LogBus) | [`KafkaBus`] |
//! |---|---|---|
//! | an event published again | is there once, while the log holds it | once while it waits in the queue; after that, twice |
//! | a dead letter | in one transaction with going on: once | written before going on: a crash in between writes it twice, and [`KafkaBus::dead_letters`] shows it once |
//! | sending a dead letter back | once, however often | as often as it is done; an [`Inbox`](crate::Inbox) handles it once |
//! | listing dead letters | reads as many as asked for | reads the whole topic |
//! | after a crash, done again | the event at hand | those handled since the last commit |
//! | partitions | 8 of each topic | as the topic was made; more of them later reorder the keys |
//! | positions | without gaps | with gaps, if transactions or compaction leave any |
//! | [`Start::Latest`](super::Start::Latest) | from the moment of subscribing | the same; but a topic that is new to a group at work begins when its partitions are handed out |
//! | an event, from a process cut off from the brokers | never late | when it finds them again: consumers see a late repetition |
//!
//! Topics, dead-letter topics among them, are made by the brokers when first used, or by you beforehand if the brokers do
//! not (`auto.create.topics.enable`). Until then, publishing fails as unavailable.
//!
//! TLS, SASL and the compressions beyond lz4 and snappy are features of the crate `rdkafka`: a service that needs one depends
//! on that crate too, switches the feature on, and sets the options with [`KafkaConfig::option`].

mod bus;
mod config;
mod context;
mod dead_letters;
mod member;
mod partition;
mod producer;
mod record;
mod stop_signal;

pub use bus::KafkaBus;
pub use config::KafkaConfig;
