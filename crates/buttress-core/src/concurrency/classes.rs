use crate::Criticality;
use crate::context::CallContext;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The places that are kept for more important calls while the limit rejects some.
///
/// Trunk reservation: of the free places, a call leaves a number for each more important class that
/// has calls. Classes without calls keep none, so that a limit whose calls are all alike is as it
/// would be without classes.
#[derive(Debug)]
pub(super) struct Classes {
    /// Whether calls were rejected in this window or the last one.
    is_contended: AtomicBool,
    /// The places that a class keeps from those below it.
    kept: AtomicU32,
    /// When a call of each class came last while the limit was contended. 0 if none has.
    seen: [AtomicU64; 4],
}

/// For how long a class without calls keeps its places, in nanoseconds.
const REMEMBERED: u64 = 10_000_000_000;
/// A class is marked as seen again after this time: all threads write to the mark.
const MARK_EVERY: u64 = 1_000_000_000;

impl Classes {
    pub(super) fn new() -> Self {
        Self {
            is_contended: AtomicBool::new(false),
            kept: AtomicU32::new(0),
            seen: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    #[inline]
    pub(super) fn is_contended(&self) -> bool {
        self.is_contended.load(Ordering::Relaxed)
    }

    /// Notes whether calls are rejected.
    pub(super) fn set_contended(&self, is_contended: bool) {
        // Written only when it changes: every admission reads it.
        if self.is_contended() != is_contended {
            self.is_contended.store(is_contended, Ordering::Relaxed);
        }
    }

    /// Sets the number of places that a class keeps.
    pub(super) fn set_kept(&self, places: u32) {
        self.kept.store(places, Ordering::Relaxed);
    }

    /// Notes that the class of the current call has calls, at a time that is not 0.
    pub(super) fn mark_current(&self, now: u64) {
        if self.kept.load(Ordering::Relaxed) > 0 {
            self.mark(current(), now);
        }
    }

    fn mark(&self, class: Criticality, now: u64) {
        let seen = &self.seen[class as usize];
        let last = seen.load(Ordering::Relaxed);
        // A clock that was set back makes the difference large and the mark new.
        if last == 0 || now.abs_diff(last) >= MARK_EVERY {
            seen.store(now, Ordering::Relaxed);
        }
    }

    /// Returns the places that the current call has to leave, at a time that is not 0.
    #[cold]
    pub(super) fn kept_from_current(&self, now: u64) -> usize {
        let kept = self.kept.load(Ordering::Relaxed);
        if kept == 0 {
            return 0;
        }
        let class = current();
        self.mark(class, now);
        let above = Criticality::ALL.iter().zip(&self.seen).take_while(|(other, _)| **other != class);
        let is_remembered = |seen: u64| seen != 0 && now.abs_diff(seen) < REMEMBERED;
        above.filter(|(_, seen)| is_remembered(seen.load(Ordering::Relaxed))).count() * kept as usize
    }
}

fn current() -> Criticality {
    CallContext::current().priority.unwrap_or_default().criticality()
}
