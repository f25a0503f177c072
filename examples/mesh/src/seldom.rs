//! Limits how often a line is logged, and counts what was left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one line pass per period.
#[derive(Debug)]
pub(crate) struct Seldom {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    pub(crate) fn every(period: Duration) -> Self {
        Self { period, state: Mutex::default() }
    }

    /// Returns the number of lines left out since the last one, if a line may be logged now.
    pub(crate) fn passes(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.period) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use buttress::policy::{Clock, TokioClock};

    use super::*;

    #[test]
    fn one_line_passes_per_period_and_tells_how_many_did_not() {
        let (seldom, start) = (Seldom::every(Duration::from_secs(10)), TokioClock.now());
        let at = |seconds| seldom.passes(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(9), at(10), at(11), at(30)], [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
