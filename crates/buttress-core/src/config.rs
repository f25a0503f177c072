/// The error of an invalid configuration. Names the setting and the rule that its value breaks.
///
/// ```
/// use buttress_core::InvalidConfig;
///
/// let error = InvalidConfig::new("max_keys", "must be at least 1");
/// assert_eq!(error.to_string(), "invalid configuration: `max_keys` must be at least 1");
/// ```
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid configuration: `{field}` {rule}")]
pub struct InvalidConfig {
    field: &'static str,
    rule: &'static str,
}

impl InvalidConfig {
    /// Creates an error about the setting `field`. `rule` completes the sentence that begins with
    /// the name of the field, for example "must be at least 1".
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }

    /// Returns the field, under the name of the builder's setter.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let error = RetryBudget::<ManualClock>::builder().burst(0).build().unwrap_err();
    /// assert_eq!(error.field(), "burst");
    /// ```
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Returns the rule that the value breaks.
    ///
    /// ```
    /// use buttress_core::InvalidConfig;
    ///
    /// assert_eq!(InvalidConfig::new("max_keys", "must be at least 1").rule(), "must be at least 1");
    /// ```
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

/// A share between 0 and 1, in millionths, so that comparing counts with it is exact.
///
/// In floating point, 3 failures of 30 are *less* than a rate of 0.1, because `0.1 * 30.0 > 3.0`.
///
/// ```
/// use buttress_core::Ratio;
///
/// let tenth = Ratio::new(0.1).unwrap();
/// assert!(tenth.reached_by(3, 30));
/// assert!(!tenth.reached_by(2, 30));
/// ```
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ratio(u32);

impl Ratio {
    const ONE: u32 = 1_000_000;

    /// Creates a ratio from a share in `0.0..=1.0`; returns `None` for any other number.
    ///
    /// The share is rounded down to a millionth, so that two thirds of 3 are 2. A share that is
    /// below a millionth by a rounding error of floating point counts as that millionth.
    ///
    /// ```
    /// use buttress_core::Ratio;
    ///
    /// assert_eq!(Ratio::new(2.0 / 3.0).unwrap().of(3), 2);
    /// assert_eq!(Ratio::new(1.1), None);
    /// assert_eq!(Ratio::new(f64::NAN), None);
    /// ```
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then(|| Self((share * f64::from(Self::ONE) + 1e-6) as u32))
    }

    /// Returns whether `part` of `whole` is at least this share. False if `whole` is 0, where the
    /// share is unknown.
    pub fn reached_by(self, part: u64, whole: u64) -> bool {
        whole > 0 && u128::from(part) * u128::from(Self::ONE) >= u128::from(self.0) * u128::from(whole)
    }

    /// Returns whether `part` of `whole` is at most this share.
    pub(crate) fn bounds(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::ONE) <= u128::from(self.0) * u128::from(whole)
    }

    /// Returns the smallest count out of `whole` that reaches this share.
    ///
    /// ```
    /// assert_eq!(buttress_core::Ratio::new(0.5).unwrap().of(3), 2);
    /// ```
    pub fn of(self, whole: u32) -> u32 {
        (u64::from(self.0) * u64::from(whole)).div_ceil(u64::from(Self::ONE)) as u32
    }

    /// Returns the share as a number between 0 and 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ONE)
    }

    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn millionths(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_millionths(millionths: u32) -> Self {
        Self(millionths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_of_thirty_is_exactly_a_tenth() {
        assert!(Ratio::new(0.1).unwrap().reached_by(3, 30));
        assert!(!Ratio::new(0.1).unwrap().reached_by(2, 30));
        assert!(!Ratio::new(0.0).unwrap().reached_by(0, 0), "a rate without calls is unknown, not zero");
    }

    #[test]
    fn a_fifth_of_calls_is_exact_also_as_a_bound() {
        let fifth = Ratio::new(0.2).unwrap();
        assert_eq!(
            [(0, 0), (1, 4), (1, 5), (2, 9), (2, 10)].map(|(part, whole)| fifth.bounds(part, whole)),
            [true, false, true, false, true]
        );
    }

    #[test]
    fn every_millionth_is_itself() {
        for n in 0..=Ratio::ONE {
            let share = f64::from(n) / f64::from(Ratio::ONE);
            let ratio = Ratio::new(share).unwrap();
            assert_eq!((ratio.millionths(), ratio.as_f64()), (n, share));
        }
    }

    #[test]
    fn an_error_names_the_field_and_the_rule() {
        let error = InvalidConfig::new("burst", "must be at least 1");
        assert_eq!((error.field(), error.rule()), ("burst", "must be at least 1"));
    }

    #[test]
    fn shares_outside_zero_to_one_are_refused() {
        for share in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert_eq!(Ratio::new(share), None, "{share}");
        }
    }

    #[test]
    fn the_needed_count_is_rounded_up() {
        assert_eq!(Ratio::new(0.5).unwrap().of(3), 2);
        assert_eq!(Ratio::new(1.0).unwrap().of(3), 3);
        assert_eq!(Ratio::new(2.0 / 3.0).unwrap().of(3), 2);
        assert_eq!(Ratio::new(0.29).unwrap().of(100), 29);
        assert_eq!(Ratio::new(0.0).unwrap().of(3), 0);
    }
}
