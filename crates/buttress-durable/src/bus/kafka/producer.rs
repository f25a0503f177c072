//! Publishing: an ordered queue in the process, and a receipt for each entry.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::Shared;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::config::{KafkaConfig, refused};
use super::epochs::Epochs;
use super::{context, record};
use crate::bus::event_bus::BusError;
use crate::clock::monotonic;
use crate::event::DomainEvent;

/// A record to publish.
pub(super) struct Entry<'a> {
    /// Identifies the entry. While one is queued, another with the same id is not queued.
    pub(super) id: String,
    pub(super) topic: &'a str,
    /// Its partition. `None` for the one of its key.
    pub(super) partition: Option<i32>,
    pub(super) key: &'a [u8],
    /// `None` for a record without an event.
    pub(super) payload: Option<&'a [u8]>,
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

/// Receipts of entries, by id: of those that are queued, and of those that the brokers have stored
/// after their publisher had stopped waiting. It will publish them again.
type Waiting = Arc<Mutex<Receipts>>;
type Receipt = Shared<oneshot::Receiver<Result<(), KafkaError>>>;

#[derive(Default)]
struct Receipts {
    by_id: HashMap<String, Receipt>,
    /// Ids in the order in which they were stored.
    stored: VecDeque<String>,
}

struct Deliveries {
    waiting: Waiting,
    epochs: Epochs,
}

struct Ticket {
    id: String,
    receipt: oneshot::Sender<Result<(), KafkaError>>,
}

/// Pause before retrying when the queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(20);
/// Stored entries that are remembered. An event is forgotten if so many others were stored before
/// it is published again; then it is published twice.
const REMEMBERED: usize = 100_000;
/// After each acknowledgement the others get this time, or as long again as it took if that is
/// longer. Their partition has no leader, probably; they stay queued.
const STRAGGLERS: Duration = Duration::from_millis(500);

// === impl Producer ===

impl Producer {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, BusError> {
        Ok(Self { config: config.clone(), client: Mutex::new(Client::new(config)?) })
    }

    /// Publishes events, and returns the result of each. Those without an acknowledgement stay
    /// queued, in order; published again, they get the receipt of the queued one.
    pub(super) async fn publish(&self, events: &[DomainEvent]) -> Vec<Result<(), BusError>> {
        let start = monotonic();
        let mut results: Vec<Option<Result<(), BusError>>> = events.iter().map(|_| None).collect();
        let mut queued = FuturesUnordered::new();
        // Keys of events that could not be queued. A later event would overtake them.
        let mut held = HashSet::new();
        for (n, event) in events.iter().enumerate() {
            if held.contains(&(event.topic(), event.key())) {
                results[n] = Some(Err(BusError::HeldBack));
                continue;
            }
            match self.queue_event(event, start + self.config.publish_timeout).await {
                Ok((id, receipt)) => queued.push(async move { (n, id, receive(receipt).await) }),
                Err(error) => {
                    if !matches!(error, BusError::Refused { .. }) {
                        held.insert((event.topic(), event.key()));
                    }
                    results[n] = Some(Err(error));
                }
            }
        }
        let last = start + self.config.publish_timeout;
        let mut deadline = last;
        while let Ok(Some((n, id, receipt))) = timeout_at(deadline, queued.next()).await {
            if receipt.is_ok() {
                self.forget(&id);
                let now = monotonic();
                deadline = last.min(now + STRAGGLERS.max(now.duration_since(start)));
            }
            results[n] = Some(receipt.map_err(|error| explain(&events[n], error)));
        }
        drop(queued);
        let late = || Err(late(self.config.publish_timeout));
        let results: Vec<_> = results.into_iter().map(|result| result.unwrap_or_else(late)).collect();
        if results.iter().any(Result::is_err) {
            self.revive();
        }
        results
    }

    async fn queue_event(&self, event: &DomainEvent, deadline: Instant) -> Result<(String, Receipt), BusError> {
        let payload = event.to_bytes().map_err(|error| BusError::refused(event, &error))?;
        let (id, topic) = (event.event_id().to_string(), self.config.wire(event.topic()));
        let entry = Entry {
            id: id.clone(),
            topic: &topic,
            partition: None,
            key: event.key().as_bytes(),
            payload: Some(&payload),
            headers: record::headers(event),
        };
        match timeout_at(deadline, self.queue(entry)).await {
            Ok(Ok(receipt)) => Ok((id, receipt)),
            Ok(Err(error)) => Err(explain(event, error)),
            Err(_) => Err(late(self.config.publish_timeout)),
        }
    }

