//! The event bus, chosen once: the embedded log by default, Kafka with `--kafka`.
//!
//! Everything else in the mesh knows an `Arc<dyn EventBus>` and nothing more.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use buttress::Backoff;
use buttress_durable::bus::{Handler, LogBus, Subscribe, Subscription};
use buttress_durable::{Database, Db};
use buttress_durable::{EventBus, Outbox};

use crate::db::{EVENTS, Home};
use crate::service::StartError;

/// Which bus.
#[derive(Clone, Debug, Default)]
pub enum Bus {
    /// An append-only log in a database of its own, next to those of the services.
    #[default]
    Log,
    /// Kafka, at these brokers.
    Kafka(String),
}

/// How long a member of a group, or a relay, that has crashed keeps its work from others. Short, since in the demo somebody
/// crashes every second; a pause that is longer costs a second delivery, and the inbox is there for that.
const LEASE: Duration = Duration::from_secs(3);

/// Opens the bus.
pub async fn open<H: Home>(bus: &Bus, home: &H) -> Result<Arc<dyn EventBus>, StartError> {
    match bus {
        Bus::Log => Ok(Arc::new(LogBus::new(home.open(EVENTS).await?).with_lease(LEASE))),
        Bus::Kafka(brokers) => kafka(brokers).await,
    }
}

async fn kafka(_brokers: &str) -> Result<Arc<dyn EventBus>, StartError> {
    Err(StartError::NoKafka)
}

/// The outbox of a service. Its relay is [`Outbox::relay`].
pub fn outbox<D: Database>(db: &Db<D>) -> Outbox<D> {
    Outbox::new(db.clone()).with_lease(LEASE).with_poll(Duration::from_millis(50))
}

/// Subscribes a service, under its own name, to some types of events.
pub async fn subscribe(
    bus: &Arc<dyn EventBus>,
    service: &'static str,
    topics: &[&'static str],
    handler: impl Handler,
) -> Result<Subscription, StartError> {
    let subscribe = Subscribe::new(service, topics.iter().copied())?
        // Half a minute of a database that is down. What fails for longer, or is malformed, is a dead letter: the events
        // behind it should not wait for somebody to wake up.
        .attempts(NonZeroU32::MIN.saturating_add(24))
        .backoff(Backoff::equal_jitter(Duration::from_millis(50), Duration::from_secs(2)));
    Ok(bus.subscribe(subscribe, Arc::new(handler)).await?)
}
