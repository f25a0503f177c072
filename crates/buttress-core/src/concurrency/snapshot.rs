use super::Window;
use std::time::Duration;

/// The last decision on a limit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Decision {
    /// The limit was raised.
    Raised,
    /// The limit was lowered.
    Lowered,
    /// The limit was kept.
    Held,
    /// The window was discarded, because this process had stood still.
    Discarded,
}

impl Decision {
    pub(super) const ALL: [Self; 4] = [Self::Raised, Self::Lowered, Self::Held, Self::Discarded];

    /// Returns the word for metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::Held => "held",
            Self::Discarded => "discarded",
        }
    }
}

/// The state of an [`AdaptiveLimit`](super::AdaptiveLimit) at one moment.
///
/// ```
/// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
///
/// let snapshot = AdaptiveLimit::<_, ManualClock>::new("orders").snapshot();
/// assert_eq!((snapshot.limit, snapshot.in_flight, snapshot.last), (20, 0, None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Calls that may be in flight: those that wait for a response, and those whose response
    /// streams.
    pub limit: usize,
    /// Calls in flight, those whose response streams included.
    pub in_flight: usize,
    /// Calls whose response streams.
    pub streaming: usize,
    /// Calls that were rejected since the limiter was created.
    pub rejected: u64,
    /// The last window that the algorithm was asked about; `None` before the first.
    pub window: Option<Window>,
    /// The latency that the algorithm compares with; `None` while it has none.
    pub baseline: Option<Duration>,
    /// The last decision; `None` before the first.
    pub last: Option<Decision>,
    /// Number of decisions of each kind, in the order of [`Decision`]'s variants.
    pub(super) decisions: [u64; 4],
}

impl Snapshot {
    /// Returns how often the limiter has decided so.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::{AdaptiveLimit, Decision}};
    ///
    /// let snapshot = AdaptiveLimit::<_, ManualClock>::new("orders").snapshot();
    /// assert_eq!(snapshot.decisions(Decision::Lowered), 0);
    /// ```
    pub fn decisions(&self, decision: Decision) -> u64 {
        self.decisions[decision as usize]
    }
}
