/// A configuration that breaks a rule. Names the setting and the rule, so that the message alone is
/// enough to correct it.
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
    /// `rule` completes the sentence "`field` …", for example "must be at least 1".
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }

    /// The field, as the builder's setter is called.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The rule that the value breaks.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

/// A share between 0 and 1, kept in millionths so that comparing counts with it is exact.
///
/// In floating point, 3 failures of 30 are *less* than a rate of 0.1, because `0.1 * 30.0 > 3.0`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ratio(u32);

impl Ratio {
    const ONE: u32 = 1_000_000;

    /// Rounds down to a millionth, so that two thirds of 3 are 2; a share that misses one by the error of floating point is taken for it.
    /// `None` unless `share` lies in `0.0..=1.0`.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then(|| Self((share * f64::from(Self::ONE) + 1e-6) as u32))
    }

    /// Whether `part` of `whole` is at least this share. Nothing of nothing is no share at all.
    pub fn reached_by(self, part: u64, whole: u64) -> bool {
        whole > 0 && u128::from(part) * u128::from(Self::ONE) >= u128::from(self.0) * u128::from(whole)
    }

    /// The smallest count out of `whole` that reaches this share.
    pub fn of(self, whole: u32) -> u32 {
        (u64::from(self.0) * u64::from(whole)).div_ceil(u64::from(Self::ONE)) as u32
    }

    /// The share as a number between 0 and 1.
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
