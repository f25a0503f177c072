//! The importance of a call, by which overloaded services choose what to reject.

use std::{cmp::Ordering, fmt, str::FromStr};

/// The class of a [`Priority`], from the most to the least important. The names are those of the
/// SRE book, chapter 21.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Criticality {
    /// Rejecting the call is a serious failure that users see. 0 on the wire.
    CriticalPlus,
    /// Rejecting the call is a failure that users see. The default; 1 on the wire.
    #[default]
    Critical,
    /// The call can be repeated minutes or hours later. 2 on the wire.
    SheddablePlus,
    /// The call may fail often, or altogether. 3 on the wire.
    Sheddable,
}

impl Criticality {
    /// All classes, from the most to the least important.
    pub const ALL: [Self; 4] = [Self::CriticalPlus, Self::Critical, Self::SheddablePlus, Self::Sheddable];
}

/// The importance of a call: a class, and a level within the class.
///
/// A greater priority is more important. Levels are between 0 and 127, and a lower level is more
/// important, as in the text `1;20` of the header `x-priority`. The default is
/// [`Critical`](Criticality::Critical) at level 64.
///
/// ```
/// use buttress_core::{Criticality, Priority};
///
/// let checkout = Priority::new(Criticality::CriticalPlus);
/// let report: Priority = "3;10".parse().unwrap();
/// assert!(checkout > Priority::default() && Priority::default() > report);
/// assert_eq!((report.criticality(), report.level()), (Criticality::Sheddable, 10));
/// assert_eq!(checkout.to_string(), "0;64");
/// ```
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Priority(u16);

impl Priority {
    /// Number of ranks: 4 classes of 128 levels.
    pub const RANKS: usize = 512;

    const LEVELS: u16 = 128;
    const MIDDLE: u16 = 64;

    /// Creates the priority in the middle of a class, at level 64.
    pub const fn new(criticality: Criticality) -> Self {
        Self(criticality as u16 * Self::LEVELS + Self::MIDDLE)
    }

    /// Returns the priority at another level of its class. A level above 127 is 127.
    ///
    /// ```
    /// use buttress_core::Priority;
    ///
    /// let first = Priority::default().at_level(0);
    /// assert!(first > Priority::default());
    /// assert_eq!(Priority::default().at_level(200).level(), 127);
    /// ```
    pub const fn at_level(self, level: u8) -> Self {
        let level = if level as u16 >= Self::LEVELS { Self::LEVELS - 1 } else { level as u16 };
        Self(self.0 / Self::LEVELS * Self::LEVELS + level)
    }

    /// Returns the class.
    pub const fn criticality(self) -> Criticality {
        match self.0 / Self::LEVELS {
            0 => Criticality::CriticalPlus,
            1 => Criticality::Critical,
            2 => Criticality::SheddablePlus,
            _ => Criticality::Sheddable,
        }
    }

    /// Returns the level in the class, between 0 and 127. A lower one is more important.
    pub const fn level(self) -> u8 {
        (self.0 % Self::LEVELS) as u8
    }

    /// Returns the position among all priorities: 0 is the most important, 511 the least. For
    /// histograms by priority.
    ///
    /// ```
    /// use buttress_core::Priority;
    ///
    /// assert_eq!(Priority::default().rank(), 192);
    /// assert_eq!(Priority::from_rank(192), Priority::default());
    /// ```
    pub const fn rank(self) -> usize {
        self.0 as usize
    }

    /// Returns the priority of a [rank](Self::rank). A rank above 511 is 511.
    pub const fn from_rank(rank: usize) -> Self {
        Self(if rank < Self::RANKS { rank as u16 } else { Self::RANKS as u16 - 1 })
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::new(Criticality::default())
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.cmp(&self.0)
    }
}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Criticality> for Priority {
    fn from(criticality: Criticality) -> Self {
        Self::new(criticality)
    }
}

impl fmt::Debug for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?};{}", self.criticality(), self.level())
    }
}

/// Writes the class and the level as in the header `x-priority`, such as `1;64`.
impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{}", self.0 / Self::LEVELS, self.level())
    }
}

/// The error of a text that is no [`Priority`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a priority is a class from 0 to 3, and may have a level from 0 to 127 after a semicolon")]
pub struct InvalidPriority;

/// Reads a class and an optional level, such as `1` or `1;64`, without signs and with at most three
/// digits each. Spaces and tabs around the numbers are allowed.
impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        let (class, level) = text.split_once(';').map_or((text, None), |(class, level)| (class, Some(level)));
        let class = Criticality::ALL.get(usize::from(number(class)?)).ok_or(InvalidPriority)?;
        let priority = Self::new(*class);
        match level.map(number).transpose()? {
            Some(level) if u16::from(level) >= Self::LEVELS => Err(InvalidPriority),
            Some(level) => Ok(priority.at_level(level)),
            None => Ok(priority),
        }
    }
}

fn number(text: &str) -> Result<u8, InvalidPriority> {
    let digits = text.trim_matches([' ', '\t']);
    // `u8::from_str` accepts a sign, and zeros without end.
    if digits.len() > 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidPriority);
    }
    digits.parse().map_err(|_| InvalidPriority)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_ordered_by_class_and_then_by_level() {
        let ordered: Vec<Priority> = (0..Priority::RANKS).map(Priority::from_rank).collect();
        assert!(ordered.windows(2).all(|pair| pair[0] > pair[1]));
        for (rank, priority) in ordered.into_iter().enumerate() {
            assert_eq!(priority.rank(), rank);
            assert_eq!(Priority::new(priority.criticality()).at_level(priority.level()), priority);
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        assert_eq!(Priority::from_rank(usize::MAX).rank(), 511);
    }

    #[test]
    fn a_text_is_a_class_and_a_level_or_an_error() {
        for (text, rank) in [("0", 64), ("1", 192), (" 3 ; 127 ", 511), ("2;000", 256), ("1;\t5", 133)] {
            assert_eq!(text.parse(), Ok(Priority::from_rank(rank)), "{text}");
        }
        for text in ["", ";", "4", "1;", ";1", "1;128", "-1", "+1", "1;1;1", "0001", "1;+3", "one", "1,2", "١"] {
            assert_eq!(text.parse::<Priority>(), Err(InvalidPriority), "{text}");
        }
    }
}
