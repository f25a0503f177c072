use crate::InvalidConfig;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A rate and a burst: `limit` calls in each `period`, of which up to `burst` may come at once.
///
/// ```
/// use buttress_core::rate_limit::Quota;
/// use std::time::Duration;
///
/// let quota = Quota { burst: 20, ..Quota::per_second(100) };
/// assert_eq!((quota.limit, quota.period, quota.burst), (100, Duration::from_secs(1), 20));
/// quota.check()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Quota {
    /// Calls in each period. 0 rejects every call.
    pub limit: u32,
    /// The period. Calls are admitted evenly over it, apart from the burst.
    pub period: Duration,
    /// Calls that may come at once, after a time without calls. At least 1.
    pub burst: u32,
}

impl Quota {
    /// Creates a quota whose burst is its limit.
    ///
    /// ```
    /// use buttress_core::rate_limit::Quota;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Quota::new(5, Duration::from_secs(60)).burst, 5);
    /// ```
    pub const fn new(limit: u32, period: Duration) -> Self {
        Self { limit, period, burst: limit }
    }

    /// Creates a quota for a period of a second.
    ///
    /// ```
    /// use buttress_core::rate_limit::Quota;
    ///
    /// assert_eq!(Quota::per_second(100).burst, 100);
    /// ```
    pub const fn per_second(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(1))
    }

    /// Creates a quota for a period of a minute.
    ///
    /// ```
    /// use buttress_core::rate_limit::Quota;
    ///
    /// assert_eq!(Quota::per_minute(100).period.as_secs(), 60);
    /// ```
    pub const fn per_minute(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(60))
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Names the field and the rule that it breaks: a period of zero, more than one call in a
    /// nanosecond, a burst of 0 with a limit above 0, or a burst that takes more than 36 years to
    /// refill.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::rate_limit::Quota;
    ///
    /// let error = Quota { burst: 0, ..Quota::per_second(100) }.check().unwrap_err();
    /// assert_eq!(error.field(), "burst");
    /// ```
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let period = self.period.as_nanos();
        if period == 0 {
            return Err(InvalidConfig::new("period", "must be longer than zero"));
        }
        if period < u128::from(self.limit) {
            return Err(InvalidConfig::new("limit", "must be at most one call in a nanosecond of the period"));
        }
        if self.burst == 0 && self.limit > 0 {
            return Err(InvalidConfig::new("burst", "must be at least 1, or no call is admitted"));
        }
        let refill = period.div_ceil(self.limit.max(1).into()) * u128::from(self.burst);
        if refill > LONGEST.into() {
            return Err(InvalidConfig::new("period", "must be so short that a burst refills within 36 years"));
        }
        Ok(())
    }

    /// Returns the values that the algorithm uses. Those that [`check`](Self::check) refuses are
    /// replaced by the nearest that it accepts.
    pub(super) fn terms(&self) -> Terms {
        let burst = u64::from(self.burst.max(1));
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX).clamp(1, LONGEST);
        // Rounded up, so that the rate is never above the limit.
        let interval = period.div_ceil(self.limit.max(1).into()).min(LONGEST / burst);
        Terms { interval, capacity: interval * burst, closed: self.limit == 0 }
    }
}

/// The longest time to refill a burst: 2^60 ns, 36 years. Sums of a few such times and of the
/// present time do not overflow 64 bits.
pub(super) const LONGEST: u64 = 1 << 60;

/// A quota in the terms of the algorithm, in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Terms {
    /// The time that refills one call.
    pub(super) interval: u64,
    /// The time that refills the burst.
    pub(super) capacity: u64,
    /// The limit is 0.
    pub(super) closed: bool,
}

/// The present quota of a policy, which a [`Label`](crate::Label) can carry, so that protocols can
/// tell callers. Clones share it.
///
/// ```
/// use buttress_core::{Class, Label, Reason, Rejection, rate_limit::{LiveQuota, Quota}};
///
/// static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);
///
/// let quota = LiveQuota::new(Quota::per_second(100));
/// let rejection = Rejection::labelled(Label::new("token bucket").with_quota(quota.clone()), &OVER_RATE);
/// quota.set(Quota::per_second(50));
/// assert_eq!(rejection.quota(), Some(Quota::per_second(50)));
/// ```
#[derive(Clone, Debug)]
pub struct LiveQuota(Arc<Mutex<Quota>>);

impl LiveQuota {
    /// Creates a quota that can change.
    pub fn new(quota: Quota) -> Self {
        Self(Arc::new(Mutex::new(quota)))
    }

    /// Returns the present quota.
    pub fn get(&self) -> Quota {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the quota.
    pub fn set(&self, quota: Quota) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = quota;
    }
}

impl PartialEq for LiveQuota {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.get() == other.get()
    }
}

impl Eq for LiveQuota {}
