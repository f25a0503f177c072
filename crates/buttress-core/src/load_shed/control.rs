use crate::sync::{AtomicU64, Ordering};

/// By how much the admitted share shrinks with a step at a level of 1 or more (DAGOR).
///
/// Not in proportion to the level, which is no measure of the excess: a wait of ten times its
/// target does not mean ten times the calls, as the queue takes a while to empty. Steps in
/// proportion reject nearly all calls until it has, and leave the service idle after.
const SHRINK: f64 = 0.95;
/// By how much of all calls it grows with a step below (DAGOR).
const GROW: f64 = 0.01;

/// The share of the calls that is admitted.
#[derive(Debug)]
pub(super) struct Control {
    /// The bits of an `f64`. Changed by the call that takes a step.
    admitted: AtomicU64,
    /// The smallest share.
    least: f64,
}

impl Control {
    pub(super) fn new(max_share: f64) -> Self {
        Self { admitted: AtomicU64::new(1f64.to_bits()), least: 1.0 - max_share }
    }

    /// Returns the share that is rejected.
    pub(super) fn share(&self) -> f64 {
        1.0 - f64::from_bits(self.admitted.load(Ordering::Relaxed))
    }

    /// Adjusts the share to a level, after `steps`, and returns the share that is rejected.
    pub(super) fn step(&self, level: f64, steps: u64) -> f64 {
        let admitted = f64::from_bits(self.admitted.load(Ordering::Relaxed));
        // One step at overload, however many are due: nothing is known of the level in between.
        let next = if level >= 1.0 { admitted * SHRINK } else { admitted + GROW * steps as f64 };
        let next = next.clamp(self.least, 1.0);
        self.admitted.store(next.to_bits(), Ordering::Relaxed);
        1.0 - next
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[track_caller]
    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn the_share_follows_the_level_in_the_steps_of_the_documentation() {
        let control = Control::new(0.95);
        near(control.step(1.0, 1), 0.05);
        near(control.step(f64::INFINITY, 9), 1.0 - 0.95 * 0.95);
        near(control.step(0.99, 1), 1.0 - 0.95 * 0.95 - 0.01);
        near(control.step(0.0, u64::MAX), 0.0);
        near((0..100).map(|_| control.step(9.0, 1)).last().unwrap(), 0.95);
        near(control.step(0.0, 45), 0.5);
    }
}
