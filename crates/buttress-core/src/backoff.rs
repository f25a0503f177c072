//! How long to wait before another attempt.

use fastrand::Rng;
use std::time::Duration;

/// A family of growing pauses. The first pause is number 0.
///
/// The formulas are those of the AWS architecture blog's simulator; `U(a, b)` is uniform:
///
/// | | pause `n` |
/// |---|---|
/// | [`full_jitter`](Self::full_jitter) | `U(0, v)` with `v = min(cap, base · 2^n)` |
/// | [`equal_jitter`](Self::equal_jitter) | `v/2 + U(0, v/2)` |
/// | [`decorrelated_jitter`](Self::decorrelated_jitter) | `min(cap, U(base, 3 · previous))`, previous₀ = base |
/// | [`exponential`](Self::exponential) | `v` |
/// | [`constant`](Self::constant) | `base` |
///
/// ```
/// use buttress_core::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::full_jitter(Duration::from_millis(50), Duration::from_secs(20));
/// let mut pauses = backoff.pauses(fastrand::Rng::with_seed(7));
/// assert!(pauses.next_pause() <= Duration::from_millis(50));
/// assert!(pauses.next_pause() <= Duration::from_millis(100));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    jitter: Jitter,
    base: Duration,
    cap: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Jitter {
    None,
    Full,
    Equal,
    Decorrelated,
}

impl Backoff {
    /// For failures by overload, which need more time than others: full jitter, base 1 s, cap 20 s
    /// (AWS SDKs, retry mode v2.1).
    pub const OVERLOAD: Self = Self::full_jitter(Duration::from_secs(1), Duration::from_secs(20));

    /// Spreads a crowd best, and may wait next to nothing. The default: base 50 ms, cap 20 s.
    pub const fn full_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Full, base, cap }
    }

    /// Never waits less than half of the exponential pause.
    pub const fn equal_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Equal, base, cap }
    }

    /// Grows at random from the previous pause.
    pub const fn decorrelated_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Decorrelated, base, cap }
    }

    /// Doubles without jitter. Callers that failed together come back together: prefer a jittered
    /// one.
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::None, base, cap }
    }

    /// Always the same pause.
    pub const fn constant(pause: Duration) -> Self {
        Self { jitter: Jitter::None, base: pause, cap: pause }
    }

    /// The longest pause that this backoff makes by itself.
    pub const fn cap(&self) -> Duration {
        self.cap
    }

    /// The shortest exponential step, before jitter.
    pub const fn base(&self) -> Duration {
        self.base
    }

    /// The pause before an attempt that the server asked to put off by `hint`, where `pause` is the
    /// backoff's own.
    ///
    /// A pause that is longer than the hint stays as it is. A hint that is longer is spread by up
    /// to a tenth, so that the callers that got it together do not come back together, but not
    /// beyond the cap. A hint that is not below the cap is taken as it is. So the result is never
    /// below the hint and never above the longer of cap and hint. Callers that do not want to wait
    /// for longer than some time have to compare the hint with it first.
    ///
    /// (Envoy spreads by up to a half, the AWS SDKs allow up to 5 seconds more.)
    pub fn hinted(&self, pause: Duration, hint: Duration, rng: &mut Rng) -> Duration {
        let pause = pause.min(self.cap);
        if pause >= hint {
            return pause;
        }
        // Beyond 584 years `uniform` falls short, hence the `max`.
        uniform(rng, hint, hint.saturating_add(hint / 10).min(self.cap)).max(hint)
    }

    /// The pauses of one call, in order.
    pub fn pauses(&self, rng: Rng) -> Pauses {
        Pauses { backoff: *self, n: 0, previous: self.base, rng }
    }

    /// Pause number `n` of the families that do not depend on the previous one. A decorrelated one
    /// is drawn from its whole range.
    pub fn pause(&self, n: u32, rng: &mut Rng) -> Duration {
        let v = self.step(n);
        match self.jitter {
            Jitter::None => v,
            Jitter::Full => uniform(rng, Duration::ZERO, v),
            Jitter::Equal => v / 2 + uniform(rng, Duration::ZERO, v - v / 2),
            Jitter::Decorrelated => uniform(rng, self.base.min(v), v),
        }
    }

    /// `min(cap, base · 2^n)`, without overflow.
    fn step(&self, n: u32) -> Duration {
        if self.base.is_zero() {
            return Duration::ZERO;
        }
        1u32.checked_shl(n).and_then(|factor| self.base.checked_mul(factor)).unwrap_or(Duration::MAX).min(self.cap)
    }
}

impl Default for Backoff {
    /// Full jitter, base 50 ms, cap 20 s (AWS SDKs, retry mode v2.1).
    fn default() -> Self {
        Self::full_jitter(Duration::from_millis(50), Duration::from_secs(20))
    }
}

/// The pauses of one call.
#[derive(Clone, Debug)]
pub struct Pauses {
    backoff: Backoff,
    n: u32,
    previous: Duration,
    rng: Rng,
}

impl Pauses {
    /// The next pause. Never more than the cap.
    pub fn next_pause(&mut self) -> Duration {
        let pause = match self.backoff.jitter {
            Jitter::Decorrelated => {
                let upper = self.previous.saturating_mul(3).max(self.backoff.base);
                uniform(&mut self.rng, self.backoff.base, upper).min(self.backoff.cap)
            }
            _ => self.backoff.pause(self.n, &mut self.rng),
        };
        self.n = self.n.saturating_add(1);
        self.previous = pause;
        pause
    }

