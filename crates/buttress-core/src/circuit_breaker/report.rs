use super::{
    breaker::CircuitBreaker,
    event::{Counts, State},
};
use crate::Clock;
use crate::report::{Metric, Report, Sink, Value};

const STATE: Metric = Metric::gauge(
    "resilience.breaker.state",
    "circuits",
    "Circuits that are in the state: 1 or 0 for a single circuit",
)
.labels(&["state"]);
const TRANSITIONS: Metric =
    Metric::counter("resilience.breaker.transitions", "changes", "Changes of the circuit's state")
        .labels(&["from", "to"]);
const REJECTED: Metric = Metric::counter("resilience.breaker.rejected", "calls", "Calls that the circuit rejected");
const STALE: Metric =
    Metric::counter("resilience.breaker.stale", "calls", "Results of calls from before the last change of state");
const FAILURE_RATE: Metric = Metric::rate("resilience.breaker.failure_rate", "Failures among the calls in the window");
const SLOW_RATE: Metric = Metric::rate("resilience.breaker.slow_rate", "Slow calls among the calls in the window");
const IN_FLIGHT: Metric = Metric::gauge("resilience.breaker.in_flight", "calls", "Calls that hold a permit");

/// The metrics that every circuit breaker reports.
pub const METRICS: [Metric; 7] = [STATE, TRANSITIONS, IN_FLIGHT, REJECTED, STALE, FAILURE_RATE, SLOW_RATE];

impl<C: Clock> Report for CircuitBreaker<C> {
    fn metrics() -> Vec<Metric> {
        METRICS.to_vec()
    }

    fn name(&self) -> Option<&str> {
        Some(self.name())
    }

    /// Reports all values. Rates are unknown while the window contains fewer calls than the minimum
    /// throughput.
    fn report(&self, sink: &mut dyn Sink) {
        let snapshot = self.snapshot();
        for state in State::ALL {
            let is = f64::from(u8::from(state == snapshot.state));
            sink.value(&STATE, [state.as_str(), ""], Value::Gauge(is));
        }
        for (from, to, times) in self.transitions() {
            sink.value(&TRANSITIONS, [from.as_str(), to.as_str()], Value::Counter(times.into()));
        }
        sink.gauge(&IN_FLIGHT, self.in_flight() as f64);
        sink.counter(&REJECTED, snapshot.rejected);
        sink.counter(&STALE, snapshot.stale);
        // Rates of circuits with the same name are added. Without this, the failures of a circuit
        // below its minimum throughput would change the rate of the others.
        let counts = snapshot.failure_rate().map_or_else(Counts::default, |_| snapshot.counts);
        sink.rate(&FAILURE_RATE, counts.failures(), counts.total());
        sink.rate(&SLOW_RATE, counts.slow_calls(), counts.total());
    }
}
