use super::State;
use crate::shard::Ticket;
use crate::{Clock, Outcome, Permit, Progress};
use std::{fmt, time::Instant};

/// The permit of a call through a [`LoadShed`](super::LoadShed).
///
/// One call in eight is timed, to the head of its response, or to its end if that comes first.
///
/// ```
/// use buttress_core::{ManualClock, Outcome, Permit, Policy, load_shed::LoadShed};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let shed = LoadShed::<ManualClock>::builder("orders").clock(clock.clone()).build()?;
/// for _interval in 0..10 {
///     let mut permit = shed.admit("a request")?;
///     clock.advance(Duration::from_millis(100));
///     permit.settle(&Outcome::Success);
/// }
/// assert!(shed.median_time().unwrap() > Duration::from_millis(75));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it loses the time of the call"]
pub struct LoadShedPermit<C: Clock>(Option<(Ticket<State<C>>, Instant)>);

impl<C: Clock> LoadShedPermit<C> {
    #[inline]
    pub(super) fn untimed() -> Self {
        Self(None)
    }

    #[inline]
    pub(super) fn timed(ticket: Ticket<State<C>>) -> Self {
        let now = ticket.clock.now();
        Self(Some((ticket, now)))
    }

    #[cold]
    fn record((ticket, started): (Ticket<State<C>>, Instant)) {
        ticket.times.record(ticket.clock.now().saturating_duration_since(started));
    }
}

impl<C: Clock> Permit for LoadShedPermit<C> {
    /// Calls that fail, or that are dropped, take time as well.
    const LEARNS: bool = false;

    #[inline]
    fn settle(&mut self, _: &Outcome) {
        if let Some(timed) = self.0.take() {
            Self::record(timed);
        }
    }

    #[inline]
    fn progress(&mut self, _: Progress) {
        if let Some(timed) = self.0.take() {
            Self::record(timed);
        }
    }
}

impl<C: Clock> fmt::Debug for LoadShedPermit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShedPermit").field("is_timed", &self.0.is_some()).finish()
    }
}
