//! Pauses between the attempts of a call.

use crate::timeline::nanos;
use fastrand::Rng;
use std::time::Duration;

/// A formula for the pauses between attempts, which grow with each attempt.
///
/// Pauses are numbered from 0: pause 0 comes before the first retry. The formulas are those of
/// AWS's [simulator](https://github.com/aws-samples/aws-arch-backoff-simulator); `U(a, b)` is
/// uniformly distributed between `a` and `b`:
///
/// | | pause `n` |
/// |---|---|
/// | [`full_jitter`](Self::full_jitter) | `U(0, v)` with `v = min(cap, base · 2^n)` |
/// | [`equal_jitter`](Self::equal_jitter) | `v/2 + U(0, v/2)` |
/// | [`decorrelated_jitter`](Self::decorrelated_jitter) | `min(cap, U(base, 3 · previous))`, with `base` before pause 0 |
/// | [`exponential`](Self::exponential) | `v` |
/// | [`constant`](Self::constant) | `base` |
///
/// Pauses are computed in nanoseconds, up to 584 years.
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
    /// The backoff for failures by overload: full jitter, base 1 s, cap 20 s (AWS SDKs, retry mode
    /// v2.1). A backend that sheds load needs longer pauses than one that has failed.
    pub const OVERLOAD: Self = Self::full_jitter(Duration::from_secs(1), Duration::from_secs(20));

    /// Creates a backoff with full jitter: a pause between zero and the exponential step.
    ///
    /// Spreads callers that failed together best, and may return a pause near zero.
    /// [`Backoff::default`] is this one with a base of 50 ms and a cap of 20 s.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::full_jitter(Duration::from_millis(50), Duration::from_secs(20));
    /// assert_eq!(backoff, Backoff::default());
    /// ```
    pub const fn full_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Full, base, cap }
    }

    /// Creates a backoff with equal jitter: a pause between half of the exponential step and all of
    /// it.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::equal_jitter(Duration::from_secs(1), Duration::from_secs(60));
    /// let pause = backoff.pause(3, &mut fastrand::Rng::with_seed(7));
    /// assert!((4..=8).contains(&pause.as_secs()));
    /// ```
    pub const fn equal_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Equal, base, cap }
    }

    /// Creates a backoff with decorrelated jitter: a pause between the base and three times the
    /// previous pause.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let base = Duration::from_millis(50);
    /// let backoff = Backoff::decorrelated_jitter(base, Duration::from_secs(20));
    /// let mut pauses = backoff.pauses(fastrand::Rng::with_seed(7));
    /// let (first, second) = (pauses.next_pause(), pauses.next_pause());
    /// assert!(base <= first && first <= 3 * base);
    /// assert!(base <= second && second <= 3 * first);
    /// ```
    pub const fn decorrelated_jitter(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::Decorrelated, base, cap }
    }

    /// Creates a backoff that doubles without jitter.
    ///
    /// Callers that failed together retry together: prefer a backoff with jitter.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_millis(300));
    /// let mut pauses = backoff.pauses(fastrand::Rng::new());
    /// let pauses: Vec<_> = (0..4).map(|_| pauses.next_pause().as_millis()).collect();
    /// assert_eq!(pauses, [50, 100, 200, 300]);
    /// ```
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { jitter: Jitter::None, base, cap }
    }

    /// Creates a backoff whose pauses are all equal to `pause`.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::constant(Duration::from_secs(1));
    /// let pause = backoff.pauses(fastrand::Rng::new()).next_pause();
    /// assert_eq!(pause, Duration::from_secs(1));
    /// ```
    pub const fn constant(pause: Duration) -> Self {
        Self { jitter: Jitter::None, base: pause, cap: pause }
    }

    /// Returns the longest pause without a [hint](Self::hinted).
    ///
    /// ```
    /// # use buttress_core::Backoff;
    /// assert_eq!(Backoff::default().cap().as_secs(), 20);
    /// ```
    pub const fn cap(&self) -> Duration {
        self.cap
    }

    /// Returns the first exponential step, before jitter.
    ///
    /// ```
    /// # use buttress_core::Backoff;
    /// assert_eq!(Backoff::default().base().as_millis(), 50);
    /// ```
    pub const fn base(&self) -> Duration {
        self.base
    }

    /// Returns the pause before an attempt that the server asked to delay by `hint`, for example
    /// with `Retry-After`. `pause` is the pause without the hint.
    ///
    /// * If `pause`, limited to the cap, is not shorter than the hint, it is returned.
    /// * A hint at or above the cap is returned unchanged.
    /// * Any other hint is lengthened at random by up to 10 %, limited to the cap, so that callers
    ///   that received the same hint do not retry together. (Envoy adds up to 50 %, the AWS SDKs up
    ///   to 5 seconds.)
    ///
    /// The result is at least the hint, and at most the larger of the cap and the hint. A caller
    /// that limits how long it waits must compare the hint with that limit first.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let mut rng = fastrand::Rng::with_seed(7);
    /// let pause = Backoff::default().hinted(Duration::from_millis(80), Duration::from_secs(5), &mut rng);
    /// assert!((5_000..=5_500).contains(&pause.as_millis()));
    /// ```
    pub fn hinted(&self, pause: Duration, hint: Duration, rng: &mut Rng) -> Duration {
        let pause = pause.min(self.cap);
        if pause >= hint {
            return pause;
        }
        // `uniform` is limited to 584 years, and the hint may be longer.
        uniform(rng, hint, hint.saturating_add(hint / 10).min(self.cap)).max(hint)
    }

    /// Returns the pauses of one call, in order.
    ///
    /// ```
    /// use buttress_core::Backoff;
    ///
    /// let mut pauses = Backoff::default().pauses(fastrand::Rng::with_seed(7));
    /// let mut again = Backoff::default().pauses(fastrand::Rng::with_seed(7));
    /// assert_eq!(pauses.next_pause(), again.next_pause());
    /// ```
    pub fn pauses(&self, rng: Rng) -> Pauses {
        Pauses { backoff: *self, n: 0, previous: self.base, rng }
    }

    /// Returns pause number `n`, from 0.
    ///
    /// A decorrelated pause depends on the previous one, which is unknown here: it is drawn between
    /// the base and the exponential step. Use [`pauses`](Self::pauses) for the exact formula.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(20));
    /// assert_eq!(backoff.pause(4, &mut fastrand::Rng::new()), Duration::from_millis(800));
    /// ```
    pub fn pause(&self, n: u32, rng: &mut Rng) -> Duration {
        let v = self.step(n);
        match self.jitter {
            Jitter::None => v,
            Jitter::Full => uniform(rng, Duration::ZERO, v),
            Jitter::Equal => v / 2 + uniform(rng, Duration::ZERO, v - v / 2),
            Jitter::Decorrelated => uniform(rng, self.base.min(v), v),
        }
    }

    /// Returns `min(cap, base · 2^n)`, without overflow.
    fn step(&self, n: u32) -> Duration {
        if self.base.is_zero() {
            return Duration::ZERO;
        }
        1u32.checked_shl(n).and_then(|factor| self.base.checked_mul(factor)).unwrap_or(Duration::MAX).min(self.cap)
    }
}

