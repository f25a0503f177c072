//! Stops calling what fails, and finds out carefully when it is well again.
//!
//! The rules are in [`buttress_core::circuit_breaker`]; this module puts them behind a layer.
//!
//! ```
//! use buttress::{CircuitBreaker, CircuitBreakerLayer};
//! use std::time::Duration;
//!
//! // A streak of failures that is no chance, at least 5, or more than half of at least 20 calls in 10 seconds:
//! let layer = CircuitBreakerLayer::new("payments");
//!
//! // Your own numbers, and a handle to watch it:
//! let breaker = CircuitBreaker::builder("payments")
//!     .failure_rate(0.3)
//!     .slow_threshold(Duration::from_millis(300))
//!     .slow_rate(0.8)
//!     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
//!     .build()?;
//! let layer = CircuitBreakerLayer::from(breaker.clone());
//! println!("{}", breaker.state());
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # When to use it
//!
//! Around every client of something that can be down for longer than a request can wait. One breaker for each
//! backend, or better for each endpoint of it; one for several backends punishes all for the fault of one.
//!
//! # Where it belongs
//!
//! Inside retry, so that each attempt is one sample and an open circuit ends the retrying; outside the attempt timeout, so that it
//! sees the timeouts. A bulkhead's rejections do not count as failures, on whichever side it is.
//!
//! # Differences
//!
//! * tower has none.
//! * `tower-resilience`: its default count window never slides, results carry no generation, a call that is dropped by an outer
//!   timeout is never recorded, and every `Layer::layer` makes a state of its own, so that behind `axum::serve` it protects one connection.

pub mod sharing;

