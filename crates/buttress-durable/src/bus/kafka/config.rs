use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::epochs;
use super::security::{self, KafkaTls, Sasl, SaslMechanism};
use crate::bus::event_bus::BusError;
use crate::event::is_topic;

/// Addresses of the brokers, and options for producer and consumers.
///
/// ```
/// use buttress_durable::bus::{KafkaBus, KafkaConfig};
/// use std::time::Duration;
///
/// let config = KafkaConfig::new("kafka-1:9092,kafka-2:9092")
///     .session(Duration::from_secs(20))
///     .option("client.id", "orders");
/// let bus = KafkaBus::new(config)?;
/// # Ok::<(), buttress_durable::bus::BusError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct KafkaConfig {
    brokers: String,
    pub(super) publish_timeout: Duration,
    session: Duration,
    prefix: String,
    tls: Option<KafkaTls>,
    sasl: Option<Sasl>,
    options: BTreeMap<String, String>,
}

/// Options that the bus sets itself, because its guarantees depend on them.
const RESERVED: [&str; 21] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "session.timeout.ms",
    "statistics.interval.ms",
    "transactional.id",
];

/// Shorter than the lease of an outbox's relay, which publishes while it holds the lease.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
const SESSION: Duration = Duration::from_secs(10);
/// With the longest name of a dead-letter topic it fits into the 249 bytes of a topic's name.
const MAX_PREFIX: usize = 60;

// === impl KafkaConfig ===

impl KafkaConfig {
    /// Creates a configuration for brokers given as `host:port`, separated by commas. One reachable
    /// broker is enough to find the others.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            publish_timeout: PUBLISH_TIMEOUT,
            session: SESSION,
            prefix: String::new(),
            tls: None,
            sasl: None,
            options: BTreeMap::new(),
        }
    }

    /// Sets how long a publication waits for the brokers' acknowledgement. Default: 5 s. Keep it
    /// shorter than the lease of an [`Outbox`](crate::Outbox).
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// Sets how long a crashed member keeps its partitions. Default: 10 s; 3 ms to 1 h. Brokers
    /// accept 6 s to 30 min by default.
    pub fn session(mut self, session: Duration) -> Self {
        self.session = session;
        self
    }

    /// Sets a prefix for the names of all topics and groups on the brokers, so that several systems
    /// or environments can share a cluster, and permissions can be granted by prefix. Default:
    /// none. At most 60 of `A-Za-z0-9._-`.
    ///
    /// The program itself never sees the prefix: it is not part of the names in
    /// [`Subscribe`](crate::bus::Subscribe), [`Delivery`](crate::bus::Delivery) and
    /// [`DeadLetter`](crate::bus::DeadLetter).
    ///
    /// ```
    /// use buttress_durable::bus::{KafkaBus, KafkaConfig};
    ///
    /// // The topic of OrderConfirmed is "staging.OrderConfirmed" there.
    /// let bus = KafkaBus::new(KafkaConfig::new("kafka-1:9092").prefix("staging."))?;
    /// # Ok::<(), buttress_durable::bus::BusError>(())
    /// ```
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Encrypts connections with TLS. Default: plain TCP. Needs the feature `kafka-tls`.
    pub fn tls(mut self, tls: KafkaTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Authenticates with a user name and a password. Default: not authenticated.
    ///
    /// [`SaslMechanism::Plain`] sends the password as it is, so use it with [`tls`](Self::tls). The
    /// SCRAM mechanisms need the feature `kafka-tls`, with or without TLS.
    pub fn sasl(mut self, mechanism: SaslMechanism, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.sasl = Some(Sasl { mechanism, user: user.into(), password: password.into() });
        self
    }

    /// Sets an option of librdkafka for producer and consumers, for example `client.rack`.
    ///
    /// [`KafkaBus::new`](super::KafkaBus::new) rejects options that the bus sets itself.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// Checks what librdkafka would report later or not at all.
    pub(super) fn check(&self) -> Result<(), BusError> {
        let wrong = |option: &str, rule: &str| BusError::Config { option: option.to_owned(), rule: rule.to_owned() };
        if !self.brokers.split(',').all(|broker| is_broker(broker.trim())) {
            return Err(wrong("brokers", "must be `host:port`, or several separated by commas"));
        }
        if self.publish_timeout.is_zero() {
            return Err(wrong("publish_timeout", "must be greater than zero"));
        }
        // The session allows three heartbeats, and librdkafka counts in milliseconds.
        if !(Duration::from_millis(3)..=Duration::from_secs(3600)).contains(&self.session) {
            return Err(wrong("session", "must be 3 ms to 1 h"));
        }
        if self.prefix.len() > MAX_PREFIX || !(self.prefix.is_empty() || is_topic(&self.prefix, MAX_PREFIX)) {
            return Err(wrong("prefix", "must be at most 60 of the characters A-Z, a-z, 0-9, '.', '_', '-'"));
        }
        if self.sasl.as_ref().is_some_and(|sasl| sasl.user.is_empty()) {
            return Err(wrong("sasl", "must have a user name"));
        }
        let scram = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism != SaslMechanism::Plain);
        if cfg!(not(feature = "kafka-tls")) && (self.tls.is_some() || scram) {
            let option = if self.tls.is_some() { "tls" } else { "sasl" };
            return Err(wrong(option, "needs the feature `kafka-tls` of buttress-durable"));
        }
        match self.options.keys().find(|name| RESERVED.contains(&name.as_str())) {
            Some(name) => Err(wrong(name, "is set by the bus itself")),
            None => Ok(()),
        }
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The hash of Java's clients, so that a key has the same partition regardless of the
            // client that publishes it.
            .set("partitioner", "murmur2_random")
            .set("statistics.interval.ms", epochs::INTERVAL)
            // Never expires. An expired message whose successor is sent would reorder its key.
            .set("message.timeout.ms", "0");
        config
    }

    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", self.wire(group))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("allow.auto.create.topics", "true")
            .set("session.timeout.ms", self.session.as_millis().to_string())
            .set("heartbeat.interval.ms", (self.session.as_millis() / 3).to_string())
            // The polling thread runs no handlers. It waits for one to finish, for less than this
            // time.
            .set("max.poll.interval.ms", self.session.as_millis().max(600_000).to_string());
        config
    }

    /// Returns the name of a topic or group on the brokers.
    pub(super) fn wire(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the name of a topic in this program. `None` for a topic of others.
    pub(super) fn local<'a>(&self, wire: &'a str) -> Option<&'a str> {
        wire.strip_prefix(&self.prefix)
    }

    /// Options of producer and consumers: our defaults, overridden by the configured options.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            // librdkafka would wait up to 10 s before it reconnects to a broker.
            .set("reconnect.backoff.max.ms", "1000")
            // And up to 5 min before it discovers topics that were created elsewhere.
            .set("topic.metadata.refresh.interval.ms", "5000");
        security::apply(&mut config, self.tls.as_ref(), self.sasl.as_ref());
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
    }
}

