//! Publishing: an ordered queue in the process, and a receipt for each entry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::config::{KafkaConfig, refused};
use super::{context, record};
use crate::bus::event_bus::BusError;
use crate::event::DomainEvent;

/// A record to publish.
pub(super) struct Entry<'a> {
    /// Identifies the entry. While one is queued, another with the same id is not queued.
    pub(super) id: String,
    pub(super) topic: &'a str,
    pub(super) key: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) headers: OwnedHeaders,
}

/// The producer of a bus.
pub(super) struct Producer {
    config: KafkaConfig,
    // One lock for checking, queueing and remembering, so that two callers cannot both queue the
    // same event.
    client: Mutex<Client>,
}

struct Client {
    inner: ThreadedProducer<Deliveries>,
    waiting: Waiting,
}

/// Receipts of queued entries, by id.
type Waiting = Arc<Mutex<HashMap<String, Receipt>>>;
type Receipt = Shared<oneshot::Receiver<Result<(), KafkaError>>>;

struct Deliveries {
    waiting: Waiting,
}

struct Ticket {
    id: String,
    receipt: oneshot::Sender<Result<(), KafkaError>>,
}

/// Pause before retrying when the queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);

// === impl Producer ===

impl Producer {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, BusError> {
        Ok(Self { config: config.clone(), client: Mutex::new(Client::new(config)?) })
    }

    /// Returns when the brokers have acknowledged all events, or with the first error. Queued
    /// events stay queued after an error.
    pub(super) async fn publish(&self, events: &[DomainEvent]) -> Result<(), BusError> {
        let work = async {
            let mut receipts = Vec::with_capacity(events.len());
            let mut failed = None;
            for event in events {
                let payload = event.to_bytes().map_err(|error| BusError::refused(event, &error))?;
                let entry = Entry {
                    id: event.event_id().to_string(),
                    topic: event.topic(),
                    key: event.key().as_bytes(),
                    payload: &payload,
                    headers: record::headers(event),
                };
                match self.queue(entry).await {
                    Ok(receipt) => receipts.push((event, receipt)),
                    // The events behind this one are not queued: when all are published again they
                    // would overtake it.
                    Err(error) => {
                        failed = Some(explain(event, error));
                        break;
                    }
                }
            }
            for (event, receipt) in receipts {
                receive(receipt).await.map_err(|error| explain(event, error))?;
            }
            failed.map_or(Ok(()), Err)
        };
        self.in_time(work).await
    }

    /// Publishes an entry that is not an event of this process.
    pub(super) async fn publish_entry(&self, entry: Entry<'_>) -> Result<(), BusError> {
        let work = async {
            let receipt = self.queue(entry).await;
            let sent = match receipt {
                Ok(receipt) => receive(receipt).await,
                Err(error) => Err(error),
            };
            sent.map_err(|error| BusError::Unavailable(Box::new(error)))
        };
        self.in_time(work).await
    }

    async fn in_time(&self, work: impl Future<Output = Result<(), BusError>>) -> Result<(), BusError> {
        let limit = self.config.publish_timeout;
        let late = |_| Err(BusError::Unavailable(format!("no acknowledgement from Kafka within {limit:?}").into()));
        let done = timeout(limit, work).await.unwrap_or_else(late);
        if done.is_err() {
            self.revive();
        }
        done
    }

    async fn queue(&self, entry: Entry<'_>) -> Result<Receipt, KafkaError> {
        loop {
            let queued = lock(&self.client).queue(&entry);
            match queued {
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => sleep(QUEUE_FULL_PAUSE).await,
                other => return other,
            }
        }
    }

    /// Replaces the client after a fatal error. librdkafka disables an idempotent producer for good
    /// when it can no longer tell what the brokers have stored.
    fn revive(&self) {
        let mut client = lock(&self.client);
        let Some((code, reason)) = client.inner.client().fatal_error() else { return };
        tracing::error!(%code, reason, "fatal producer error; replacing the producer");
        // Queued entries have failed already, or fail when the old client is dropped.
        match Client::new(&self.config) {
            Ok(new) => {
                let old = std::mem::replace(&mut *client, new);
                // Dropping it waits for its thread.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => tracing::error!(%error, "cannot create a producer"),
        }
    }
}

// === impl Client ===

impl Client {
    fn new(config: &KafkaConfig) -> Result<Self, BusError> {
        let waiting = Waiting::default();
        let deliveries = Deliveries { waiting: waiting.clone() };
        Ok(Self { inner: config.producer().create_with_context(deliveries).map_err(refused)?, waiting })
    }

    fn queue(&self, entry: &Entry<'_>) -> Result<Receipt, KafkaError> {
        if let Some(receipt) = lock(&self.waiting).get(&entry.id) {
            return Ok(receipt.clone());
        }
        let (receipt, received) = oneshot::channel();
        let received = received.shared();
        lock(&self.waiting).insert(entry.id.clone(), received.clone());
        let ticket = Box::new(Ticket { id: entry.id.clone(), receipt });
        let record = BaseRecord::with_opaque_to(entry.topic, ticket)
            .key(entry.key)
            .payload(entry.payload)
            .headers(entry.headers.clone());
        self.inner.send(record).map_err(|(error, _)| {
            lock(&self.waiting).remove(&entry.id);
            error
        })?;
        Ok(received)
    }
}

async fn receive(receipt: Receipt) -> Result<(), KafkaError> {
    receipt.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Tells a permanent rejection of an event from a temporary failure.
fn explain(event: &DomainEvent, error: KafkaError) -> BusError {
    use RDKafkaErrorCode::{InvalidMessage, InvalidMessageSize, InvalidRecord, InvalidTopic, MessageSizeTooLarge};
    let never = [InvalidMessage, InvalidMessageSize, InvalidRecord, InvalidTopic, MessageSizeTooLarge];
    match error.rdkafka_error_code() {
        Some(code) if never.contains(&code) => {
            BusError::Refused { event_id: event.event_id(), reason: error.to_string() }
        }
        _ => BusError::Unavailable(Box::new(error)),
    }
}

/// Locks a mutex, also after a panic: none can leave the data half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Deliveries ===

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::complain(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let Ticket { id, receipt } = *ticket;
        lock(&self.waiting).remove(&id);
        // The publisher may have stopped waiting.
        let _ = receipt.send(delivered.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}