use crate::{
    TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{
    Admit, Clock, InvalidConfig, Name, Policy, Reason, Refused, Rejection, Waiters, circuit_breaker as core,
};
use std::{fmt, ops::RangeInclusive, time::Duration};
use tokio::sync::broadcast;

pub use buttress_core::circuit_breaker::{
    CallTime, Cause, CircuitBreakerPermit, CloseRule, Counts, Event, FailureRate, FailureStreak, OnDrop, Snapshot,
    State, Transition, Window,
};

/// The future of a service behind a circuit breaker.
pub mod future {
    pub use crate::gate::ResponseFuture;
}

/// A circuit breaker as a layer. See the [module](self).
pub type CircuitBreakerLayer<E = NoEnding> = GateLayer<CircuitBreaker, E>;

/// A service behind a circuit breaker.
pub type CircuitBreakerService<S, E> = Gate<S, CircuitBreaker, E>;

impl CircuitBreakerLayer {
    /// With the defaults: a streak of failures that is no chance, at least 5, or more than half of
    /// at least 20 calls in 10 seconds, by what chance explains; open for 5 to 30 seconds; 3
    /// probes, one at a time, of which 2 have to succeed.
    pub fn new(name: impl Into<Name>) -> Self {
        CircuitBreaker::new(name).into()
    }
}

impl From<CircuitBreaker> for CircuitBreakerLayer {
    fn from(breaker: CircuitBreaker) -> Self {
        Self::with_policy(breaker)
    }
}

/// A circuit, to watch and to drive. A cheap handle; clones share the circuit, and so do all
/// services of its layers.
#[derive(Clone)]
pub struct CircuitBreaker(core::CircuitBreaker);

impl CircuitBreaker {
    /// With the defaults of [`builder`](Self::builder).
    pub fn new(name: impl Into<Name>) -> Self {
        Self::watched(core::CircuitBreaker::new(name))
    }

    /// Starts from the defaults.
    pub fn builder(name: impl Into<Name>) -> Builder {
        Builder(core::CircuitBreaker::builder(name))
    }

    fn watched(breaker: core::CircuitBreaker) -> Self {
        #[cfg(feature = "tracing")]
        breaker.set_log(log);
        Self(breaker)
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The state now. An open circuit whose time is over stays open until a call comes that can be
    /// its probe.
    pub fn state(&self) -> State {
        self.0.state(&TokioClock)
    }

    /// One look at everything.
    pub fn snapshot(&self) -> Snapshot {
        self.0.snapshot(&TokioClock)
    }

    /// Refuses every call, until another of these methods is called.
    pub fn force_open(&self) {
        self.0.force_open(&TokioClock);
    }

    /// Lets every call through and counts nothing, until another of these methods is called.
    pub fn disable(&self) {
        self.0.disable(&TokioClock);
    }

    /// Lets every call through and counts, but never trips, until another of these methods is
    /// called.
    pub fn metrics_only(&self) {
        self.0.metrics_only(&TokioClock);
    }

    /// Closes the circuit and forgets all results.
    pub fn reset(&self) {
        self.0.reset(&TokioClock);
    }

    /// Opens the circuit for `time`; then it probes as after a trip.
    pub fn open_for(&self, time: Duration) {
        self.0.open_for(time, &TokioClock);
    }

    /// Changes the configuration while it runs; state and results stay, and are judged by the new
    /// thresholds at once. See
    /// [`core::CircuitBreaker::reload`](buttress_core::CircuitBreaker::reload).
    ///
    /// # Errors
    /// When the new configuration breaks a rule, or asks for what a live circuit cannot change. The
    /// old one stays then.
    pub fn reload(&self, builder: &Builder) -> Result<(), InvalidConfig> {
        self.0.reload(&builder.0, &TokioClock)
    }

    /// Whether nothing would be lost with this circuit: no call is in flight, and it is closed, or
    /// would admit a probe now. An operator's state is never idle.
    pub fn is_idle(&self) -> bool {
        self.0.is_idle(&TokioClock)
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    /// Calls `listener` with every change of state, on the thread that caused it, outside any lock.
    /// A panic in it is contained. It stays for as long as the circuit does.
    pub fn on_transition(&self, listener: impl Fn(&Transition) + Send + Sync + 'static) {
        self.0.on_transition(listener);
    }

    /// Calls `listener` with every [`Event`]: every call that ends or is refused too, on the thread
    /// of the call, outside any lock. Calls are timed while there is such a listener, which costs
    /// two readings of the clock each.
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.0.on_event(listener);
    }

    /// Every change of state from now on. A receiver that falls more than 64 behind gets the number
    /// that it missed. All receivers share one channel, and a dropped one costs nothing.
    pub fn subscribe(&self) -> broadcast::Receiver<Transition> {
        let sender = self.0.attachment(|| {
            let (sender, _) = broadcast::channel(64);
            let changes = sender.clone();
            self.0.on_transition(move |transition| {
                // Without a receiver there is none to inform.
                let _ = changes.send(transition.clone());
            });
            sender
        });
        sender.expect("nothing else is attached to a circuit of this crate").subscribe()
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Logs a change of state. What opens a circuit is a warning, and says which failure did.
#[cfg(feature = "tracing")]
fn log(Transition { name, from, to, cause, generation, open_for, last_failure, .. }: &Transition) {
    use buttress_core::FailureKind;
    let open_for_ms = open_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let kind = last_failure.map(|failure| failure.kind);
    let status = match kind {
        Some(FailureKind::Http(status)) => Some(i64::from(status)),
        Some(FailureKind::Grpc(status)) => Some(i64::from(status)),
        _ => None,
    };
    let kind = kind.map(|kind| match kind {
        FailureKind::Connect => "connect",
        FailureKind::Transport => "transport",
        FailureKind::Timeout => "timeout",
        FailureKind::Http(_) => "http",
        FailureKind::Grpc(_) => "grpc",
        FailureKind::Body => "body",
        FailureKind::Application => "application",
        _ => "other",
    });
    if matches!(to, State::Open | State::ForcedOpen) {
        tracing::warn!(
            resilience.policy.name = %name,
            %from,
            %to,
            %cause,
            generation,
            open_for_ms,
            failure.kind = kind,
            failure.status = status,
            "circuit opened"
        );
    } else {
        tracing::info!(resilience.policy.name = %name, %from, %to, %cause, generation, "circuit changed");
    }
}

impl Policy for CircuitBreaker {
    type Permit = CircuitBreakerPermit;

    #[inline(always)]
    fn reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.0.reserve(clock)
    }

    fn try_reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refused> {
        self.0.try_reserve(clock)
    }

    fn refuse(&self, refused: Refused, clock: &impl Clock) -> Rejection {
        self.0.refuse(refused, clock)
    }

    fn holds(&self, permit: &CircuitBreakerPermit, clock: &impl Clock) -> bool {
        self.0.holds(permit, clock)
    }

    #[inline]
    fn peek(&self, clock: &impl Clock) -> Result<(), Refused> {
        self.0.peek(clock)
    }

    fn waiters(&self) -> Option<&Waiters> {
        self.0.waiters()
    }
}

impl<Req: ?Sized> Admit<Req> for CircuitBreaker {
    #[inline(always)]
    fn admit(&self, request: &Req, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.0.admit(request, clock)
    }

    fn confirm(
        &self,
        permit: CircuitBreakerPermit,
        request: &Req,
        clock: &impl Clock,
    ) -> Result<CircuitBreakerPermit, Rejection> {
        self.0.confirm(permit, request, clock)
    }
}

impl<E> CircuitBreakerLayer<E> {
    /// Lets only such requests be probes of a half-open circuit: not the upload of a gigabyte, and not what must not be done in vain. The others
    /// are refused until the circuit has closed.
    ///
    /// ```
    /// # use buttress::CircuitBreakerLayer;
    /// let layer = CircuitBreakerLayer::new("files").can_probe(|request: &Vec<u8>| request.len() < 1024);
    /// # let _ = layer;
    /// ```
    pub fn can_probe<F>(self, can_probe: F) -> GateLayer<CanProbe<F>, E> {
        self.map_policy(|breaker| CanProbe { breaker, can_probe })
    }
}

/// A circuit breaker whose probes are chosen: see [`CircuitBreakerLayer::can_probe`](GateLayer::can_probe).
#[derive(Clone, Debug)]
pub struct CanProbe<F> {
    breaker: CircuitBreaker,
    can_probe: F,
}

impl<F> CanProbe<F> {
    /// The circuit.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }
}

impl<F> Policy for CanProbe<F> {
    type Permit = CircuitBreakerPermit;

    fn reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.reserve(clock)
    }

    fn try_reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Refused> {
        self.breaker.try_reserve(clock)
    }

    fn refuse(&self, refused: Refused, clock: &impl Clock) -> Rejection {
        self.breaker.refuse(refused, clock)
    }

    fn holds(&self, permit: &CircuitBreakerPermit, clock: &impl Clock) -> bool {
        self.breaker.holds(permit, clock)
    }

    fn peek(&self, clock: &impl Clock) -> Result<(), Refused> {
        self.breaker.peek(clock)
    }

    fn waiters(&self) -> Option<&Waiters> {
        self.breaker.waiters()
    }
}

impl<Req: ?Sized, F: Fn(&Req) -> bool> Admit<Req> for CanProbe<F> {
    fn admit(&self, request: &Req, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.0.reserve_if(|| (self.can_probe)(request), clock)
    }

    fn confirm(
        &self,
        permit: CircuitBreakerPermit,
        request: &Req,
        clock: &impl Clock,
    ) -> Result<CircuitBreakerPermit, Rejection> {
        if permit.is_probe() && !(self.can_probe)(request) {
            // Dropping the permit gives the slot back.
            return Err(self.breaker.0.reject(Reason::ProbesExhausted));
        }
        self.breaker.confirm(permit, request, clock)
    }
}

/// Builds a [`CircuitBreaker`]; ranges and defaults are those of
/// [`buttress_core::circuit_breaker::Builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder(core::Builder);

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($value:ty);)*) => {
        $($(#[$doc])*
        pub fn $name(self, value: $value) -> Self {
            Self(self.0.$name(value))
        })*
    };
}

