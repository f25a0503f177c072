//! A limit on calls per time, with a burst.
//!
//! # Algorithm
//!
//! The generic cell rate algorithm (GCRA), which admits what a token bucket admits. Its state is
//! one atomic word: the *theoretical arrival time* (TAT) in nanoseconds, at which the bucket is
//! full again. With the interval `T = period / limit`, a call of cost `n` at the time `now` is
//! admitted if `max(TAT, now) + n·T - now <= burst·T`, and sets the TAT to `max(TAT, now) + n·T`. A
//! rejected call changes nothing; the amount by which the sum is too large is the time after which
//! to try again.
//!
//! Over *any* interval of `t` nanoseconds, the calls that are admitted cost at most
//! `burst + t / T`. `T` is rounded up to a nanosecond, so the rate is never above the limit.
//!
//! # Reload
//!
//! A reload acts at the next decision of each bucket, and no call waits for it. The calls that were
//! available at that time stay available, as far as the new burst allows: a higher limit gives no
//! fresh burst, and a lower one takes none away. From then on the bucket refills with the
//! new rate. While the limit is 0, every call is rejected and the bucket refills as before.
//!
//! # Clocks
//!
//! A clock that is set back by more than a second finds a bucket that is too far ahead. The bucket
//! then counts as empty, and refills from the new time on. This is found out by the first call that
//! would be rejected, or that asks whether it would be. Where calls wait, a step back shorter than
//! the longest wait is waited for. 291 years after a limit was created its time stands still, and
//! it rejects calls once its burst is used up.

mod bucket;
mod builder;
mod cost;
mod quota;
mod shared;
mod usage;

pub use bucket::RatePermit;
pub use builder::Builder;
pub use cost::Costed;
pub use quota::{LiveQuota, Quota};
pub use usage::{Advertised, AdvertisedPermit, Metered, Usage};

use crate::label::Labels;
use crate::policy::{Idle, Policy, Refused, Schedule, Scheduled};
use crate::report::{Metric, Report, Sink};
use crate::shard::{Counter, shards};
use crate::{Class, Clock, InvalidConfig, Name, Reason, Rejection};
use bucket::{Bucket, Refusal};
use shared::{Shared, nanos};
use std::{fmt, sync::Arc, time::Duration};

/// The call is over the rate.
pub static RATE_LIMITED: Reason = Reason::new("rate_limited", "over the rate", Class::RateLimited);
/// The call costs more than the burst, so that it is never admitted.
///
/// Its class is [`Refused`](Class::Refused), 403 and `PERMISSION_DENIED`, because an answer of 429
/// invites the caller to repeat it.
pub static TOO_LARGE: Reason = Reason::new("rate_limit_too_large", "costs more than the burst", Class::Refused);

const POLICY: &str = "rate limit";

/// Limits calls per time. A cheap handle; clones share the bucket.
///
/// ```
/// use buttress_core::{ManualClock, Policy, rate_limit::{Quota, RateLimit}};
/// use std::time::Duration;
///
/// let limit = RateLimit::<ManualClock>::per_second(10).burst(2);
/// assert!(limit.admit("a request").is_ok() && limit.admit("a request").is_ok());
/// let rejection = limit.admit("a request").unwrap_err();
/// assert_eq!(rejection.to_string(), "rate limit: over the rate; try again in 100.0ms");
/// ```
#[derive(Clone)]
pub struct RateLimit<C> {
    state: Arc<State>,
    clock: C,
}

struct State {
    bucket: Bucket,
    shared: Arc<Shared>,
    rejected: Counter,
    waited: Counter,
}

impl<C: Clock + Default> RateLimit<C> {
    /// Creates a limit of `limit` calls in each `period`, with a burst of as many.
    ///
    /// A limit of 0 rejects every call until [`set_limit`](Self::set_limit) raises it. More than
    /// one call in a nanosecond counts as one, and so does a period of zero.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::new(600, Duration::from_secs(60));
    /// assert_eq!(limit.available(), 600);
    /// ```
    pub fn new(limit: u32, period: Duration) -> Self {
        Self::of(Quota::new(limit, period), None, C::default())
    }

