use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, fence_after_rmw};

/// The free places that shards keep. See the [module](super).
#[derive(Debug)]
pub(super) struct Spares {
    /// Maximum number of places that one shard keeps.
    max_per_shard: AtomicU32,
    /// The number of shards that keep places, a power of two, less one.
    mask: AtomicU32,
    /// One bit for each shard that may keep places. A bit stays set while its shard takes and keeps
    /// places, so that threads only read it. A search that finds the shard empty clears it.
    nonempty: AtomicU64,
    /// Empty if there is a single shard.
    shards: Box<[Line]>,
}

/// The result of a search of all shards.
#[derive(Debug)]
pub(super) struct Found {
    /// Whether a place was found.
    pub(super) found: bool,
    /// Whether the bit of its shard was cleared for a moment, in which other searches skipped the
    /// shard. It may keep more places.
    pub(super) hidden: bool,
}

/// On cache lines of its own: the threads of a shard write to it with every call.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU32);

impl Spares {
    pub(super) fn new(shards: usize, limit: u32) -> Self {
        let shards = if shards > 1 { shards.next_power_of_two() } else { 0 };
        let spares = Self {
            max_per_shard: AtomicU32::new(0),
            mask: AtomicU32::new(0),
            nonempty: AtomicU64::new(0),
            shards: (0..shards).map(|_| Line::default()).collect(),
        };
        spares.resize(limit);
        spares
    }

    /// Creates spares of the same size. From now on, they keep places instead of these.
    pub(super) fn hand_over(&self) -> Self {
        let (mask, most) = (self.mask.load(Ordering::SeqCst), self.max_per_shard.swap(0, Ordering::SeqCst));
        let next = Self::new(self.shards.len(), 0);
        next.set_rule(mask as usize + 1, most);
        next
    }

    /// Sets how many places a shard keeps: at most half of the limit over all shards, so that a
    /// call seldom has to search every shard for a place. If that is less than one place for each
    /// shard, several shards of threads share one that keeps places.
    pub(super) fn resize(&self, limit: u32) {
        if cfg!(loom) {
            // The models set the number by `keep_at_most`.
            return;
        }
        let most = if limit < SMALL { 0 } else { limit / 2 };
        let shards = most.checked_ilog2().map_or(1, |bits| 1 << bits).min(self.shards.len());
        self.set_rule(shards, most.checked_div(shards as u32).unwrap_or(0));
    }

    fn set_rule(&self, shards: usize, most: u32) {
        self.mask.store(shards.saturating_sub(1) as u32, Ordering::SeqCst);
        self.max_per_shard.store(most, Ordering::SeqCst);
    }

    #[cfg(loom)]
    pub(super) fn keep_at_most(&self, most: u32) {
        self.set_rule(self.shards.len(), most);
    }

    /// Keeps a place in the shard and returns true, unless the shard keeps its maximum. If it
    /// returns true, it has issued a SeqCst fence: later loads of the caller come after it.
    #[inline]
    pub(super) fn keep(&self, shard: usize) -> bool {
        let most = self.max_per_shard.load(Ordering::Relaxed);
        if most == 0 {
            return false;
        }
        let shard = self.index(shard);
        let kept = self.line(shard).is_some_and(|line| change(line, |spares| (spares < most).then_some(spares + 1)));
        if kept {
            // Pairs with the fence in `find`.
            fence_after_rmw();
            if self.nonempty.load(Ordering::SeqCst) & bit(shard) == 0 {
                self.nonempty.fetch_or(bit(shard), Ordering::SeqCst);
                fence(Ordering::SeqCst);
            }
        }
        kept
    }

    /// Takes a place that the shard keeps. Returns whether there was one.
    #[inline]
    pub(super) fn take(&self, shard: usize) -> bool {
        self.take_at(self.index(shard))
    }

    #[inline]
    fn take_at(&self, shard: usize) -> bool {
        self.line(shard).is_some_and(|line| change(line, |spares| spares.checked_sub(1)))
    }

    /// Takes a place of any shard.
    #[cold]
    pub(super) fn take_any(&self) -> Found {
        self.find(|shard| self.take_at(shard))
    }

