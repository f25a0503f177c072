use super::shared::{Shared, Version};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{Outcome, Permit};
use std::num::NonZeroU64;

/// The longest step back that is not a clock that was set back: threads may read the clock in one
/// order and change the word in the other. In nanoseconds.
const MAX_STEP_BACK: u64 = 1_000_000_000;

/// The state of one limit: the *theoretical arrival time* of GCRA in nanoseconds, at which the
/// bucket is full again. Before that, it lacks the calls that this time refills.
#[derive(Debug)]
pub(super) struct Bucket {
    tat: AtomicU64,
    /// The version of the quota to which the word belongs.
    epoch: AtomicU32,
    /// 1 if the last call left nothing for another one, or was rejected.
    refusing: AtomicU32,
}

/// What an admitted call took from a [`RateLimit`](super::RateLimit).
///
/// Nothing is given back when it is dropped: a call that has started has used its share.
/// [`Policy::undo`](crate::Policy::undo) takes it back for a call that has not.
#[derive(Debug)]
pub struct RatePermit {
    /// The word of the bucket after the call.
    after: NonZeroU64,
    cost: u32,
    epoch: u32,
}

impl Permit for RatePermit {
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome) {}
}

impl RatePermit {
    /// The permit of a call that costs nothing.
    pub(super) const FREE: Self = Self { after: NonZeroU64::MIN, cost: 0, epoch: 0 };
}

/// Why a call was not admitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// It would be admitted after this time, in nanoseconds.
    For(u64),
    /// It costs more than the burst.
    TooLarge,
    /// The limit is 0.
    Closed,
}

impl Bucket {
    pub(super) fn new(shared: &Shared) -> Self {
        let (version, ()) = shared.read(|| ());
        let is_closed = version.capacity == 0;
        Self {
            tat: AtomicU64::new(0),
            epoch: AtomicU32::new(version.number),
            refusing: AtomicU32::new(is_closed.into()),
        }
    }

    /// Takes `cost` at `now` for a call that starts after the returned wait, which is at most
    /// `max_wait`. All times are in nanoseconds.
    #[inline]
    pub(super) fn take(
        &self,
        shared: &Shared,
        cost: u32,
        now: u64,
        max_wait: u64,
    ) -> Result<(RatePermit, u64), Refusal> {
        loop {
            let (version, (epoch, tat)) = self.read(shared);
            if epoch != version.number {
                self.convert(shared, now);
                continue;
            }
            let charge = version.interval.saturating_mul(cost.into());
            if charge > version.capacity {
                if version.capacity == 0 {
                    self.set_refusing(true);
                    return Err(Refusal::Closed);
                }
                return Err(Refusal::TooLarge);
            }
            let next = tat.max(now) + charge;
            let wait = next.saturating_sub(now + version.capacity);
            if wait > max_wait {
                if self.was_set_back(shared, version, tat, now) {
                    continue;
                }
                return Err(Refusal::For(wait));
            }
            if self.tat.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.set_refusing(next + version.interval > now + version.capacity);
                let after = NonZeroU64::new(next).unwrap_or(NonZeroU64::MIN);
                return Ok((RatePermit { after, cost, epoch }, wait));
            }
        }
    }

    /// Gives back what a call took that has not started. Returns whether anything was given back.
    ///
    /// What time has refilled since is not given back, or it would count twice. Nothing is given
    /// back while a later call waits for its start, which was set with this charge: the next call
    /// would start at the same time.
    pub(super) fn refund(&self, shared: &Shared, permit: &RatePermit, now: u64) -> bool {
        loop {
            let (version, (epoch, tat)) = self.read(shared);
            if epoch != version.number || permit.epoch != epoch {
                return false;
            }
            let charge = version.interval.saturating_mul(permit.cost.into());
            let after = permit.after.get();
            let left = after.saturating_sub(now).min(charge);
            let others_wait = tat != after && tat > now + version.capacity;
            if left == 0 || others_wait || tat < after {
                return false;
            }
            if self.tat.compare_exchange_weak(tat, tat - left, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// Returns how long the calls in the bucket take to refill, in nanoseconds.
    pub(super) fn debt(&self, shared: &Shared, now: u64) -> (Version, u64) {
        loop {
            let (version, (epoch, tat)) = self.read(shared);
            if epoch == version.number {
                // A service that asks before it calls makes no call that would find this out.
                let is_ahead = version.capacity > 0 && tat > now + version.capacity;
                if is_ahead && self.was_set_back(shared, version, tat, now) {
                    continue;
                }
                return (version, tat.saturating_sub(now));
            }
            self.convert(shared, now);
        }
    }

    /// Returns whether the last call left nothing for another one, or was rejected. If not, a look
    /// at the clock is not worth it.
    #[inline]
    pub(super) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn set_refusing(&self, refusing: bool) {
        if self.is_refusing() != refusing {
            self.refusing.store(refusing.into(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn read(&self, shared: &Shared) -> (Version, (u32, u64)) {
        shared.read(|| (self.epoch.load(Ordering::Acquire), self.tat.load(Ordering::Acquire)))
    }

    /// Looks for a clock that was set back, and empties the bucket then, so that it refills from
    /// the new time on.
    #[cold]
    fn was_set_back(&self, shared: &Shared, version: Version, tat: u64, now: u64) -> bool {
        if tat <= (now + version.capacity).saturating_add(shared.ahead() + MAX_STEP_BACK) {
            self.set_refusing(true);
            return false;
        }
        let empty = now + version.capacity;
        let _ = self.tat.compare_exchange(tat, empty, Ordering::AcqRel, Ordering::Relaxed);
        true
    }

    /// Converts the word to the present version of the quota.
    #[cold]
    fn convert(&self, shared: &Shared, now: u64) {
        shared.catch_up(&self.epoch, now, |convert| {
            loop {
                let tat = self.tat.load(Ordering::Acquire);
                if self.tat.compare_exchange(tat, convert(tat), Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    break;
                }
            }
        });
    }
}