    /// Creates a limit of `limit` calls per second, with a burst of as many.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// assert_eq!(RateLimit::<ManualClock>::per_second(100).quota().limit, 100);
    /// ```
    pub fn per_second(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(1))
    }

    /// Creates a limit with a name, which its rejections, its metrics and the header `RateLimit`
    /// contain.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::named("search", 0, Duration::from_secs(1));
    /// let rejection = limit.admit("a request").unwrap_err();
    /// assert_eq!(rejection.to_string(), "rate limit `search`: over the rate");
    /// ```
    pub fn named(name: impl Into<Name>, limit: u32, period: Duration) -> Self {
        Self::of(Quota::new(limit, period), Some(name.into()), C::default())
    }

    /// Starts a builder for `quota`.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::{Quota, RateLimit}};
    ///
    /// let limit = RateLimit::<ManualClock>::builder(Quota::per_minute(100)).name("search").burst(10).build()?;
    /// assert_eq!(limit.available(), 10);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder(quota: Quota) -> Builder<C> {
        Builder::new(quota)
    }
}

impl<C: Clock> RateLimit<C> {
    fn of(quota: Quota, name: Option<Name>, clock: C) -> Self {
        let labels = |quota| Labels::new(POLICY, name.as_ref(), shards()).with_quota(quota);
        let shared = Shared::new(quota, labels, &clock);
        Self { state: State::new(Arc::new(shared)), clock }
    }

    /// Returns a limit with another burst and a full bucket of its own. Settings of `self` stay.
    ///
    /// Use it while a limit is made; [`set_burst`](Self::set_burst) changes one in use. 0 counts as
    /// 1.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// assert_eq!(RateLimit::<ManualClock>::per_second(100).burst(20).available(), 20);
    /// ```
    pub fn burst(self, calls: u32) -> Self {
        let quota = Quota { burst: calls.max(1), ..self.quota() };
        Self::of(quota, self.state.shared.labels.name().cloned(), self.clock)
    }

    /// Returns a limit with a full bucket of its own and the same quota: a reload of one of them
    /// acts on all.
    ///
    /// For the keys of a keyed policy: the quota and the name are kept once.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// let per_customer = RateLimit::<ManualClock>::per_second(10);
    /// let (alice, bob) = (per_customer.new_bucket(), per_customer.new_bucket());
    /// alice.try_take(10).unwrap();
    /// assert_eq!((alice.available(), bob.available()), (0, 10));
    /// per_customer.set_burst(5);
    /// assert_eq!((alice.available(), bob.available()), (0, 5));
    /// ```
    pub fn new_bucket(&self) -> Self {
        Self { state: State::new(self.state.shared.clone()), clock: self.clock.clone() }
    }

    /// Adds a cost to each call, which `cost` reads from its request. A call without cost is always
    /// admitted, and one that costs more than the burst never.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, rate_limit::{Costed, RateLimit, TOO_LARGE}};
    ///
    /// let limit: Costed<ManualClock, fn(&str) -> u32> =
    ///     RateLimit::per_second(10).costed(|request: &str| request.len() as u32);
    /// assert!(limit.admit("eight...").is_ok() && limit.admit("").is_ok());
    /// assert!(limit.admit("four").is_err());
    /// assert_eq!(limit.admit("more than the burst").unwrap_err().reason(), &TOO_LARGE);
    /// ```
    pub fn costed<F>(self, cost: F) -> Costed<C, F> {
        Costed::new(self, cost)
    }

