//! How many requests a server takes on: the handles of its server stack.

mod shed;

use std::time::Duration;

use buttress::bulkhead::QueuedLayer;
use buttress::metrics::Exporter;
use buttress_http::prelude::*;
use serde_json::{Value, json};

use super::customers::CustomerRate;
use super::{InvalidConfig, ORDER_VIEWS, READS};
use crate::launch::Name;
use shed::Shedding;
pub(crate) use shed::word;

/// Number of reads that wait for a place of their lane, and how long at most. A read takes a few
/// milliseconds, so even the last in the queue is answered in a fraction of a second. Without the
/// queue, a crowd would be refused and come back at once: refusals would take the time of answers.
const READS_QUEUED: usize = 1024;
const READS_WAIT: Duration = Duration::from_millis(500);

/// Number of requests of [`Lane::Rest`] in progress. Exact, because what is scarce is countable: an
/// order holds its request, and a place of the gateway's client stack, while its saga runs. Its
/// latency is that of the payment, and says nothing about what this service can do.
const REST: usize = 64;

/// Bounds of the adaptive limits of payment and inventory. How many calls their databases serve at
/// once depends on the machine and on the database, so the number is found and not chosen. The
/// lower bounds are what one gateway and one order service send at most, or twice that where a call
/// that its caller has given up holds its place until the reset arrives: with one replica of each
/// caller, whose own bulkheads have queues, no call is refused here. The limits are for more
/// replicas.
const ADAPTIVE_READS: (usize, usize) = (READS + ORDER_VIEWS + READS, 400);
const ADAPTIVE_REST: (usize, usize) = (12, 200);

/// Requests that share places, because they wait for the same. Of the gateway's routes, those that
/// call the same services are one lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lane {
    /// Requests that belong to no other lane: on the gateway new orders, in the other services all
    /// requests that change something.
    Rest,
    /// Reads of a service, which wait for its database only.
    Reads,
    /// The catalogue, old and new, which waits for inventory.
    Catalogue,
    /// Order views, which wait for four services, and as long as the slowest of them.
    OrderViews,
    /// The pages of the old shop, which wait for the monolith.
    OldShop,
    /// The gateway's OpenAPI document, which waits for no service.
    Document,
}

/// Which of a customer's rates a request counts for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rate {
    /// New orders, which cost a saga each.
    Orders,
    /// All other requests that need a customer.
    Requests,
}

/// The places of a lane.
#[derive(Clone, Debug)]
enum Places {
    /// A number that is chosen, with a queue for reads.
    Exact(Bulkhead),
    /// A number that follows the latency, without a queue: the callers have one.
    Adaptive(AdaptiveLimit),
}

/// The configuration and handles of one server stack.
#[derive(Clone, Debug)]
pub struct Admission {
    lanes: Vec<(Lane, Places)>,
    /// The rates of each customer. Only the gateway knows who they are.
    rates: Vec<(Rate, CustomerRate)>,
    shed: Option<Shedding>,
    /// Longer than any caller's timeout, so that it only ends requests whose caller is gone.
    pub timeout: Duration,
}

impl Admission {
    /// The limits of a service, in its metrics under the service's name and the lane's.
    /// `orders_per_second` is the rate of each customer, of the gateway's only.
    ///
    /// # Errors
    /// If a layer is configured wrongly.
    pub fn new(name: Name, orders_per_second: u32) -> Result<Self, InvalidConfig> {
        let of = name.as_str();
        let exact = |lane, of: String, limit| (lane, Places::Exact(Bulkhead::named(of, limit)));
        let adaptive = |lane, of: String, (min, max)| {
            let limit = AdaptiveLimit::builder(of).limits(min..=max).initial(min).build()?;
            Ok((lane, Places::Adaptive(limit)))
        };
        let (reads, rest) = (format!("{of}, reads"), of.to_owned());
        let mut all = Self { lanes: Vec::new(), rates: Vec::new(), shed: None, timeout: Duration::from_secs(10) };
        all.lanes = match name {
            Name::Gateway => vec![
                exact(Lane::Rest, rest, REST),
                // As many as inventory's client stack has places, which a crowd must not exceed:
                // the rest waits here, where a refusal is cheap. So the number is not one to find.
                exact(Lane::Catalogue, format!("{of}, catalogue"), READS),
                exact(Lane::OrderViews, format!("{of}, order views"), ORDER_VIEWS),
                exact(Lane::OldShop, format!("{of}, old shop"), READS),
                exact(Lane::Document, format!("{of}, document"), READS),
            ],
            Name::Payment | Name::Inventory => {
                vec![adaptive(Lane::Rest, rest, ADAPTIVE_REST)?, adaptive(Lane::Reads, reads, ADAPTIVE_READS)?]
            }
            _ => vec![exact(Lane::Rest, rest, REST), exact(Lane::Reads, reads, READS)],
        };
        if name == Name::Gateway {
            let [orders, requests] = CustomerRate::all(orders_per_second)?;
            all.rates = vec![(Rate::Orders, orders), (Rate::Requests, requests)];
            all.shed = Some(Shedding::new(of, all.bulkheads().skip(1).cloned().collect())?);
        }
        Ok(all)
    }

