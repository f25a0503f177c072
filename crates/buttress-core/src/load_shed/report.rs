use super::LoadShed;
use crate::report::{Metric, Report, Sink, Value};
use crate::{Clock, Criticality, Priority};

const LATE: Metric =
    Metric::counter("resilience.load_shed.too_late", "calls", "Calls rejected because their deadline could not be met");
const LEVEL: Metric =
    Metric::gauge("resilience.load_shed.level", "1", "Load of what a monitor watches; 1 is its limit")
        .labels(&["monitor"]);
const SHARE: Metric = Metric::gauge("resilience.load_shed.share", "1", "Share of the calls that is rejected");
const SHED: Metric =
    Metric::counter("resilience.load_shed.shed", "calls", "Calls rejected for overload").labels(&["class"]);
const THRESHOLD: Metric = Metric::gauge(
    "resilience.load_shed.threshold",
    "1",
    "Rank of the priority at which calls are rejected, from 0, the most important, to 511; 512 while none are",
);

fn word(class: Criticality) -> &'static str {
    match class {
        Criticality::CriticalPlus => "critical_plus",
        Criticality::Critical => "critical",
        Criticality::SheddablePlus => "sheddable_plus",
        Criticality::Sheddable => "sheddable",
    }
}

impl<C: Clock> Report for LoadShed<C> {
    fn metrics() -> Vec<Metric> {
        vec![LATE, LEVEL, SHARE, SHED, THRESHOLD]
    }

    fn name(&self) -> Option<&str> {
        Some(self.name())
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&LATE, self.too_late());
        sink.gauge(&SHARE, self.share());
        sink.gauge(&THRESHOLD, self.threshold().map_or(Priority::RANKS, Priority::rank) as f64);
        for class in Criticality::ALL {
            sink.value(&SHED, [word(class), ""], Value::Counter(self.shed(class)));
        }
        for (monitor, level) in self.levels() {
            sink.value(&LEVEL, [monitor, ""], Value::Gauge(level));
        }
    }
}
