//! Encryption and authentication of connections.

use std::fmt;
use std::path::PathBuf;

use rdkafka::ClientConfig;

/// TLS settings of connections to the brokers. See [`KafkaConfig::tls`](super::KafkaConfig::tls).
///
/// ```
/// use buttress_durable::bus::kafka::{KafkaTls, SaslMechanism};
/// use buttress_durable::bus::{KafkaBus, KafkaConfig};
///
/// let config = KafkaConfig::new("kafka-1:9093")
///     .tls(KafkaTls::new().ca("/etc/kafka/ca.pem"))
///     .sasl(SaslMechanism::ScramSha512, "orders", std::env::var("KAFKA_PASSWORD").unwrap_or_default());
/// # let _ = config;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct KafkaTls {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SaslMechanism {
    /// The password as it is.
    Plain,
    /// A proof that does not reveal the password, with SHA-256.
    ScramSha256,
    /// A proof that does not reveal the password, with SHA-512.
    ScramSha512,
}

#[derive(Clone)]
pub(super) struct Sasl {
    pub(super) mechanism: SaslMechanism,
    pub(super) user: String,
    pub(super) password: String,
}

impl KafkaTls {
    /// Trusts the certificate authorities of the system, and checks that the brokers' certificates
    /// name their hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificate authorities in this PEM file instead of those of the system.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// Presents a client certificate: PEM files of the certificate, with intermediate ones if there
    /// are any, and of its private key.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("Sasl").field("mechanism", &self.mechanism).field("user", &self.user).finish_non_exhaustive()
    }
}

/// Sets the options of a client.
pub(super) fn apply(config: &mut ClientConfig, tls: Option<&KafkaTls>, sasl: Option<&Sasl>) {
    let protocol = match (tls, sasl) {
        (None, None) => return,
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(KafkaTls { ca, identity }) = tls {
        config.set("ssl.endpoint.identification.algorithm", "https");
        if let Some(ca) = ca {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        if let Some((certificate, key)) = identity {
            config.set("ssl.certificate.location", certificate.to_string_lossy());
            config.set("ssl.key.location", key.to_string_lossy());
        }
    }
    if let Some(Sasl { mechanism, user, password }) = sasl {
        let mechanism = match mechanism {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config.set("sasl.mechanism", mechanism).set("sasl.username", user).set("sasl.password", password);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(tls: Option<&KafkaTls>, sasl: Option<&Sasl>) -> ClientConfig {
        let mut config = ClientConfig::new();
        apply(&mut config, tls, sasl);
        config
    }

    #[test]
    fn the_protocol_follows_from_what_is_set() {
        let mechanism = SaslMechanism::ScramSha256;
        let sasl = Sasl { mechanism, user: "orders".to_owned(), password: "hunter2".to_owned() };
        let tls = KafkaTls::new().ca("/ca.pem").identity("/cert.pem", "/key.pem");
        assert_eq!(applied(None, None).get("security.protocol"), None);
        assert_eq!(applied(None, Some(&sasl)).get("security.protocol"), Some("sasl_plaintext"));
        let plain = applied(Some(&KafkaTls::new()), None);
        assert_eq!((plain.get("security.protocol"), plain.get("ssl.ca.location")), (Some("ssl"), None));
        let both = applied(Some(&tls), Some(&sasl));
        for (option, value) in [
            ("security.protocol", "sasl_ssl"),
            ("ssl.endpoint.identification.algorithm", "https"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.certificate.location", "/cert.pem"),
            ("ssl.key.location", "/key.pem"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("sasl.username", "orders"),
            ("sasl.password", "hunter2"),
        ] {
            assert_eq!(both.get(option), Some(value), "{option}");
        }
    }
}
