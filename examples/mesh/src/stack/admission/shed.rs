//! What the gateway sheds while it cannot keep up, and by what it notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buttress::load_shed::{Monitor, QueueDelay, SchedulerDelay, monitor_fn};
use buttress::metrics::Exporter;
use buttress::policy::Criticality;
use buttress_http::prelude::*;
use serde_json::{Map, Value, json};

use super::READS_QUEUED;
use crate::stack::InvalidConfig;

/// How late the gateway polls its tasks before it sheds load: longer than a busy neighbour on the
/// machine causes, and for long enough that a burst is over by then.
const LATE: Duration = Duration::from_millis(50);
const LATE_FOR: Duration = Duration::from_millis(500);

/// How full the lane of reads with the longest queue may be before load is shed.
const CROWDED: f64 = 0.9;

/// Rejects the least important requests of the gateway while it cannot keep up. Reads go before
/// orders, by the priorities of the routes.
#[derive(Clone, Debug)]
pub(super) struct Shedding {
    shed: LoadShed,
    scheduler: Scheduler,
}

impl Shedding {
    /// `reads` are the lanes with a queue. The lane of orders is no monitor: orders that wait for a
    /// slow payment fill it, and to refuse the catalogue would help neither. A queue of reads that
    /// is nearly full is one, since only more reads than the gateway can serve fill it.
    pub(super) fn new(name: &'static str, reads: Vec<Bulkhead>) -> Result<Self, InvalidConfig> {
        let scheduler = Scheduler::default();
        let crowd = move || {
            let full =
                |lane: &Bulkhead| (lane.in_flight() + lane.waiting()) as f64 / (lane.limit() + READS_QUEUED) as f64;
            reads.iter().map(full).fold(0.0, f64::max)
        };
        let builder = LoadShed::builder(name).monitor(scheduler.clone());
        Ok(Self { shed: builder.monitor_at(CROWDED, monitor_fn("crowd", crowd)).build()?, scheduler })
    }

    pub(super) fn handle(&self) -> &LoadShed {
        &self.shed
    }

    /// Watches the current runtime, which is new after each start of the service.
    pub(super) fn watch_scheduler(&self) {
        if let Ok(delay) = QueueDelay::new(LATE, LATE_FOR) {
            self.scheduler.watch(SchedulerDelay::watch(delay));
        }
    }

    /// Registers the metrics.
    pub(super) fn export(&self, exporter: &Exporter) {
        exporter.add(&self.shed);
    }

    /// What is shed as JSON: the share of the requests, and their number by class since the start.
    pub(super) fn describe(&self) -> Value {
        let by_class = Criticality::ALL.map(|class| (word(class).to_owned(), json!(self.shed.shed(class))));
        let levels = self.shed.levels().into_iter().map(|(monitor, level)| (monitor.to_owned(), json!(level)));
        json!({
            "share": self.shed.share(),
            "shed": Map::from_iter(by_class),
            "too_late": self.shed.too_late(),
            "levels": Map::from_iter(levels),
        })
    }
}

/// A class of priorities, as the metrics name it.
pub(crate) fn word(class: Criticality) -> &'static str {
    match class {
        Criticality::CriticalPlus => "critical_plus",
        Criticality::Critical => "critical",
        Criticality::SheddablePlus => "sheddable_plus",
        Criticality::Sheddable => "sheddable",
    }
}

/// The delay of the runtime that the service runs on now. The handles of a service survive its
/// crash, and its runtime does not.
#[derive(Clone, Debug, Default)]
struct Scheduler(Arc<Mutex<Option<SchedulerDelay>>>);

impl Scheduler {
    fn watch(&self, delay: SchedulerDelay) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(delay);
    }
}

impl Monitor for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler_delay"
    }

    fn level(&self) -> f64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0.0, Monitor::level)
    }
}