/// Checks for `host:port` or `host`, where the host is a name or an address, an IPv6 address in
/// brackets.
fn is_broker(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%".contains(&byte);
    !host.is_empty()
        && host.bytes().all(legal)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Converts an error of creating a client. It names the option if there is one.
pub(super) fn refused(error: KafkaError) -> BusError {
    match error {
        KafkaError::ClientConfig(_, rule, option, value) => {
            // The value may be a secret, and librdkafka appends it to its message.
            let rule = rule.replace(&value, "…");
            BusError::Config { option, rule: format!("is rejected by librdkafka: {rule}") }
        }
        KafkaError::ClientCreation(rule) => BusError::Config { option: "options".to_owned(), rule },
        other => BusError::Unavailable(Box::new(other)),
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without values, since some are passwords.
        let options: Vec<_> = self.options.keys().collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("publish_timeout", &self.publish_timeout)
            .field("session", &self.session)
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("options", &options)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::KafkaBus;

    fn option(config: KafkaConfig) -> String {
        match KafkaBus::new(config) {
            Err(BusError::Config { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for brokers in ["", " ", "a:b", "a:0", "a:70000", "a,,b", "a b:9092", "http://a:9092"] {
            assert_eq!(option(KafkaConfig::new(brokers)), "brokers", "{brokers:?}");
        }
        let config = || KafkaConfig::new("localhost:9092");
        assert_eq!(option(config().option("group.id", "mine")), "group.id");
        assert_eq!(option(config().option("no.such.thing", "1")), "no.such.thing");
        assert_eq!(option(config().option("socket.timeout.ms", "soon")), "socket.timeout.ms");
        assert_eq!(option(config().session(Duration::ZERO)), "session");
        assert_eq!(option(config().publish_timeout(Duration::ZERO)), "publish_timeout");
    }

    #[test]
    fn brokers_are_written_in_several_ways() {
        for brokers in
            ["a", "a:9092", "kafka-1.example:9092, kafka-2.example:9092", "[::1]:9092", "[::1]", "10.0.0.7:9"]
        {
            assert!(KafkaConfig::new(brokers).check().is_ok(), "{brokers}");
        }
    }

    #[test]
    fn the_session_has_bounds_and_brokers_see_it_with_three_heartbeats() {
        let with = |session| KafkaConfig::new("a:1").session(session);
        let (least, most) = (Duration::from_millis(3), Duration::from_secs(3_600));
        assert!(with(least).check().is_ok() && with(most).check().is_ok());
        assert!(with(least - Duration::from_nanos(1)).check().is_err());
        assert!(with(most + Duration::from_nanos(1)).check().is_err());
        let consumer = with(Duration::from_secs(6)).consumer("g");
        assert_eq!(consumer.get("session.timeout.ms"), Some("6000"));
        assert_eq!(consumer.get("heartbeat.interval.ms"), Some("2000"));
        assert_eq!(consumer.get("max.poll.interval.ms"), Some("600000"));
        assert_eq!(with(most).consumer("g").get("max.poll.interval.ms"), Some("3600000"), "never shorter");
    }

    #[test]
    fn the_guarantees_rest_on_these_options() {
        let config = KafkaConfig::new("a:1,b:2").option("client.id", "orders").option("reconnect.backoff.max.ms", "7");
        let (producer, consumer) = (config.producer(), config.consumer("shipping"));
        for (option, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2_random"),
            ("message.timeout.ms", "0"),
        ] {
            assert_eq!(producer.get(option), Some(value), "{option}");
        }
        for (option, value) in [
            ("group.id", "shipping"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("allow.auto.create.topics", "true"),
        ] {
            assert_eq!(consumer.get(option), Some(value), "{option}");
        }
        for both in [&producer, &consumer] {
            assert_eq!(both.get("bootstrap.servers"), Some("a:1,b:2"));
            assert_eq!((both.get("client.id"), both.get("reconnect.backoff.max.ms")), (Some("orders"), Some("7")));
            assert_eq!(both.get("topic.metadata.refresh.interval.ms"), Some("5000"));
        }
    }

    #[test]
    fn what_the_bus_sets_itself_and_its_aliases_are_reserved() {
        let config = KafkaConfig::new("a:1");
        let ours = ["bootstrap.servers", "enable.idempotence", "acks", "partitioner", "message.timeout.ms", "group.id"];
        let theirs = ["enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "session.timeout.ms"];
        let more = ["partition.assignment.strategy", "heartbeat.interval.ms", "max.poll.interval.ms"];
        let aliases = ["metadata.broker.list", "request.required.acks", "delivery.timeout.ms"];
        let dangerous = ["transactional.id", "enable.gapless.guarantee", "enable.partition.eof", "group.protocol"];
        for option in ours.iter().chain(&theirs).chain(&more).chain(&aliases).chain(&dangerous) {
            match config.clone().option(*option, "x").check() {
                Err(BusError::Config { option: named, .. }) => assert_eq!(named, *option),
                other => panic!("{option}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_publication_waits_for_as_long_as_set() {
        assert_eq!(KafkaConfig::new("a:1").publish_timeout, Duration::from_secs(5));
        let patient = KafkaConfig::new("a:1").publish_timeout(Duration::from_secs(7));
        assert_eq!(patient.publish_timeout, Duration::from_secs(7));
        assert_eq!(patient.session, Duration::from_secs(10));
    }

    #[test]
    fn a_prefix_is_part_of_the_names_on_the_brokers_only() {
        let config = KafkaConfig::new("a:1").prefix("staging.");
        assert_eq!(config.consumer("shipping").get("group.id"), Some("staging.shipping"));
        assert_eq!((config.wire("T").as_str(), config.local("staging.T")), ("staging.T", Some("T")));
        assert_eq!(config.local("prod.T"), None);
        assert!(config.check().is_ok() && config.clone().prefix("x".repeat(60)).check().is_ok());
        for prefix in ["a b".to_owned(), "a/".to_owned(), "x".repeat(61)] {
            assert_eq!(option(config.clone().prefix(prefix)), "prefix");
        }
    }

    #[test]
    fn a_user_needs_a_name() {
        assert_eq!(option(KafkaConfig::new("a:1").sasl(SaslMechanism::Plain, "", "hunter2")), "sasl");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = KafkaConfig::new("a:1").option("sasl.password", "hunter2");
        let typed = KafkaConfig::new("a:1").sasl(SaslMechanism::Plain, "orders", "hunter2");
        assert!(!format!("{config:?}{typed:?}").contains("hunter2"));
    }
}
