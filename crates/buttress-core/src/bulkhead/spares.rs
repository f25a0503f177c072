use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, fence_after_rmw};

/// The free places that shards keep. See the [module](super).
#[derive(Debug)]
pub(super) struct Spares {
    /// Maximum number of places that one shard keeps.
    max_per_shard: AtomicU32,
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
            nonempty: AtomicU64::new(0),
            shards: (0..shards).map(|_| Line::default()).collect(),
        };
        spares.resize(limit);
        spares
    }

    /// Sets how many places a shard keeps: at most half of the limit over all shards, so that a
    /// call seldom has to search every shard for a place.
    pub(super) fn resize(&self, limit: u32) {
        if cfg!(loom) {
            // The models set the number by `keep_at_most`.
            return;
        }
        let most = u32::try_from(self.shards.len() * 2).ok().and_then(|parts| limit.checked_div(parts));
        self.max_per_shard.store(most.unwrap_or(0), Ordering::SeqCst);
    }

    #[cfg(loom)]
    pub(super) fn keep_at_most(&self, most: u32) {
        self.max_per_shard.store(most, Ordering::SeqCst);
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
        self.line(self.index(shard)).is_some_and(|line| change(line, |spares| spares.checked_sub(1)))
    }

    /// Takes a place of any shard.
    #[cold]
    pub(super) fn take_any(&self) -> Found {
        self.find(|shard| self.take(shard))
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

    /// Returns the shard of a thread.
    #[inline]
    fn index(&self, thread: usize) -> usize {
        thread & self.shards.len().wrapping_sub(1)
    }

    #[inline]
    fn line(&self, shard: usize) -> Option<&AtomicU32> {
        self.shards.get(shard).map(|line| &line.0)
    }
}

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
        for (limit, most) in [(0, 0), (15, 0), (16, 1), (1_000, 62), (u32::MAX, u32::MAX / 16)] {
            let spares = Spares::new(8, limit);
            assert_eq!(spares.max_per_shard.load(Ordering::Relaxed), most, "{limit}");
            let kept = (0..32).filter(|shard| spares.keep(*shard)).count() as u32;
            assert_eq!((kept, spares.count()), (32.min(8 * most), kept), "{limit}");
        }
        assert!(!Spares::new(1, 1_000).keep(0), "a single shard has no line of its own");
    }

    #[test]
    fn a_spare_of_another_shard_is_found() {
        let spares = Spares::new(4, 100);
        assert!(spares.keep(3) && !spares.take(2) && spares.any().found);
        assert!(spares.take_any().found && !spares.any().found && !spares.take_any().found);
    }
}
