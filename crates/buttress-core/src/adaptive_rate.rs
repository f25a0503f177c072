//! A rate for the calls of a client, which follows what the backend admits.
//!
//! # Algorithm
//!
//! That of the adaptive retry mode of AWS's SDKs. It is off until the backend throttles for the
//! first time, and admits every call until then. Meanwhile it measures the rate `m` of responses:
//! with the first response in a new bucket of 0.5 s, `m = 0.8 * current + 0.2 * m`.
//!
//! When the backend throttles, the rate is cut to `0.7 * w`, where `w` is `m` or the present rate,
//! if that is lower. With any other response, `t` seconds after that, it is `0.4 * (t - K)^3 + w`
//! with `K = cbrt(w * 0.3 / 0.4)`: it returns to `w` quickly, stays there for a while, and then
//! looks for more. It is never more than `2 * m` and never less than 0.5 per second. A token bucket
//! with the calls of one second, which starts empty, applies it.
//!
//! The backend throttles when a call fails with [`Failure::overload`](crate::Failure::overload):
//! 429, `RESOURCE_EXHAUSTED`, or a rejection at admission by a Buttress layer or by Envoy.
//!
//! # Cost
//!
//! While it is off, a call takes no lock. Once it is on, each call takes a short one for its token,
//! and each response tries to take it.

mod cubic;

use crate::label::Labels;
use crate::policy::{Idle, Permit, Policy, Refused, Schedule, Scheduled};
use crate::report::{Metric, Report, Sink};
use crate::shard::{Counter, Sharded, Ticket, shards};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock, try_lock};
use crate::timeline::{MAX_CLOCK_SKEW, SET_BACK};
use crate::{Class, Clock, Name, Outcome, Reason, Rejection};
use cubic::{Cubic, Meter};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// The call is over the rate that the backend admits.
pub static THROTTLED: Reason =
    Reason::new("adaptive_rate", "over the rate that the backend admits", Class::RateLimited);

const POLICY: &str = "adaptive rate";

/// A rate that follows what a backend admits. A cheap handle; clones share the rate.
///
/// ```
/// use buttress_core::{Failure, FailureKind, ManualClock, Permit, Policy, adaptive_rate::AdaptiveRate};
///
/// let rate = AdaptiveRate::<ManualClock>::new();
/// assert_eq!(rate.limit(), None, "off until the backend throttles");
/// let throttled = Failure { overload: true, ..Failure::new(FailureKind::Http(429)) };
/// rate.admit("a request").unwrap().settle(&throttled.into());
/// assert_eq!(rate.limit(), Some(0.5));
/// assert!(rate.admit("a request").is_err());
/// ```
#[derive(Clone)]
pub struct AdaptiveRate<C> {
    state: Sharded<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    /// 1 once the backend has throttled.
    on: AtomicU32,
    /// Responses that the meter has not seen.
    responses: Counter,
    /// Those of them that it has seen, and the bucket of the last one.
    seen: AtomicU64,
    bucket: AtomicU64,
    control: Mutex<Control>,
    rejected: Counter,
    waited: Counter,
    throttled: Counter,
    labels: Labels,
    origin: Instant,
}

#[derive(Debug, Default)]
struct Control {
    meter: Meter,
    measured: f64,
    cubic: Option<Cubic>,
    /// Calls that may start now. Negative while calls wait.
    tokens: f64,
    filled_at: f64,
    /// The number of the last token that was taken.
    taken: u64,
    /// The number of the last token before the rate was turned on: earlier ones are not of its
    /// bucket.
    taken_before: u64,
}

/// Seconds by which a time may be behind the last one. A larger difference means that the clock was
/// set back.
const MAX_STEP_BACK: f64 = MAX_CLOCK_SKEW as f64 / 1e9;

impl<C: Clock + Default> AdaptiveRate<C> {
    /// Creates a rate that is off.
    pub fn new() -> Self {
        Self::of(None, C::default())
    }

    /// Creates a rate with a name, which rejections and metrics contain.
    ///
    /// ```
    /// use buttress_core::{ManualClock, adaptive_rate::AdaptiveRate};
    ///
    /// assert_eq!(AdaptiveRate::<ManualClock>::named("dynamo").name(), Some("dynamo"));
    /// ```
    pub fn named(name: impl Into<Name>) -> Self {
        Self::of(Some(name.into()), C::default())
    }
}

impl<C: Clock + Default> Default for AdaptiveRate<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clock> AdaptiveRate<C> {
    /// Creates a rate with a clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, adaptive_rate::AdaptiveRate};
    ///
    /// let clock = ManualClock::new();
    /// let rate = AdaptiveRate::with_clock(clock.clone());
    /// # let _ = rate;
    /// ```
    pub fn with_clock(clock: C) -> Self {
        Self::of(None, clock)
    }