    /// The bulkhead of a lane. `None` if the lane has an adaptive limit, or does not exist.
    pub fn lane(&self, lane: Lane) -> Option<&Bulkhead> {
        self.lanes.iter().find_map(|(of, places)| match places {
            Places::Exact(bulkhead) if *of == lane => Some(bulkhead),
            _ => None,
        })
    }

    /// The bulkheads of all lanes that have one.
    pub fn bulkheads(&self) -> impl Iterator<Item = &Bulkhead> {
        self.lanes.iter().filter_map(|(_, places)| match places {
            Places::Exact(bulkhead) => Some(bulkhead),
            Places::Adaptive(_) => None,
        })
    }

    /// The adaptive limits of all lanes that have one.
    pub fn limits(&self) -> impl Iterator<Item = &AdaptiveLimit> {
        self.lanes.iter().filter_map(|(_, places)| match places {
            Places::Adaptive(limit) => Some(limit),
            Places::Exact(_) => None,
        })
    }

    /// The rates of each customer.
    pub fn rates(&self) -> impl Iterator<Item = &CustomerRate> {
        self.rates.iter().map(|(_, rate)| rate)
    }

    /// What sheds load. Only the gateway has it.
    pub fn shedding(&self) -> Option<&LoadShed> {
        self.shed.as_ref().map(Shedding::handle)
    }

    pub(super) fn rate(&self, rate: Rate) -> Option<&CustomerRate> {
        self.rates.iter().find(|(of, _)| *of == rate).map(|(_, rate)| rate)
    }

    /// The layer of a lane with a bulkhead. A lane that the service does not have shares the places
    /// of the first.
    pub(super) fn bulkhead(&self, lane: Lane) -> QueuedLayer {
        let bulkhead = self.lane(lane).or_else(|| self.bulkheads().next()).cloned();
        let (queue, max_wait) = if lane == Lane::Rest { (0, Duration::ZERO) } else { (READS_QUEUED, READS_WAIT) };
        BulkheadLayer::from(bulkhead.unwrap_or_else(|| Bulkhead::new(REST))).queue(queue, max_wait)
    }

    /// The layer of a lane with an adaptive limit.
    pub(super) fn adaptive(&self, lane: Lane) -> AdaptiveLimitLayer {
        let found = self.lanes.iter().find_map(|(of, places)| match places {
            Places::Adaptive(limit) if *of == lane => Some(limit.clone()),
            _ => None,
        });
        found.map_or_else(|| AdaptiveLimitLayer::new("no such lane"), AdaptiveLimitLayer::from)
    }

    /// The layer that sheds load.
    pub(super) fn load_shed(&self) -> LoadShedLayer {
        self.shedding().map_or_else(|| LoadShedLayer::new("no monitors"), |shed| LoadShedLayer::from(shed.clone()))
    }

    /// Watches the current runtime, which is new after each start of the service.
    pub(super) fn watch_scheduler(&self) {
        if let Some(shed) = &self.shed {
            shed.watch_scheduler();
        }
    }

    /// Registers the metrics.
    pub(crate) fn export(&self, exporter: &Exporter) {
        self.bulkheads().for_each(|bulkhead| exporter.add(bulkhead));
        self.limits().for_each(|limit| exporter.add(limit));
        self.rates().for_each(|rate| rate.export(exporter));
        self.shed.iter().for_each(|shed| shed.export(exporter));
    }

    /// The lanes as JSON, for the dashboard. One with `bounds` has an adaptive limit.
    pub(crate) fn describe_lanes(&self) -> Vec<Value> {
        let describe = |(_, places): &(Lane, Places)| match places {
            Places::Exact(bulkhead) => json!({
                "name": bulkhead.name(),
                "in_flight": bulkhead.in_flight(),
                "waiting": bulkhead.waiting(),
                "limit": bulkhead.limit(),
                "rejected": bulkhead.rejected(),
            }),
            Places::Adaptive(limit) => {
                let snapshot = limit.snapshot();
                json!({
                    "name": limit.name(),
                    "in_flight": snapshot.in_flight,
                    "waiting": 0,
                    "limit": snapshot.limit,
                    "rejected": snapshot.rejected,
                    "bounds": limit.bounds(),
                })
            }
        };
        self.lanes.iter().map(describe).collect()
    }

    /// What is shed as JSON: the share of the requests, and their number by class since the start.
    pub(crate) fn describe_shed(&self) -> Option<Value> {
        self.shed.as_ref().map(Shedding::describe)
    }
}

#[cfg(test)]
mod tests;
