//! Recognises a producer that the brokers reject again and again.
//!
//! When brokers do not know a producer's id, librdkafka sends its records again under the next
//! epoch of the same id. Apache Kafka takes them. A broker that insists on an id of its own rejects
//! them too, and librdkafka tries the next epoch, without an error and without end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use super::producer::lock;

/// How often librdkafka tells the epoch, in milliseconds.
pub(super) const INTERVAL: &str = "2000";
/// So many intervals in succession with another epoch and no stored record are no accident.
const ENOUGH: u32 = 3;

/// The epochs of one producer.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    stored: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    epoch: Option<Epoch>,
    stored: u64,
    in_vain: u32,
}

/// The part of librdkafka's statistics that matters here.
#[derive(Deserialize)]
struct Statistics {
    eos: Option<Epoch>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
struct Epoch {
    producer_id: i64,
    producer_epoch: i64,
}

impl Epochs {
    /// Notes that the brokers have stored a record.
    pub(super) fn stored(&self) {
        self.stored.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the statistics of librdkafka, once in each interval.
    pub(super) fn note(&self, statistics: &[u8]) {
        let Ok(Statistics { eos: Some(epoch) }) = serde_json::from_slice(statistics) else { return };
        let stored = self.stored.load(Ordering::Relaxed);
        let mut seen = lock(&self.seen);
        let in_vain = seen.epoch.is_some_and(|last| last != epoch) && seen.stored == stored;
        *seen = Seen { epoch: Some(epoch), stored, in_vain: if in_vain { seen.in_vain.saturating_add(1) } else { 0 } };
    }

    /// Returns whether the producer has to be replaced by one with another id.
    pub(super) fn are_in_vain(&self) -> bool {
        lock(&self.seen).in_vain >= ENOUGH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(epochs: &Epochs, producer_epoch: i64) {
        let statistics = format!(
            r#"{{"name":"p","brokers":{{}},"eos":{{"idemp_state":"Assigned","producer_id":7,"producer_epoch":{producer_epoch}}}}}"#
        );
        epochs.note(statistics.as_bytes());
    }

    #[test]
    fn a_producer_is_rejected_if_its_epoch_rises_and_nothing_is_stored() {
        let epochs = Epochs::default();
        for epoch in 0..3 {
            note(&epochs, epoch);
            assert!(!epochs.are_in_vain(), "epoch {epoch}");
        }
        note(&epochs, 3);
        assert!(epochs.are_in_vain());
    }

    #[test]
    fn an_outage_or_one_rejection_is_not_enough() {
        let epochs = Epochs::default();
        for epoch in [0, 1, 2, 2, 2, 2, 3, 4] {
            note(&epochs, epoch);
            assert!(!epochs.are_in_vain(), "epoch {epoch}");
        }
        for epoch in 5..20 {
            epochs.stored();
            note(&epochs, epoch);
            assert!(!epochs.are_in_vain(), "epoch {epoch}, but records are stored");
        }
        epochs.note(b"no statistics");
        epochs.note(b"{}");
    }
}