    fn of(name: Option<Name>, clock: C) -> Self {
        let shards = shards();
        let now = clock.now();
        let origin = now.checked_sub(SET_BACK).unwrap_or(now);
        let start = (now - origin).as_secs_f64();
        let state = State {
            on: AtomicU32::new(0),
            responses: Counter::default(),
            seen: AtomicU64::new(0),
            bucket: AtomicU64::new(Meter::bucket(start)),
            control: Mutex::new(Control { meter: Meter::starting_at(start), ..Control::default() }),
            rejected: Counter::default(),
            waited: Counter::default(),
            throttled: Counter::default(),
            labels: Labels::new(POLICY, name.as_ref(), shards),
            origin,
        };
        Self { state: Sharded::new(shards, state), clock }
    }

    /// Returns the name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.state.labels.name().map(|name| &**name)
    }

    /// Returns the present limit in calls per second. `None` while it is off.
    pub fn limit(&self) -> Option<f64> {
        lock(&self.state.control).cubic.map(|cubic| cubic.rate())
    }

    /// Returns the measured rate of responses per second.
    pub fn measured(&self) -> f64 {
        lock(&self.state.control).measured
    }

    /// Returns the number of calls that it rejected.
    pub fn rejected(&self) -> u64 {
        self.state.rejected.sum()
    }

    /// Returns the number of calls that were admitted with a wait.
    pub fn waited(&self) -> u64 {
        self.state.waited.sum()
    }

    /// Returns the number of responses by which the backend throttled.
    pub fn throttled(&self) -> u64 {
        self.state.throttled.sum()
    }

    /// Turns it off, as it was when it was created, until the backend throttles again. Keeps what
    /// is measured.
    ///
    /// ```
    /// use buttress_core::{Failure, FailureKind, ManualClock, Permit, Policy, adaptive_rate::AdaptiveRate};
    ///
    /// let rate = AdaptiveRate::<ManualClock>::new();
    /// let throttled = Failure { overload: true, ..Failure::new(FailureKind::Http(429)) };
    /// rate.admit("a request").unwrap().settle(&throttled.into());
    /// rate.reset();
    /// assert!(rate.admit("a request").is_ok());
    /// ```
    pub fn reset(&self) {
        let mut control = lock(&self.state.control);
        self.state.on.store(0, Ordering::Release);
        control.cubic = None;
    }

    /// Takes a token for a call that starts after a wait of at most `max_wait`.
    #[inline]
    fn take(&self, max_wait: Duration) -> Result<Scheduled<AdaptiveRatePermit<C>>, Rejection> {
        let (wait, token) =
            if self.state.on.load(Ordering::Acquire) == 0 { (0.0, 0) } else { self.take_token(max_wait)? };
        let permit = AdaptiveRatePermit { ticket: self.state.ticket(), clock: self.clock.clone(), token };
        Ok(Scheduled { permit, wait: Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX) })
    }

    #[cold]
    fn take_token(&self, max_wait: Duration) -> Result<(f64, u64), Rejection> {
        let now = self.state.seconds(self.clock.now());
        let taken = lock(&self.state.control).take(now, max_wait.as_secs_f64());
        match taken {
            Ok((wait, token)) => {
                if wait > 0.0 {
                    self.state.waited.add(1);
                }
                Ok((wait, token))
            }
            Err(wait) => {
                self.state.rejected.add(1);
                let after = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX);
                Err(self.state.labels.reject(&THROTTLED).after(Some(after)))
            }
        }
    }
}

impl State {
    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.origin).as_secs_f64()
    }

    /// A response arrived.
    fn learn<C: Clock>(&self, throttled: bool, clock: &C) {
        self.responses.add(1);
        if throttled {
            self.throttled.add(1);
            let mut control = lock(&self.control);
            control.learn(true, self.unseen(), self.seconds(clock.now()));
            self.on.store(1, Ordering::Release);
            return;
        }
        let now = self.seconds(clock.coarse());
        let bucket = Meter::bucket(now);
        let (is_off, last) = (self.on.load(Ordering::Relaxed) == 0, self.bucket.load(Ordering::Relaxed));
        let is_set_back = Meter::is_set_back(last, bucket);
        if is_off && bucket <= last && !is_set_back {
            return;
        }
        // A thread that holds the lock sees this response too, or the next one brings it.
        if let Some(mut control) = try_lock(&self.control) {
            self.bucket.store(if is_set_back { bucket } else { bucket.max(last) }, Ordering::Relaxed);
            control.learn(false, self.unseen(), now);
        }
    }

    /// Returns the responses since the last call. Under the lock.
    fn unseen(&self) -> u64 {
        let all = self.responses.sum();
        all.saturating_sub(self.seen.swap(all, Ordering::Relaxed))
    }
}

impl Control {
    fn learn(&mut self, throttled: bool, responses: u64, now: f64) {
        self.measured = self.meter.record(responses, now);
        let measured = self.measured;
        self.fill(now);
        self.cubic = match (throttled, self.cubic) {
            (true, Some(cubic)) => Some(cubic.throttled(measured, now)),
            (true, None) => {
                (self.tokens, self.filled_at, self.taken_before) = (0.0, now, self.taken);
                Some(Cubic::new(measured, now))
            }
            (false, cubic) => cubic.map(|cubic| cubic.answered(measured, now)),
        };
        if let Some(cubic) = &self.cubic {
            self.tokens = self.tokens.min(cubic.burst());
        }
    }