    /// Searches for a place of any shard without taking it.
    pub(super) fn any(&self) -> Found {
        self.find(|shard| self.line(shard).is_some_and(|line| line.load(Ordering::SeqCst) > 0))
    }

    /// Calls `found` for the shards that may keep places, until it returns true.
    fn find(&self, found: impl Fn(usize) -> bool) -> Found {
        let mut left = self.nonempty.load(Ordering::SeqCst);
        while left != 0 {
            let shard = left.trailing_zeros() as usize;
            left &= left - 1;
            if found(shard) {
                return Found { found: true, hidden: false };
            }
            // Try again after clearing the bit: a place that was kept before is found now, and one
            // that is kept later sets the bit again.
            self.nonempty.fetch_and(!bit(shard), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if found(shard) {
                self.nonempty.fetch_or(bit(shard), Ordering::SeqCst);
                return Found { found: true, hidden: true };
            }
        }
        Found { found: false, hidden: false }
    }

    /// Returns the number of kept places, summed over the shards.
    pub(super) fn count(&self) -> u32 {
        self.shards.iter().map(|line| line.0.load(Ordering::SeqCst)).sum()
    }

    /// Takes all places and returns how many there were.
    pub(super) fn drain(&self) -> u32 {
        self.shards.iter().map(|line| line.0.swap(0, Ordering::SeqCst)).sum()
    }

    /// Returns the number of shards, a power of two.
    pub(super) fn shards(&self) -> usize {
        self.shards.len().max(1)
    }

    /// Returns the shard of a thread.
    #[inline]
    fn index(&self, thread: usize) -> usize {
        thread & self.mask.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn line(&self, shard: usize) -> Option<&AtomicU32> {
        self.shards.get(shard).map(|line| &line.0)
    }
}

/// The smallest limit of which spares are kept. Below it, the rejections that they cause close to
/// the limit weigh more than the contention that they avoid.
const SMALL: u32 = 16;

/// Returns the bit of a shard. [`shards`](crate::shard::shards) are at most 64.
#[inline]
fn bit(shard: usize) -> u64 {
    1 << (shard % 64)
}

#[inline]
fn change(line: &AtomicU32, change: impl Fn(u32) -> Option<u32>) -> bool {
    let mut spares = line.load(Ordering::Relaxed);
    while let Some(next) = change(spares) {
        match line.compare_exchange_weak(spares, next, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => spares = now,
        }
    }
    false
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_of_the_limit_is_kept_and_none_of_a_small_one() {
        for (shards, limit, most) in [
            (8, 0, 0),
            (8, 15, 0),
            (8, 16, 8),
            (8, 1_000, 62 * 8),
            (8, u32::MAX, 32),
            (64, 16, 8),
            (64, 64, 32),
            (64, 100, 32),
            (64, 128, 64),
            (64, 1_000, 64 * 7),
            (1, 1_000, 0),
        ] {
            let spares = Spares::new(shards, limit);
            let tries = if limit == u32::MAX { 32 } else { 64 * 62 };
            let kept = (0..tries).filter(|shard| spares.keep(*shard)).count() as u32;
            assert_eq!((kept, spares.count()), (most, most), "limit {limit}, {shards} shards");
        }
    }

    #[test]
    fn a_limit_of_few_places_for_each_shard_still_has_spares_for_neighbouring_threads() {
        let spares = Spares::new(64, 16);
        assert!((0..8).all(|thread| spares.keep(thread)));
        assert!(!spares.keep(8), "shares the spares of thread 0");
        assert!(spares.take(8) && !spares.take(0));
    }

    #[test]
    fn spares_of_shards_that_keep_none_any_more_are_found() {
        let spares = Spares::new(8, 1_000);
        assert!(spares.keep(7));
        spares.resize(8);
        assert!(!spares.keep(7) && spares.take_any().found);
    }

    #[test]
    fn a_spare_of_another_shard_is_found() {
        let spares = Spares::new(4, 100);
        assert!(spares.keep(3) && !spares.take(2) && spares.any().found);
        assert!(spares.take_any().found && !spares.any().found && !spares.take_any().found);
    }
}
