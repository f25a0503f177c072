use super::bucket::MILLI;
use crate::sync::{AtomicU64, Ordering};

/// The tokens of gRPC's retry throttling (gRFC A6), in thousandths.
///
/// Most attempts succeed while there are all tokens. They read the word and do not write it, so
/// that threads do not contend for its cache line.
#[derive(Debug)]
pub(super) struct Tokens {
    left: AtomicU64,
    max: u64,
    per_success: u64,
}

impl Tokens {
    pub(super) fn new(max: f64, ratio: f64) -> Self {
        // Decimals after the third are ignored (A6). The addend is for a third decimal that
        // floating point has slightly below its value.
        let milli = |number: f64| (number * MILLI as f64 + 1e-6) as u64;
        let max = milli(max);
        Self { left: AtomicU64::new(max), max, per_success: milli(ratio) }
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Returns whether more than a half of the tokens is left.
    pub(super) fn allow(&self) -> bool {
        self.left() * 2 > self.max
    }

    #[inline]
    pub(super) fn success(&self) {
        if self.left() < self.max {
            self.change(|left| (left + self.per_success).min(self.max));
        }
    }

    pub(super) fn failure(&self) {
        self.change(|left| left.saturating_sub(MILLI));
    }

    fn change(&self, next: impl Fn(u64) -> u64) {
        // Never fails: the function returns a number in any case.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(next(left)));
    }
}