    /// Returns the name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.state.shared.labels.name().map(|name| &**name)
    }

    /// Returns the present quota.
    pub fn quota(&self) -> Quota {
        self.state.shared.quota()
    }

    /// Takes `cost` calls at once. A cost of 0 takes nothing.
    ///
    /// # Errors
    /// [`RATE_LIMITED`] with the time after which to try again, or [`TOO_LARGE`] if `cost` is more
    /// than the burst.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.try_take(8).unwrap();
    /// let rejection = limit.try_take(4).unwrap_err();
    /// assert_eq!(rejection.retry_after(), Some(Duration::from_millis(200)));
    /// ```
    #[inline]
    pub fn try_take(&self, cost: u32) -> Result<RatePermit, Rejection> {
        if cost == 0 {
            return Ok(RatePermit::FREE);
        }
        let state = &*self.state;
        match state.bucket.take(&state.shared, cost, self.now(), 0) {
            Ok((permit, _)) => Ok(permit),
            Err(refusal) => Err(state.reject(refusal)),
        }
    }

    /// Takes `cost` calls for a call that starts after a wait of at most `max_wait`.
    ///
    /// Give the permit to [`give_back`](Self::give_back) if the call does not start.
    ///
    /// # Errors
    /// Like [`try_take`](Self::try_take). The time after which to try again is the one after which
    /// the call would be admitted without a wait.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.try_take(10).unwrap();
    /// assert_eq!(limit.reserve(2, Duration::MAX).unwrap().wait, Duration::from_millis(200));
    /// assert!(limit.reserve(1, Duration::from_millis(200)).is_err());
    /// ```
    pub fn reserve(&self, cost: u32, max_wait: Duration) -> Result<Scheduled<RatePermit>, Rejection> {
        if cost == 0 {
            return Ok(Scheduled { permit: RatePermit::FREE, wait: Duration::ZERO });
        }
        let (state, max_wait) = (&*self.state, nanos(max_wait));
        state.shared.expect_waits(max_wait);
        match state.bucket.take(&state.shared, cost, self.now(), max_wait) {
            Ok((permit, wait)) => {
                if wait > 0 {
                    state.waited.add(1);
                }
                Ok(Scheduled { permit, wait: Duration::from_nanos(wait) })
            }
            Err(refusal) => Err(state.reject(refusal)),
        }
    }

    /// Gives back what a call took that does not start. Returns whether anything was given back.
    ///
    /// What time has refilled since is not given back, because it would count twice. A reservation
    /// is kept while a later one waits, and after a reload: what is lost is at most the cost of the
    /// calls that did not start.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// let permit = limit.try_take(10).unwrap();
    /// assert!(limit.give_back(permit));
    /// assert_eq!(limit.available(), 10);
    /// ```
    pub fn give_back(&self, permit: RatePermit) -> bool {
        self.state.bucket.refund(&self.state.shared, &permit, self.now())
    }

    /// Returns how many calls of cost 1 would be admitted now. Changes nothing.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.try_take(4).unwrap();
    /// assert_eq!(limit.available(), 6);
    /// ```
    pub fn available(&self) -> u32 {
        let (version, debt) = self.state.bucket.debt(&self.state.shared, self.now());
        (version.capacity.saturating_sub(debt) / version.interval) as u32
    }

    /// Returns how long a call of cost `cost` would have to wait. Changes nothing. `None` if it
    /// would never be admitted: the limit is 0, or the cost is more than the burst.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.try_take(4).unwrap();
    /// assert_eq!(limit.retry_after(6), Some(Duration::ZERO));
    /// assert_eq!(limit.retry_after(7), Some(Duration::from_millis(100)));
    /// assert_eq!(limit.retry_after(11), None);
    /// ```
    pub fn retry_after(&self, cost: u32) -> Option<Duration> {
        if cost == 0 {
            return Some(Duration::ZERO);
        }
        let (version, debt) = self.state.bucket.debt(&self.state.shared, self.now());
        let charge = version.interval.saturating_mul(cost.into());
        (charge <= version.capacity).then(|| Duration::from_nanos((debt + charge).saturating_sub(version.capacity)))
    }

    /// Returns the number of calls rejected since the limit was created.
    pub fn rejected(&self) -> u64 {
        self.state.rejected.sum()
    }

    /// Returns the number of calls that were admitted with a wait.
    pub fn waited(&self) -> u64 {
        self.state.waited.sum()
    }

    /// Changes the limit, for the same period and the same burst; a limit that was made with 0 gets
    /// a burst of as many calls. See [`reload`](Self::reload).
    ///
    /// A burst that was not set is the first limit, and stays so: 1,000 calls may still come at
    /// once after `per_second(1_000)` and `set_limit(5)`. Change both with
    /// `reload(Quota::per_second(5))`.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    /// use std::time::Duration;
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.try_take(10).unwrap();
    /// limit.set_limit(1000);
    /// assert_eq!(limit.available(), 0, "no fresh burst");
    /// assert_eq!(limit.retry_after(1), Some(Duration::from_millis(1)));
    /// ```
    pub fn set_limit(&self, limit: u32) {
        self.change(|quota| Quota { limit, burst: if quota.burst == 0 { limit } else { quota.burst }, ..quota });
    }

    /// Changes the burst. 0 counts as 1. See [`reload`](Self::reload).
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.set_burst(20);
    /// assert_eq!((limit.available(), limit.quota().burst), (10, 20), "it fills from now on");
    /// ```
    pub fn set_burst(&self, calls: u32) {
        self.change(|quota| Quota { burst: calls.max(1), ..quota });
    }

    /// Replaces the quota, for all [buckets](Self::new_bucket) that share it.
    ///
    /// It acts at the next decision of each bucket. The calls that are available stay available, as
    /// far as the new burst allows, and the new rate counts from now on. An equal quota changes
    /// nothing. Calls that wait keep the times that they were given.
    ///
    /// # Errors
    /// If a value is out of its range; the old quota stays. See [`Quota::check`].
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::{Quota, RateLimit}};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10);
    /// limit.reload(Quota { burst: 5, ..Quota::per_minute(100) })?;
    /// assert_eq!(limit.available(), 5);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn reload(&self, quota: Quota) -> Result<(), InvalidConfig> {
        quota.check()?;
        self.change(|_| quota);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(Quota) -> Quota) {
        self.state.shared.reload(self.now(), change);
    }

    #[inline]
    fn now(&self) -> u64 {
        self.state.shared.now(&self.clock)
    }
}

