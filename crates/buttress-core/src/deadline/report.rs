use super::Deadlines;
use crate::Clock;
use crate::report::{Metric, Report, Sink};

const EXCEEDED: Metric =
    Metric::counter("resilience.deadline.exceeded", "calls", "Calls whose deadline passed before their response began");
const EXPIRED: Metric = Metric::counter(
    "resilience.deadline.expired",
    "calls",
    "Calls rejected at their start, without time left or with too little",
);
const OBSERVED: Metric = Metric::counter(
    "resilience.deadline.observed",
    "calls",
    "Calls without time left that were not rejected, by the mode or by the bound on rejections",
);

impl<C: Clock> Report for Deadlines<C> {
    fn metrics() -> Vec<Metric> {
        vec![EXCEEDED, EXPIRED, OBSERVED]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&EXCEEDED, self.exceeded());
        sink.counter(&EXPIRED, self.expired());
        sink.counter(&OBSERVED, self.observed());
    }
}