    /// Randomness of the same seed, for decisions about the same call.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }
}

fn uniform(rng: &mut Rng, low: Duration, high: Duration) -> Duration {
    let (low, high) = (nanos(low), nanos(high));
    Duration::from_nanos(if low >= high { low } else { rng.u64(low..=high) })
}

/// 584 years are enough for a pause.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn exponential_doubles_up_to_the_cap() {
        let mut pauses = Backoff::exponential(50 * MS, 300 * MS).pauses(Rng::with_seed(1));
        let got: Vec<_> = (0..5).map(|_| pauses.next_pause()).collect();
        assert_eq!(got, [50 * MS, 100 * MS, 200 * MS, 300 * MS, 300 * MS]);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut rng = Rng::with_seed(1);
        for backoff in [
            Backoff::full_jitter(Duration::MAX, Duration::MAX),
            Backoff::equal_jitter(Duration::MAX, Duration::MAX),
            Backoff::decorrelated_jitter(Duration::MAX, Duration::MAX),
            Backoff::exponential(Duration::ZERO, Duration::ZERO),
        ] {
            let mut pauses = backoff.pauses(rng.fork());
            for n in [0, 31, 32, u32::MAX] {
                assert!(backoff.pause(n, &mut rng) <= backoff.cap());
                assert!(pauses.next_pause() <= backoff.cap());
            }
        }
    }

    #[test]
    fn a_base_of_zero_is_no_pause_however_many_attempts() {
        let (zero, cap, mut rng) = (Duration::ZERO, 20_000 * MS, Rng::with_seed(1));
        for backoff in [
            Backoff::full_jitter(zero, cap),
            Backoff::equal_jitter(zero, cap),
            Backoff::decorrelated_jitter(zero, cap),
            Backoff::exponential(zero, cap),
        ] {
            for n in [0, 1, 31, 32, 33, u32::MAX] {
                assert_eq!(backoff.pause(n, &mut rng), zero, "{backoff:?}, pause {n}");
            }
            let mut pauses = backoff.pauses(rng.fork());
            assert!((0..100).all(|_| pauses.next_pause().is_zero()), "{backoff:?}");
        }
    }

    #[test]
    fn hints_of_any_size_do_not_panic_and_are_kept() {
        let mut rng = Rng::with_seed(1);
        for cap in [Duration::ZERO, 400 * MS, Duration::MAX] {
            let backoff = Backoff::full_jitter(cap.min(50 * MS), cap);
            for hint in [Duration::ZERO, 400 * MS, Duration::from_secs(u64::MAX), Duration::MAX] {
                let pause = backoff.hinted(backoff.pause(3, &mut rng), hint, &mut rng);
                assert!(hint <= pause && pause <= hint.max(cap), "cap {cap:?}, hint {hint:?}: {pause:?}");
            }
        }
    }

    #[test]
    fn callers_with_the_same_hint_do_not_come_back_together() {
        let (backoff, mut rng) = (Backoff::default(), Rng::with_seed(1));
        let pauses: std::collections::BTreeSet<_> =
            (0..100).map(|_| backoff.hinted(MS, 5_000 * MS, &mut rng)).collect();
        assert!(pauses.len() > 90 && pauses.iter().all(|pause| *pause <= 5_500 * MS));
    }

    proptest! {
        #[test]
        fn a_hinted_pause_is_not_below_the_hint_and_not_above_the_cap_unless_the_hint_is(
            seed: u64, cap in 0u32..2_000, hint in 0u32..2_000, pause in 0u32..3_000,
        ) {
            let (cap, hint, pause) = (cap * MS, hint * MS, pause * MS);
            let hinted = Backoff::exponential(cap, cap).hinted(pause, hint, &mut Rng::with_seed(seed));
            prop_assert!(hinted >= hint && hinted >= pause.min(cap) && hinted <= cap.max(hint));
        }

        #[test]
        fn every_pause_keeps_to_its_formula(seed: u64, base in 0u32..5_000, cap in 0u32..60_000, n in 0u32..40) {
            let (base, cap) = (base * MS, cap * MS);
            let mut rng = Rng::with_seed(seed);
            let v = Backoff::exponential(base, cap).step(n);
            prop_assert!(Backoff::full_jitter(base, cap).pause(n, &mut rng) <= v);
            let equal = Backoff::equal_jitter(base, cap).pause(n, &mut rng);
            prop_assert!(v / 2 <= equal && equal <= v);
        }

        #[test]
        fn decorrelated_pauses_lie_between_base_and_three_times_the_last(seed: u64, base in 1u32..1_000, cap in 1u32..60_000) {
            let (base, cap) = (base * MS, cap * MS);
            let mut pauses = Backoff::decorrelated_jitter(base, cap).pauses(Rng::with_seed(seed));
            let mut previous = base;
            for _ in 0..20 {
                let pause = pauses.next_pause();
                prop_assert!(pause >= base.min(cap) && pause <= cap && pause <= previous.saturating_mul(3).max(base));
                previous = pause;
            }
        }

        #[test]
        fn the_same_seed_makes_the_same_pauses(seed: u64) {
            let backoff = Backoff::default();
            let draw = || { let mut p = backoff.pauses(Rng::with_seed(seed)); (0..8).map(|_| p.next_pause()).collect::<Vec<_>>() };
            prop_assert_eq!(draw(), draw());
        }
    }
}