impl State {
    fn new(shared: Arc<Shared>) -> Arc<Self> {
        let bucket = Bucket::new(&shared);
        Arc::new(Self { bucket, shared, rejected: Counter::default(), waited: Counter::default() })
    }

    #[cold]
    #[inline(never)]
    fn reject(&self, refusal: Refusal) -> Rejection {
        self.rejected.add(1);
        let labels = &self.shared.labels;
        match refusal {
            Refusal::For(wait) => labels.reject(&RATE_LIMITED).after(Some(Duration::from_nanos(wait))),
            Refusal::Closed => labels.reject(&RATE_LIMITED),
            Refusal::TooLarge => labels.reject(&TOO_LARGE),
        }
    }
}

impl<Req: ?Sized, C: Clock> Policy<Req> for RateLimit<C> {
    type Permit = RatePermit;

    #[inline]
    fn admit(&self, _: &Req) -> Result<RatePermit, Rejection> {
        self.try_take(1)
    }

    /// Looks at the clock only if the last call left nothing for another one.
    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        if !self.state.bucket.is_refusing() {
            return Ok(());
        }
        match self.retry_after(1) {
            Some(Duration::ZERO) => Ok(()),
            retry_after => Err(Refused { retry_after }),
        }
    }

    fn refuse(&self, _: &Req, refused: Refused) -> Rejection {
        self.state.rejected.add(1);
        self.state.shared.labels.reject(&RATE_LIMITED).after(refused.retry_after)
    }

    fn undo(&self, _: &Req, permit: RatePermit) {
        self.give_back(permit);
    }

    /// Takes nothing: no call starts.
    fn unready(&self) -> Option<Result<RatePermit, Refused>> {
        Some(Ok(RatePermit::FREE))
    }
}

impl<Req: ?Sized, C: Clock> Schedule<Req> for RateLimit<C> {
    fn schedule(&self, _: &Req, max_wait: Duration) -> Result<Scheduled<RatePermit>, Rejection> {
        self.reserve(1, max_wait)
    }
}

impl<Req: ?Sized, C: Clock> Metered<Req> for RateLimit<C> {
    fn usage(&self, _: &Req) -> Option<Usage> {
        let (version, debt) = self.state.bucket.debt(&self.state.shared, self.now());
        let available = version.capacity.saturating_sub(debt);
        Some(Usage {
            name: self.state.shared.labels.name().cloned(),
            quota: self.quota(),
            remaining: (available / version.interval) as u32,
            next: (available < version.capacity).then(|| {
                // While calls wait, the debt is more than the capacity.
                let late = debt.saturating_sub(version.capacity);
                Duration::from_nanos(late + version.interval - available % version.interval)
            }),
        })
    }
}

impl<C> fmt::Debug for RateLimit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.state.shared;
        f.debug_struct("RateLimit")
            .field("name", &shared.labels.name())
            .field("quota", &shared.quota())
            .finish_non_exhaustive()
    }
}

impl<C: Clock> Idle for RateLimit<C> {
    /// Returns whether the bucket is full.
    fn is_idle(&self) -> bool {
        self.state.bucket.debt(&self.state.shared, self.now()).1 == 0
    }
}

const LIMIT: Metric = Metric::gauge("resilience.rate_limit.limit", "calls", "Calls per second that are admitted");
const AVAILABLE: Metric = Metric::gauge("resilience.rate_limit.available", "calls", "Calls that would be admitted now");
const REJECTED: Metric =
    Metric::counter("resilience.rate_limit.rejected", "calls", "Calls that the rate limit rejected");
const WAITED: Metric =
    Metric::counter("resilience.rate_limit.waited", "calls", "Calls that the rate limit admitted for later");

impl<C: Clock> Report for RateLimit<C> {
    fn metrics() -> Vec<Metric> {
        vec![LIMIT, AVAILABLE, REJECTED, WAITED]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        let quota = self.quota();
        sink.gauge(&LIMIT, f64::from(quota.limit) / quota.period.as_secs_f64().max(f64::MIN_POSITIVE));
        sink.gauge(&AVAILABLE, self.available().into());
        sink.counter(&REJECTED, self.rejected());
        sink.counter(&WAITED, self.waited());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
