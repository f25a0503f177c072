use super::{Deadlines, EXCEEDED, EXPIRED, Mode, State, TOO_SHORT, Terms, terms::earlier};
use crate::context::CallContext;
use crate::shard::Ticket;
use crate::{Clock, Label, Rejection, timeline};
use std::time::{Duration, Instant};

/// A call that was counted and not started yet, because its deadline is near, or only observed.
#[derive(Debug)]
#[must_use]
pub struct Near {
    ticket: Ticket<State>,
}

impl Near {
    #[inline]
    pub(super) fn new(ticket: Ticket<State>) -> Self {
        Self { ticket }
    }

    /// Starts a call whose deadline is near, or is only observed, by the precise clock.
    ///
    /// # Errors
    /// As [`Deadlines::start`].
    #[inline(never)]
    pub fn start<C: Clock>(
        self,
        deadlines: &Deadlines<C>,
        context: &mut CallContext,
        terms: &Terms,
    ) -> Result<(Started, Option<Instant>), Rejection> {
        let (Self { ticket }, clock) = (self, &deadlines.clock);
        let now = clock.now();
        let own = terms.limit().and_then(|limit| now.checked_add(limit));
        let deadline = earlier(earlier(context.deadline, terms.until), own);
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let is_observed = ticket.mode() == Mode::Observe;
        if left.is_zero() || left < terms.min_useful {
            let rejects = match ticket.mode() {
                Mode::Observe => false,
                Mode::Enforce => ticket.valve.rejects(clock, ticket.shard()),
                Mode::EnforceAll => true,
            };
            if rejects {
                ticket.expired.add(1);
                return Err(ticket.labels.reject(if left.is_zero() { &EXPIRED } else { &TOO_SHORT }));
            }
            ticket.observed.add(1);
            if is_observed {
                return Ok((Started { ticket, had: UNLIMITED }, None));
            }
            // With the deadline that has passed, every layer inside would reject the call.
            let limit = earlier(terms.default, terms.max);
            context.deadline = limit.and_then(|limit| now.checked_add(limit));
            let had = context.deadline.and(limit).map_or(UNLIMITED, nanos);
            return Ok((Started { ticket, had }, None));
        }
        if is_observed {
            return Ok((Started { ticket, had: UNLIMITED }, deadline));
        }
        context.deadline = deadline;
        Ok((Started { ticket, had: deadline.map_or(UNLIMITED, |_| nanos(left)) }, None))
    }
}

/// The nanoseconds of a call that has no deadline of this handle.
pub(super) const UNLIMITED: u64 = u64::MAX;

pub(super) fn nanos(time: Duration) -> u64 {
    timeline::nanos(time).min(UNLIMITED - 1)
}

/// A call that has started. Made by [`Deadlines::start`].
///
/// Two words, so that it travels in registers: it is moved with every call.
#[derive(Debug)]
#[must_use]
pub struct Started {
    ticket: Ticket<State>,
    /// The nanoseconds that were left at the start.
    had: u64,
}

impl Started {
    #[inline]
    pub(super) fn new(ticket: Ticket<State>, had: u64) -> Self {
        Self { ticket, had }
    }

    /// Returns the time that was left when the call started. `None` if no deadline is enforced.
    #[inline]
    pub fn had(&self) -> Option<Duration> {
        (self.had != UNLIMITED).then(|| Duration::from_nanos(self.had))
    }

    /// Returns the name for rejections, if there is one.
    #[inline]
    pub fn label(&self) -> Option<Label> {
        self.ticket.labels.named()
    }

    /// Counts the call as one whose deadline passed, and returns the rejection for it.
    #[cold]
    pub fn exceed(&self) -> Rejection {
        self.ticket.exceeded.add(1);
        self.ticket.labels.reject(&EXCEEDED).with_limit(self.had().unwrap_or_default())
    }
}