    /// Adds the tokens of the time since the last call. A time before that adds none and is not
    /// kept, or the time in between would count twice: answers read the coarse clock, which is
    /// behind that of calls, and threads read clocks in any order.
    fn fill(&mut self, now: f64) {
        if (now..now + MAX_STEP_BACK).contains(&self.filled_at) {
            return;
        }
        if let Some(cubic) = &self.cubic {
            let income = (now - self.filled_at).max(0.0) * cubic.rate();
            self.tokens = (self.tokens + income).min(cubic.burst());
        }
        self.filled_at = now;
    }

    /// Takes a token. Returns the wait until the call may start, and the number of the token; or
    /// how long it would have to wait.
    fn take(&mut self, now: f64, max_wait: f64) -> Result<(f64, u64), f64> {
        self.fill(now);
        let Some(cubic) = self.cubic else { return Ok((0.0, 0)) };
        let wait = (1.0 - self.tokens).max(0.0) / cubic.rate();
        if wait > max_wait {
            return Err(wait);
        }
        self.tokens -= 1.0;
        self.taken += 1;
        Ok((wait, self.taken))
    }

    /// Gives a token back, unless a later call waits for its start, which was set with this token.
    fn give_back(&mut self, token: u64) {
        if let Some(cubic) = &self.cubic
            && token > self.taken_before
            && (token == self.taken || self.tokens >= 0.0)
        {
            self.tokens = (self.tokens + 1.0).min(cubic.burst());
        }
    }
}

/// The permit of an [`AdaptiveRate`], which learns from the outcome of the call.
#[derive(Debug)]
pub struct AdaptiveRatePermit<C> {
    ticket: Ticket<State>,
    clock: C,
    /// 0 if none was taken.
    token: u64,
}

impl<C: Clock> Permit for AdaptiveRatePermit<C> {
    #[inline]
    fn settle(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Success => self.ticket.learn(false, &self.clock),
            Outcome::Failure(failure) => self.ticket.learn(failure.overload, &self.clock),
            // There was no response.
            Outcome::Ignored(_) => {}
        }
    }
}

impl<Req: ?Sized, C: Clock> Policy<Req> for AdaptiveRate<C> {
    type Permit = AdaptiveRatePermit<C>;

    #[inline]
    fn admit(&self, _: &Req) -> Result<Self::Permit, Rejection> {
        self.take(Duration::ZERO).map(|scheduled| scheduled.permit)
    }

    fn undo(&self, _: &Req, permit: Self::Permit) {
        // Its own state: a keyed rate may have been replaced since.
        lock(&permit.ticket.control).give_back(permit.token);
    }

    /// Takes no token: no call starts.
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        Some(Ok(AdaptiveRatePermit { ticket: self.state.ticket(), clock: self.clock.clone(), token: 0 }))
    }
}

impl<Req: ?Sized, C: Clock> Schedule<Req> for AdaptiveRate<C> {
    fn schedule(&self, _: &Req, max_wait: Duration) -> Result<Scheduled<Self::Permit>, Rejection> {
        self.take(max_wait)
    }
}

impl<C: Clock> fmt::Debug for AdaptiveRate<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveRate")
            .field("name", &self.name())
            .field("limit", &self.limit())
            .field("measured", &self.measured())
            .finish_non_exhaustive()
    }
}

impl<C: Clock> Idle for AdaptiveRate<C> {
    /// Returns whether it is off.
    fn is_idle(&self) -> bool {
        self.state.on.load(Ordering::Acquire) == 0
    }
}

const LIMIT: Metric =
    Metric::gauge("resilience.adaptive_rate.limit", "calls", "Calls per second that are admitted, once it is on");
const MEASURED: Metric =
    Metric::gauge("resilience.adaptive_rate.measured", "responses", "Responses per second of the backend");
const REJECTED: Metric =
    Metric::counter("resilience.adaptive_rate.rejected", "calls", "Calls that the adaptive rate rejected");
const WAITED: Metric =
    Metric::counter("resilience.adaptive_rate.waited", "calls", "Calls that the adaptive rate admitted for later");
const THROTTLINGS: Metric =
    Metric::counter("resilience.adaptive_rate.throttled", "responses", "Responses by which the backend throttled");

impl<C: Clock> Report for AdaptiveRate<C> {
    fn metrics() -> Vec<Metric> {
        vec![LIMIT, MEASURED, REJECTED, WAITED, THROTTLINGS]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        if let Some(limit) = self.limit() {
            sink.gauge(&LIMIT, limit);
        }
        sink.gauge(&MEASURED, self.measured());
        sink.counter(&REJECTED, self.rejected());
        sink.counter(&WAITED, self.waited());
        sink.counter(&THROTTLINGS, self.throttled());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