    /// Publishes an entry that is not an event of this process.
    pub(super) async fn publish_entry(&self, entry: Entry<'_>) -> Result<(), PublishError> {
        let (id, limit) = (entry.id.clone(), self.config.publish_timeout);
        let work = async { receive(self.queue(entry).await?).await };
        let done = match timeout(limit, work).await {
            Ok(Ok(())) => {
                self.forget(&id);
                return Ok(());
            }
            Ok(Err(error)) if is_too_large(&error) => Err(PublishError::TooLarge),
            Ok(Err(error)) => Err(PublishError::Other(BusError::Unavailable(Box::new(error)))),
            Err(_) => Err(PublishError::Other(late(limit))),
        };
        self.revive();
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

    /// Forgets an entry whose publisher knows that it is stored.
    fn forget(&self, id: &str) {
        lock(&lock(&self.client).waiting).by_id.remove(id);
    }

    /// Replaces the client after a fatal error, or if the brokers reject it again and again.
    /// librdkafka disables an idempotent producer for good when it can no longer tell what the
    /// brokers have stored, for example because they have forgotten it.
    fn revive(&self) {
        let mut client = lock(&self.client);
        match client.inner.client().fatal_error() {
            Some((code, reason)) => tracing::error!(%code, reason, "fatal producer error; replacing the producer"),
            None if client.inner.context().epochs.are_in_vain() => {
                tracing::error!("the brokers reject the producer in every epoch; replacing the producer");
            }
            None => return,
        }
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

/// Why an entry was not published.
pub(super) enum PublishError {
    /// It is larger than `message.max.bytes` of the producer, the brokers, or the topic.
    TooLarge,
    Other(BusError),
}

impl From<PublishError> for BusError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::TooLarge => Self::Unavailable("the record is too large".into()),
            PublishError::Other(error) => error,
        }
    }
}

fn late(limit: Duration) -> BusError {
    BusError::Unavailable(format!("no acknowledgement from Kafka within {limit:?}").into())
}

// === impl Client ===

impl Client {
    fn new(config: &KafkaConfig) -> Result<Self, BusError> {
        let waiting = Waiting::default();
        let deliveries = Deliveries { waiting: waiting.clone(), epochs: Epochs::default() };
        Ok(Self { inner: config.producer().create_with_context(deliveries).map_err(refused)?, waiting })
    }

    fn queue(&self, entry: &Entry<'_>) -> Result<Receipt, KafkaError> {
        if let Some(receipt) = lock(&self.waiting).by_id.get(&entry.id) {
            return Ok(receipt.clone());
        }
        let (receipt, received) = oneshot::channel();
        let received = received.shared();
        lock(&self.waiting).by_id.insert(entry.id.clone(), received.clone());
        let ticket = Box::new(Ticket { id: entry.id.clone(), receipt });
        let mut record: BaseRecord<'_, [u8], [u8], Box<Ticket>> = BaseRecord::with_opaque_to(entry.topic, ticket);
        record = record.key(entry.key).headers(entry.headers.clone());
        if let Some(payload) = entry.payload {
            record = record.payload(payload);
        }
        if let Some(partition) = entry.partition {
            record = record.partition(partition);
        }
        self.inner.send(record).map_err(|(error, _)| {
            lock(&self.waiting).by_id.remove(&entry.id);
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

fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(InvalidMessageSize | MessageSizeTooLarge))
}

// === impl Receipts ===

impl Receipts {
    /// Notes that the brokers have stored an entry.
    fn stored(&mut self, id: String) {
        if !self.by_id.contains_key(&id) {
            return;
        }
        self.stored.push_back(id);
        if self.stored.len() > REMEMBERED
            && let Some(oldest) = self.stored.pop_front()
        {
            self.by_id.remove(&oldest);
        }
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

    fn stats_raw(&self, statistics: &[u8]) {
        self.epochs.note(statistics);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let Ticket { id, receipt } = *ticket;
        match delivered {
            Ok(_) => {
                self.epochs.stored();
                lock(&self.waiting).stored(id);
            }
            Err(_) => drop(lock(&self.waiting).by_id.remove(&id)),
        }
        // The publisher may have stopped waiting.
        let _ = receipt.send(delivered.as_ref().map(drop).map_err(|(error, _)| error.clone()));
    }
}
