//! The event bus, chosen once: the embedded log by default, Kafka with `--kafka`.
//!
//! Everything else in the mesh knows an `Arc<dyn EventBus>` and nothing more.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use buttress::Backoff;
use buttress_durable::bus::{Delivery, Handler, HandlerError, LogBus, Subscribe, Subscription};
use buttress_durable::{Database, Db, DomainEvent, EventBus, Inbox, Outbox, Tx};
use futures_util::FutureExt;
use tracing::Instrument;

use crate::db::{EVENTS, Home};
use crate::events::topics;
use crate::service::StartError;
use crate::telemetry::{Telemetry, consumer_span};

/// Which bus.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Bus {
    /// An append-only log in a database of its own, next to those of the services.
    #[default]
    Log,
    /// Kafka, at these brokers.
    #[cfg(feature = "kafka")]
    Kafka(String),
}

/// `--kafka` was said to a program that knows no Kafka.
#[derive(Debug, thiserror::Error)]
#[error("kafka: this program was built without it; build it with `--features kafka`")]
pub struct NoKafka;

impl Bus {
    /// Kafka if there are brokers, and the embedded log if not.
    pub fn new(brokers: Option<String>) -> Result<Self, NoKafka> {
        match brokers {
            None => Ok(Self::Log),
            #[cfg(feature = "kafka")]
            Some(brokers) => Ok(Self::Kafka(brokers)),
            #[cfg(not(feature = "kafka"))]
            Some(_) => Err(NoKafka),
        }
    }
}

/// How long a member of a group, or a relay, that has crashed keeps its work from others. Short, since in the demo somebody
/// crashes every second; a pause that is longer costs a second delivery, and the inbox is there for that.
const LEASE: Duration = Duration::from_secs(3);

/// Opens the bus.
pub async fn open<H: Home>(bus: &Bus, home: &H) -> Result<Arc<dyn EventBus>, StartError> {
    match bus {
        Bus::Log => Ok(Arc::new(LogBus::new(home.open(EVENTS).await?).with_lease(LEASE))),
        #[cfg(feature = "kafka")]
        Bus::Kafka(brokers) => {
            use buttress_durable::bus::{KafkaBus, KafkaConfig};
            // The least that brokers take unless told otherwise.
            let session = Duration::from_secs(6);
            Ok(Arc::new(KafkaBus::new(KafkaConfig::new(brokers).session(session).publish_timeout(LEASE / 2))?))
        }
    }
}

/// The outbox of a service. Its relay is [`Outbox::relay`].
pub fn outbox<D: Database>(db: &Db<D>) -> Outbox<D> {
    Outbox::new(db.clone()).with_lease(LEASE).with_poll(Duration::from_millis(50))
}

/// Shows how far the relay is behind, and what it could not publish at all.
pub fn watch<D: Database>(telemetry: &Telemetry, outbox: &Outbox<D>) {
    let outbox = outbox.clone();
    telemetry.gauges(["outbox.waiting", "outbox.parked"], move || {
        let outbox = outbox.clone();
        async move {
            let backlog = outbox.backlog().await.ok()?;
            Some([backlog.unsent, backlog.parked])
        }
    });
}

/// What a service does with the events that it listens to.
pub trait Consumer<D: Database>: Send + Sync + 'static {
    /// Writes in `tx` only: the event is noted in the same transaction, so it is done once, however often the event comes.
    fn handle(&self, tx: &mut Tx<D>, event: &DomainEvent) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Subscribes a service, under its own name, to the [`topics`] that it listens to.
pub async fn subscribe<D: Database>(
    bus: &Arc<dyn EventBus>,
    service: &'static str,
    db: &Db<D>,
    consumer: Arc<impl Consumer<D>>,
) -> Result<Subscription, StartError> {
    let subscribe = Subscribe::new(service, topics(service).iter().copied())?
        // Half a minute of a database that is down. What fails for longer, or is malformed, is a dead letter: the events
        // behind it should not wait for somebody to wake up.
        .attempts(NonZeroU32::MIN.saturating_add(24))
        .backoff(Backoff::equal_jitter(Duration::from_millis(50), Duration::from_secs(2)));
    let handler = Inbox::new(db.clone(), service).handler(move |tx, event| {
        let consumer = consumer.clone();
        async move { consumer.handle(tx, event).await }.boxed()
    });
    let handler = Arc::new(handler);
    let traced = move |delivery: Delivery| {
        let (handler, span) = (handler.clone(), consumer_span(&delivery.event));
        async move { handler.handle(delivery).await }.instrument(span)
    };
    Ok(bus.subscribe(subscribe, Arc::new(traced)).await?)
}