impl Default for Backoff {
    /// Returns full jitter with a base of 50 ms and a cap of 20 s (AWS SDKs, retry mode v2.1).
    fn default() -> Self {
        Self::full_jitter(Duration::from_millis(50), Duration::from_secs(20))
    }
}

/// The pauses of one call, made by [`Backoff::pauses`].
///
/// ```
/// use buttress_core::Backoff;
///
/// let mut pauses = Backoff::default().pauses(fastrand::Rng::with_seed(7));
/// for _attempt in 2..=3 {
///     assert!(pauses.next_pause() <= Backoff::default().cap());
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Pauses {
    backoff: Backoff,
    n: u32,
    previous: Duration,
    rng: Rng,
}

impl Pauses {
    /// Returns the next pause, which is at most the cap.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(2));
    /// let mut pauses = backoff.pauses(fastrand::Rng::new());
    /// assert_eq!((pauses.next_pause().as_secs(), pauses.next_pause().as_secs()), (1, 2));
    /// ```
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

    /// Returns the random number generator, for other decisions about the same call.
    ///
    /// ```
    /// use buttress_core::Backoff;
    /// use std::time::Duration;
    ///
    /// let backoff = Backoff::default();
    /// let mut pauses = backoff.pauses(fastrand::Rng::with_seed(7));
    /// let pause = pauses.next_pause();
    /// let hinted = backoff.hinted(pause, Duration::from_secs(5), pauses.rng());
    /// assert!(hinted >= Duration::from_secs(5));
    /// ```
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }
}

fn uniform(rng: &mut Rng, low: Duration, high: Duration) -> Duration {
    let (low, high) = (nanos(low), nanos(high));
    Duration::from_nanos(if low >= high { low } else { rng.u64(low..=high) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_default_is_that_of_the_aws_sdks() {
        assert_eq!((Backoff::default().base(), Backoff::default().cap()), (50 * MS, 20_000 * MS));
    }

    #[test]
    fn a_hint_is_lengthened_by_up_to_a_tenth_and_one_that_is_no_longer_than_the_pause_not_at_all() {
        let (backoff, mut rng) = (Backoff::default(), Rng::with_seed(7));
        let mut hinted = |pause| (0..1000).map(|_| backoff.hinted(pause, 5000 * MS, &mut rng)).collect::<Vec<_>>();
        let later = hinted(4999 * MS);
        let (shortest, longest) = (later.iter().min().unwrap(), later.iter().max().unwrap());
        assert!((5000 * MS..5010 * MS).contains(shortest) && (5490 * MS..=5500 * MS).contains(longest));
        for pause in [5000 * MS, 5001 * MS] {
            assert!(hinted(pause).iter().all(|hinted| *hinted == pause));
        }
    }

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
