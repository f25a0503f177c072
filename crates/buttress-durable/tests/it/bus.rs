//! The guarantees of every bus, as one set of tests: over the embedded log on SQLite and
//! PostgreSQL, Kafka's mock cluster in this process, and a real broker if `BUTTRESS_TEST_KAFKA`
//! names one (`host:port`).

mod brokers;
mod chain;
mod forgotten;
mod kafka;
mod letters;
mod promises;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{BusError, DeadLettered, Delivery, EventBus, HandlerError, Start, Subscribe};
use buttress_durable::{Clock, DomainEvent};

use crate::support::{Backend, event, eventually};

/// A broker for one test, or topics and groups that no other test uses.
pub(crate) trait Broker: Sized {
    /// Concurrency of a test's parts. On Kafka, joining a group is mostly waiting.
    const AT_ONCE: u64;
    /// The database of the services that use the bus.
    type Db: Backend;

    async fn start() -> Self;
    /// Connects as another process would.
    async fn connect_at(&self, clock: Clock) -> Arc<dyn EventBus>;
    /// Returns a bus for the test's own questions.
    fn bus(&self) -> &dyn EventBus;
    /// Returns the sum of a group's committed offsets.
    async fn committed(&self, group: &str, topic: &str) -> i64;
    /// Makes names unique that tests share on a broker that outlives them.
    fn suffix(&self) -> &str;
    async fn end(self);

    async fn dead_letters(&self, group: &str, topic: &str) -> Vec<DeadLettered> {
        self.bus().dead_letters(group, topic, 10).await.unwrap()
    }

    async fn redrive(&self, group: &str, topic: &str, (partition, offset): (i64, i64)) -> Result<(), BusError> {
        self.bus().redrive(group, topic, partition, offset).await
    }

    async fn connect(&self) -> Arc<dyn EventBus> {
        self.connect_at(Clock::system()).await
    }

    fn name(&self, name: &str) -> String {
        format!("{name}{}", self.suffix())
    }

    fn event(&self, key: &str, number: i64) -> DomainEvent {
        event(&self.topic(), key, number)
    }

    fn topic(&self) -> String {
        self.name("OrderCreated")
    }

    /// A group with short pauses between attempts.
    fn group(&self, group: &str) -> Subscribe {
        let subscribe = Subscribe::new(self.name(group), [self.topic()]).unwrap();
        subscribe.start(Start::Earliest).backoff(Backoff::constant(Duration::from_millis(1)))
    }
}

/// Runs each generic test on every available broker. The module's name selects those that need a
/// server: see .config/nextest.toml.
macro_rules! on_every_broker {
    ($($test:ident),+ $(,)?) => {
        $crate::bus::on_every_broker!(@ log_on_sqlite: $crate::bus::brokers::Log<sqlx::Sqlite>; true; $($test)+);
        $crate::bus::on_every_broker!(@ log_on_postgres: $crate::bus::brokers::Log<sqlx::Postgres>;
            $crate::support::server().is_some(); $($test)+);
        $crate::bus::on_every_broker!(@ on_kafka_mock: $crate::bus::brokers::Mock; true; $($test)+);
        $crate::bus::on_every_broker!(@ on_kafka_broker: $crate::bus::brokers::Real;
            $crate::bus::brokers::real().is_some(); $($test)+);
    };
    (@ $name:ident: $broker:ty; $there:expr; $($test:ident)+) => {
        mod $name {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if $there {
                    $crate::support::bounded(super::$test::<$broker>()).await;
                }
            })+
        }
    };
}
use on_every_broker;

/// A handler that records its events.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Vec<(String, i64)>>>);

impl Notes {
    fn handler(&self) -> Arc<dyn buttress_durable::bus::Handler> {
        let notes = self.clone();
        Arc::new(move |delivery: Delivery| {
            notes.take(&delivery);
            async { Ok(()) }
        })
    }

    fn take(&self, delivery: &Delivery) {
        self.0.lock().unwrap().push((delivery.event.key().to_owned(), number(delivery)));
    }

    /// Returns the numbers in the order of delivery. A bus may repeat some.
    fn all(&self) -> Vec<i64> {
        self.0.lock().unwrap().iter().map(|(_, number)| *number).collect()
    }

    /// Returns the numbers of each key in the order of their first delivery.
    fn first_seen(&self) -> BTreeMap<String, Vec<i64>> {
        let mut seen: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (key, number) in &*self.0.lock().unwrap() {
            let numbers = seen.entry(key.clone()).or_default();
            if !numbers.contains(number) {
                numbers.push(*number);
            }
        }
        seen
    }

    async fn wait_for(&self, count: usize) {
        let what = format!("{count} events");
        eventually(&what, || async { self.first_seen().values().map(Vec::len).sum::<usize>() >= count }).await;
    }
}

fn number(delivery: &Delivery) -> i64 {
    delivery.event.decode().unwrap()
}

fn later() -> Result<(), HandlerError> {
    Err(HandlerError::retry("later"))
}
