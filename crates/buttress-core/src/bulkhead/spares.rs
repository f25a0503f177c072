use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Free places that shards keep. See the [module](super).
#[derive(Debug)]
pub(super) struct Spares {
    /// The most that one shard keeps.
    most: AtomicU32,
    /// The shards that may keep some, a bit for each. A bit stays while its shard takes and keeps
    /// places, so that threads only read it; a call that finds nothing there clears it.
    some: AtomicU64,
    /// Empty where there is a single shard.
    shards: Box<[Line]>,
}

/// What a look at all shards found.
#[derive(Debug)]
pub(super) struct Found {
    /// A place.
    pub(super) found: bool,
    /// Its shard was taken for an empty one for a moment, in which others did not look at it. It
    /// may keep more places.
    pub(super) hidden: bool,
}

/// On lines of its own: each shard's threads write to it with every call.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU32);

impl Spares {
    pub(super) fn new(shards: usize, limit: u32) -> Self {
        let shards = if shards > 1 { shards.next_power_of_two() } else { 0 };
        let spares = Self {
            most: AtomicU32::new(0),
            some: AtomicU64::new(0),
            shards: (0..shards).map(|_| Line::default()).collect(),
        };
        spares.resize(limit);
        spares
    }

    /// At most half of the limit is kept, so that a call that looks for a place seldom has to look
    /// at every shard.
    pub(super) fn resize(&self, limit: u32) {
        if cfg!(loom) {
            // The models say how many.
            return;
        }
        let most = u32::try_from(self.shards.len() * 2).ok().and_then(|parts| limit.checked_div(parts));
        self.most.store(most.unwrap_or(0), Ordering::SeqCst);
    }

    #[cfg(loom)]
    pub(super) fn keep_at_most(&self, most: u32) {
        self.most.store(most, Ordering::SeqCst);
    }

    /// Keeps a place in the shard, unless it has as many as it may. What is read afterwards is read
    /// after a fence.
    #[inline]
    pub(super) fn keep(&self, shard: usize) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        if most == 0 {
            return false;
        }
        let shard = self.index(shard);
        let kept = self.line(shard).is_some_and(|line| change(line, |spares| (spares < most).then_some(spares + 1)));
        if kept {
            // Pairs with the fence in `find`.
            fence(Ordering::SeqCst);
            if self.some.load(Ordering::SeqCst) & bit(shard) == 0 {
                self.some.fetch_or(bit(shard), Ordering::SeqCst);
                fence(Ordering::SeqCst);
            }
        }
        kept
    }

    /// Takes a place that the shard keeps.
    #[inline]
    pub(super) fn take(&self, shard: usize) -> bool {
        self.line(self.index(shard)).is_some_and(|line| change(line, |spares| spares.checked_sub(1)))
    }

    /// Takes a place that any shard keeps.
    #[cold]
    pub(super) fn take_any(&self) -> Found {
        self.find(|shard| self.take(shard))
    }

    /// Whether any shard keeps a place.
    pub(super) fn any(&self) -> Found {
        self.find(|shard| self.line(shard).is_some_and(|line| line.load(Ordering::SeqCst) > 0))
    }

    /// Whether `found` says so of any shard that may keep a place.
    fn find(&self, found: impl Fn(usize) -> bool) -> Found {
        let mut left = self.some.load(Ordering::SeqCst);
        while left != 0 {
            let shard = left.trailing_zeros() as usize;
            left &= left - 1;
            if found(shard) {
                return Found { found: true, hidden: false };
            }
            // A place that is kept before the bit is cleared is seen now; one that is kept
            // afterwards sets it again.
            self.some.fetch_and(!bit(shard), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if found(shard) {
                self.some.fetch_or(bit(shard), Ordering::SeqCst);
                return Found { found: true, hidden: true };
            }
        }
        Found { found: false, hidden: false }
    }

    /// How many there are: a sum over the shards.
    pub(super) fn count(&self) -> u32 {
        self.shards.iter().map(|line| line.0.load(Ordering::SeqCst)).sum()
    }

    /// Takes all.
    pub(super) fn drain(&self) -> u32 {
        self.shards.iter().map(|line| line.0.swap(0, Ordering::SeqCst)).sum()
    }

    /// The shard of a thread.
    #[inline]
    fn index(&self, thread: usize) -> usize {
        thread & self.shards.len().wrapping_sub(1)
    }

    #[inline]
    fn line(&self, shard: usize) -> Option<&AtomicU32> {
        self.shards.get(shard).map(|line| &line.0)
    }
}

/// There are at most 64 shards.
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
            assert_eq!(spares.most.load(Ordering::Relaxed), most, "{limit}");
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
