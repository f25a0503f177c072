//! The quota that buckets share, and how a reload reaches them.
//!
//! The terms are in two slots, of which the version says which is valid. A reload writes the other
//! slot and then the version, so that a call never waits for a reload and never sees the interval
//! of one quota with the capacity of another. Each bucket remembers the version of its word; the
//! first call that finds another version converts the word.

use super::{
    LiveQuota, Quota,
    quota::{LONGEST, Terms},
};
use crate::Clock;
use crate::label::Labels;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, fence, lock};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Reloads that a bucket can catch up with exactly. A bucket that has missed more counts as empty.
const MAX_STEPS: usize = 16;

/// The number of the first moment: a year before the quota was created, so that a clock that is set
/// back does not count below zero.
const START: u64 = 365 * 86_400 * NANOS;
/// The last moment, 291 years after the quota was created. Time stands still there.
const LATEST: u64 = 1 << 63;

const NANOS: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Shared {
    version: AtomicU32,
    slots: [Slot; 2],
    /// The longest time that calls may have to wait, in nanoseconds: as far as buckets are ahead of
    /// the time without a clock that was set back.
    ahead: AtomicU64,
    ledger: Mutex<Ledger>,
    quota: LiveQuota,
    pub(super) labels: Labels,
    /// The first moment, on the clock, and where the clock counts nanoseconds.
    origin: Instant,
    precise_origin: Option<u64>,
}

#[derive(Debug)]
struct Slot {
    interval: AtomicU64,
    /// 0 while the limit is 0, so that one comparison finds out about that too.
    capacity: AtomicU64,
}

#[derive(Debug)]
struct Ledger {
    terms: Terms,
    /// The last steps, the latest at the back.
    steps: VecDeque<Step>,
}

/// A reload: from which terms to which, and when.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: Terms,
    to: Terms,
    at: u64,
}

/// The terms of one version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub(super) number: u32,
    pub(super) interval: u64,
    pub(super) capacity: u64,
}

impl Shared {
    pub(super) fn new(quota: Quota, labels: impl FnOnce(LiveQuota) -> Labels, clock: &impl Clock) -> Self {
        let terms = quota.terms();
        let quota = LiveQuota::new(quota);
        Self {
            version: AtomicU32::new(0),
            slots: [Slot::new(terms), Slot::new(terms)],
            ahead: AtomicU64::new(0),
            ledger: Mutex::new(Ledger { terms, steps: VecDeque::new() }),
            labels: labels(quota.clone()),
            quota,
            origin: clock.now(),
            precise_origin: clock.precise_nanos(),
        }
    }

    /// Returns the present moment.
    #[inline]
    pub(super) fn now(&self, clock: &impl Clock) -> u64 {
        match (self.precise_origin, clock.precise_nanos()) {
            (Some(origin), Some(now)) if now >= origin => START + (now - origin).min(LATEST - START),
            (Some(origin), Some(now)) => START.saturating_sub(origin - now),
            _ => self.nanos(clock.now()),
        }
    }

