//! What operators see of the parts of a service: gauges, the health of its workers, and what waits
//! for them.

use std::sync::Arc;

use buttress_durable::bus::{Lag, Subscription};
use buttress_durable::outbox::Relay;
use buttress_durable::{Database, EventBus, Outbox};

use super::attention::{Letters, ParkedEvents};
use crate::clock::now_ms;
use crate::events::topics;
use crate::service::Service;
use crate::telemetry::Reading;

/// Dead letters that are counted at most, per topic. An operator acts on far fewer.
const COUNTED: u32 = 1_000;

impl Service {
    /// Shows an outbox and its relay, and lets operators decide about parked events.
    pub(crate) fn watch_outbox<D: Database>(&mut self, outbox: &Outbox<D>, relay: &Relay) {
        self.telemetry.worker("relay", relay.health());
        self.admin.queue(ParkedEvents(outbox.clone()));
        let outbox = outbox.clone();
        self.telemetry.gauges("outbox", move || {
            let outbox = outbox.clone();
            async move {
                let backlog = outbox.backlog().await?;
                // The age of the oldest unsent event is the delay that consumers see.
                let age = backlog.oldest.map_or(0, |oldest| now_ms().saturating_sub(oldest.as_millis()).max(0));
                Ok(vec![
                    Reading::new("outbox.waiting", backlog.unsent as f64),
                    Reading::new("outbox.parked", backlog.parked as f64),
                    Reading::new("outbox.oldest.age", age as f64 / 1_000.0),
                ])
            }
        });
    }

    /// Shows the service's consumer group, and lets operators decide about its dead letters.
    pub(crate) fn watch_consumer(&mut self, bus: &Arc<dyn EventBus>, subscription: &Subscription) {
        let (group, topics) = (self.name, topics(self.name));
        self.telemetry.worker("consumer", subscription.health());
        self.admin.queue(Letters { bus: bus.clone(), group, topics });
        let lags = bus.clone();
        self.telemetry.gauges("consumer", move || {
            let bus = lags.clone();
            async move {
                let lags = bus.lag(group).await?;
                let readings = |topic: &&'static str| {
                    let of = || lags.iter().filter(|lag| lag.topic == **topic);
                    let waiting: u64 = of().map(Lag::waiting).sum();
                    let since = of().filter_map(|lag| lag.waiting_since).min();
                    let age = since.map_or(0, |since| now_ms().saturating_sub(since.as_millis()).max(0));
                    [("bus.lag", waiting as f64), ("bus.waiting.age", age as f64 / 1_000.0)]
                        .map(|(name, value)| Reading::new(name, value).with("group", group).with("topic", *topic))
                };
                Ok(topics.iter().flat_map(readings).collect())
            }
        });
        let bus = bus.clone();
        self.telemetry.gauges("dead letters", move || {
            let bus = bus.clone();
            async move {
                let mut readings = Vec::new();
                for topic in topics {
                    let letters = bus.dead_letters(group, topic, COUNTED).await?.len();
                    let reading = Reading::new("bus.dead.letters", letters as f64);
                    readings.push(reading.with("group", group).with("topic", *topic));
                }
                Ok(readings)
            }
        });
    }
}