impl Builder {
    setters! {
        /// Trips after this many failures in a row: a number of at least 1, or `None` to switch the
        /// rule off. Default: [`FailureStreak::Calibrated`], at least 5 and more where calls fail
        /// at random.
        consecutive_failures(impl Into<FailureStreak>);
        /// Trips when at least this share of the calls in the window failed: above 0, up to 1, or
        /// `None` to switch the rule off. Default: [`FailureRate::Calibrated`], half of the calls
        /// and more by what chance explains.
        failure_rate(impl Into<FailureRate>);
        /// Trips when at least this share of the calls in the window was slow. Above 0, up to 1.
        /// Off by default.
        slow_rate(impl Into<Option<f64>>);
        /// Calls that take longer than this to the head of their response are slow. Above zero.
        /// None by default.
        slow_threshold(impl Into<Option<Duration>>);
        /// What is compared with the slow threshold: the time to the head of the response, or to
        /// its end. Default: to its head.
        call_time(CallTime);
        /// Trips when a function of the results in the window says so.
        custom_rule(impl Fn(&Counts) -> bool + Send + Sync + 'static);
        /// Minimum number of calls in the window before rate rules apply. At least 1. Default 20.
        minimum_throughput(u32);
        /// The results over which rates are computed: those of 10 ms to a day, or a
        /// [`Window::Count`]. Default 10 seconds.
        window(impl Into<Window>);
        /// How long the circuit stays open, doubling with each relapse, jittered. Above zero.
        /// Default 5 to 30 seconds.
        open_time(RangeInclusive<Duration>);
        /// How many probes decide. At least 1. Default 3.
        probes(u32);
        /// How many probes may be in flight together. Between 1 and the number of probes. Default
        /// 1.
        concurrent_probes(u32);
        /// When probes close the circuit. Default: 60 % of them succeed, which is 2 of 3.
        close_rule(CloseRule);
        /// A probe is counted as failed after this time without a result or a sign of life. Above
        /// zero. Default 30 seconds.
        probe_lease(Duration);
        /// A half-open circuit in which a probe has failed opens again after this time without a
        /// result or a sign of life. Above zero. Default 60 seconds.
        max_half_open(Duration);
        /// How to count a call that was dropped after more than the slow threshold. Default: as
        /// slow.
        on_drop(OnDrop);
        /// Counts calls as slow while they are still in flight, once they are past the slow
        /// threshold. Needs a slow rate. Default: off.
        count_overdue(bool);
        /// After closing, ramps admission from 10 % to 100 % over this time. Default: zero, no
        /// ramp.
        recovery_ramp(Duration);
        /// Makes the jitter repeatable.
        seed(u64);
    }

    /// # Errors
    /// When a value is out of its range, or no rule could ever trip. The error names the field and
    /// the rule.
    pub fn build(self) -> Result<CircuitBreaker, InvalidConfig> {
        self.0.build().map(CircuitBreaker::watched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_core::{Failure, FailureKind, Outcome, Permit};

    #[test]
    fn receivers_that_were_dropped_do_not_delay_a_transition() {
        let breaker = CircuitBreaker::new("x");
        for _ in 0..8000 {
            drop(breaker.subscribe());
        }
        let mut receiver = breaker.subscribe();
        // Each listener would be called, and 8,000 that leave were a quadratic second.
        let start = TokioClock.now();
        breaker.force_open();
        assert!(TokioClock.now() - start < Duration::from_millis(100));
        assert_eq!(receiver.try_recv().unwrap().to, State::ForcedOpen);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_transition_says_what_failed_last() {
        let breaker = CircuitBreaker::builder("x").consecutive_failures(1).build().unwrap();
        let mut receiver = breaker.subscribe();
        let failure = Failure::new(FailureKind::Http(503));
        breaker.reserve(&TokioClock).unwrap().settle(&Outcome::Failure(failure), &TokioClock);
        assert_eq!(receiver.try_recv().unwrap().last_failure, Some(failure));
        breaker.reset();
        assert_eq!(receiver.try_recv().unwrap().last_failure, None);
    }

    #[cfg(feature = "tracing")]
    #[test]
    fn the_log_line_of_a_trip_says_what_failed_and_its_numbers_are_numbers() {
        use std::{collections::BTreeMap, sync::Mutex};
        use tracing::field::{Field, Visit};

        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<Mutex<Vec<BTreeMap<&'static str, String>>>>);

        struct Fields(BTreeMap<&'static str, String>);

        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }

            fn record_str(&mut self, field: &Field, value: &str) {
                self.0.insert(field.name(), value.to_owned());
            }

            fn record_u64(&mut self, field: &Field, value: u64) {
                self.0.insert(field.name(), format!("number {value}"));
            }

            fn record_i64(&mut self, field: &Field, value: i64) {
                self.0.insert(field.name(), format!("number {value}"));
            }
        }

        impl tracing::Subscriber for Lines {
            fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
                true
            }

            fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                tracing::span::Id::from_u64(1)
            }

            fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

            fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

            fn event(&self, event: &tracing::Event<'_>) {
                let mut fields = Fields(BTreeMap::new());
                event.record(&mut fields);
                self.0.lock().unwrap().push(fields.0);
            }

            fn enter(&self, _: &tracing::span::Id) {}

            fn exit(&self, _: &tracing::span::Id) {}
        }

        let lines = Lines::default();
        let open_time = Duration::from_secs(5)..=Duration::from_secs(5);
        let breaker = CircuitBreaker::builder("x").consecutive_failures(1).open_time(open_time).build().unwrap();
        tracing::subscriber::with_default(lines.clone(), || {
            let failure = Failure::new(FailureKind::Http(503));
            breaker.reserve(&TokioClock).unwrap().settle(&Outcome::Failure(failure), &TokioClock);
        });
        let lines = lines.0.lock().unwrap();
        let field = |name| lines[0].get(name).map(String::as_str);
        assert_eq!(field("open_for_ms"), Some("number 5000"));
        assert_eq!(field("generation"), Some("number 1"));
        assert_eq!(field("failure.kind"), Some("http"));
        assert_eq!(field("failure.status"), Some("number 503"));
        assert_eq!(field("cause"), Some("1 failure"));
    }
}