    /// Returns a moment in nanoseconds.
    #[inline]
    fn nanos(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.origin) {
            Some(since) if since.as_secs() < (LATEST - START) / NANOS => {
                START + since.as_secs() * NANOS + u64::from(since.subsec_nanos())
            }
            Some(_) => LATEST,
            None => START.saturating_sub(nanos(self.origin - now)),
        }
    }

    /// Reads the version, and `word`, which belongs to it if its bucket does.
    #[inline]
    pub(super) fn read<T>(&self, word: impl Fn() -> T) -> (Version, T) {
        loop {
            let number = self.version.load(Ordering::Acquire);
            let slot = &self.slots[(number & 1) as usize];
            let (interval, capacity) = (slot.interval.load(Ordering::Relaxed), slot.capacity.load(Ordering::Relaxed));
            let word = word();
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == number {
                return (Version { number, interval, capacity }, word);
            }
        }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota.get()
    }

    /// Replaces the quota by `change` of it. An equal quota changes nothing.
    pub(super) fn reload(&self, now: u64, change: impl FnOnce(Quota) -> Quota) {
        let mut ledger = lock(&self.ledger);
        let old = self.quota.get();
        let quota = change(old);
        if quota == old {
            return;
        }
        self.quota.set(quota);
        let from = ledger.terms;
        // While the limit is 0 the bucket fills as before.
        let to = if quota.limit == 0 { Terms { closed: true, ..from } } else { quota.terms() };
        ledger.terms = to;
        if ledger.steps.len() == MAX_STEPS {
            ledger.steps.pop_front();
        }
        ledger.steps.push_back(Step { from, to, at: now });
        let ahead = self.ahead.load(Ordering::Relaxed);
        let scaled = u128::from(ahead) * u128::from(to.interval) / u128::from(from.interval);
        self.ahead.store(u64::try_from(scaled).unwrap_or(LONGEST).min(LONGEST), Ordering::Relaxed);
        let next = self.version.load(Ordering::Relaxed).wrapping_add(1);
        // A call that sees the new values in this slot must see that its version is over.
        fence(Ordering::Release);
        self.slots[(next & 1) as usize].set(to);
        self.version.store(next, Ordering::Release);
    }

    /// Brings a bucket from its `epoch` to the present version: `change` gets a function that
    /// converts its word.
    pub(super) fn catch_up(&self, epoch: &AtomicU32, now: u64, change: impl FnOnce(&dyn Fn(u64) -> u64)) {
        let ledger = lock(&self.ledger);
        let number = self.version.load(Ordering::Acquire);
        let missed = number.wrapping_sub(epoch.load(Ordering::Acquire)) as usize;
        if missed == 0 {
            return;
        }
        match ledger.steps.len().checked_sub(missed) {
            Some(first) => {
                let rescales = ledger.steps[first].from.interval != ledger.terms.interval;
                change(&|tat| {
                    let converted = ledger.steps.range(first..).fold(tat, |tat, step| step.convert(tat));
                    // Must change the word: a call that has read the old interval must not find it.
                    // A nanosecond less, so that a call is not late for the time it was told.
                    if converted == tat && rescales { converted.saturating_sub(1) } else { converted }
                });
            }
            None => change(&|_| now + ledger.terms.capacity),
        }
        epoch.store(number, Ordering::Release);
    }

    pub(super) fn ahead(&self) -> u64 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// Calls will wait for up to `max_wait`.
    pub(super) fn expect_waits(&self, max_wait: u64) {
        if self.ahead() < max_wait {
            self.ahead.fetch_max(max_wait, Ordering::Relaxed);
        }
    }
}

impl Slot {
    fn new(terms: Terms) -> Self {
        let slot = Self { interval: AtomicU64::new(0), capacity: AtomicU64::new(0) };
        slot.set(terms);
        slot
    }

    fn set(&self, terms: Terms) {
        self.interval.store(terms.interval, Ordering::Relaxed);
        self.capacity.store(if terms.closed { 0 } else { terms.capacity }, Ordering::Relaxed);
    }
}

impl Step {
    /// Converts the word of a bucket: the calls that were available at the time of the reload stay
    /// available, as far as the new burst allows.
    fn convert(&self, tat: u64) -> u64 {
        let debt = i128::from(tat.max(self.at) - self.at);
        let available = i128::from(self.from.capacity) - debt;
        // Rounded down, so that no part of a call is gained.
        let available = (available * i128::from(self.to.interval)).div_euclid(i128::from(self.from.interval));
        let debt = i128::from(self.to.capacity) - available.min(self.to.capacity.into());
        self.at.saturating_add(u64::try_from(debt).unwrap_or(LONGEST).min(2 * LONGEST))
    }
}

/// Returns a time in nanoseconds, at most 36 years.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(LONGEST).min(LONGEST)
}
