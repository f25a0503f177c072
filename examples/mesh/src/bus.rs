//! The event bus: the embedded log by default, Kafka with `--kafka`.
//!
//! Only this module depends on the implementation. The rest of the mesh uses `Arc<dyn EventBus>`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use buttress::policy::{CallContext, Criticality};
use buttress::{Backoff, context};
use buttress_durable::bus::{BusError, Delivery, Handler, HandlerError, LogBus, Subscribe, Subscription};
use buttress_durable::retention::RunningRetention;
use buttress_durable::{Database, Db, DomainEvent, EventBus, Inbox, Outbox, Tx};
use futures_util::FutureExt;
use tracing::Instrument;

use crate::db::{self, EVENTS, Home};
#[cfg(feature = "kafka")]
use crate::events::LISTENERS;
use crate::events::topics;
use crate::faults::Faults;
use crate::service::StartError;
use crate::telemetry::consumer_span;

/// Which event bus to use.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Bus {
    /// An append-only log in its own database, next to the databases of the services.
    #[default]
    Log,
    /// Kafka, with these bootstrap brokers.
    #[cfg(feature = "kafka")]
    Kafka(String),
}

/// `--kafka` was given to a binary that was built without the `kafka` feature.
#[derive(Debug, thiserror::Error)]
#[error("kafka: this program was built without it; build it with `--features kafka`")]
pub struct NoKafka;

impl Bus {
    /// Returns Kafka if `brokers` is set, otherwise the embedded log.
    pub fn new(brokers: Option<String>) -> Result<Self, NoKafka> {
        match brokers {
            None => Ok(Self::Log),
            #[cfg(feature = "kafka")]
            Some(brokers) => Ok(Self::Kafka(brokers)),
            #[cfg(not(feature = "kafka"))]
            Some(_) => Err(NoKafka),
        }
    }

    /// Returns the number of dead letters on Kafka, by topic. Those of the embedded log are in its
    /// database.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<(String, usize)>, BusError> {
        match self {
            Self::Log => Ok(Vec::new()),
            #[cfg(feature = "kafka")]
            Self::Kafka(brokers) => {
                use buttress_durable::bus::{DeadLetter, KafkaBus, KafkaConfig};
                let bus = KafkaBus::new(KafkaConfig::new(brokers))?;
                let mut found = Vec::new();
                for (group, topics) in LISTENERS {
                    for topic in *topics {
                        let letters = bus.dead_letters(group, topic, u32::MAX).await?;
                        found.extend(
                            letters
                                .first()
                                .map(|letter| (DeadLetter::topic_of(group, &letter.cause.topic), letters.len())),
                        );
                    }
                }
                Ok(found)
            }
        }
    }
}

/// Lease of a consumer group member and of an outbox relay. After a crash, their work waits this
/// long for another owner. Short, because the demo kills a process about once a second. A pause
/// longer than the lease causes a second delivery, which the inbox deduplicates.
const LEASE: Duration = Duration::from_secs(3);

/// Opens the bus. The embedded log deletes its old records until the second value is dropped; Kafka
/// does that by itself.
pub async fn open<H: Home>(bus: &Bus, home: &H) -> Result<(Arc<dyn EventBus>, Option<RunningRetention>), StartError> {
    match bus {
        Bus::Log => {
            let log = LogBus::new(home.open(EVENTS).await?).with_lease(LEASE);
            let retention = db::retain_log(log.db())?;
            Ok((Arc::new(log), Some(retention)))
        }
        #[cfg(feature = "kafka")]
        Bus::Kafka(brokers) => {
            use buttress_durable::bus::{KafkaBus, KafkaConfig};
            // Brokers reject a shorter session timeout by default (`group.min.session.timeout.ms`).
            let session = Duration::from_secs(6);
            Ok((Arc::new(KafkaBus::new(KafkaConfig::new(brokers).session(session).publish_timeout(LEASE / 2))?), None))
        }
    }
}

/// Returns the outbox of a service. [`Outbox::relay`] publishes its events.
pub fn outbox<D: Database>(db: &Db<D>) -> Outbox<D> {
    Outbox::new(db.clone()).with_lease(LEASE).with_poll(Duration::from_millis(50))
}

/// The priority of what consumers call: an event that fails is delivered again, minutes or hours
/// later.
const CONSUMERS: Criticality = Criticality::SheddablePlus;

/// Handles the events of one service's subscriptions.
pub trait Consumer<D: Database>: Send + Sync + 'static {
    /// Handles one event. It must write only through `tx`: the inbox records the event in the same
    /// transaction, so repeated deliveries have one effect.
    fn handle(&self, tx: &mut Tx<D>, event: &DomainEvent) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Subscribes a service, under its own name, to its [`topics`]. Its faults affect its events as
/// they affect its requests.
pub async fn subscribe<D: Database>(
    bus: &Arc<dyn EventBus>,
    service: &'static str,
    faults: &Faults,
    db: &Db<D>,
    consumer: Arc<impl Consumer<D>>,
) -> Result<Subscription, StartError> {
    let faults = faults.clone();
    let subscribe = Subscribe::new(service, topics(service).iter().copied())?
        // A database that is away costs no attempt. An event that fails for another reason, or is
        // malformed, becomes a dead letter; otherwise it would block the events behind it until an
        // operator intervened. Many attempts, because the demo kills processes, and an event that
        // was at hand then has used one up.
        .attempts(NonZeroU32::MIN.saturating_add(24))
        .backoff(Backoff::equal_jitter(Duration::from_millis(50), Duration::from_secs(2)));
    let handler = Inbox::new(db.clone(), service).handler(move |tx, event| {
        let consumer = consumer.clone();
        async move { consumer.handle(tx, event).await }.boxed()
    });
    let handler = Arc::new(handler);
    let traced = move |delivery: Delivery| {
        let (handler, faults, span) = (handler.clone(), faults.clone(), consumer_span(&delivery.event));
        let call = CallContext::default().with_priority(CONSUMERS.into());
        context::with(call, async move { faults.around(|| handler.handle(delivery)).await }).instrument(span)
    };
    Ok(bus.subscribe(subscribe, Arc::new(traced)).await?)
}
