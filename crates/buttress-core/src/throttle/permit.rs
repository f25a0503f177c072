use super::State;
use crate::buckets::{slot_of, uncount};
use crate::shard::Ticket;
use crate::{FailureKind, Ignored, Outcome, Permit, Progress};

/// The permit of a call through a [`Throttle`](super::Throttle).
///
/// ```
/// use buttress_core::{ManualClock, Outcome, Permit, Policy, throttle::Throttle};
///
/// let throttle = Throttle::<ManualClock>::new("search");
/// throttle.admit("a request").unwrap().settle(&Outcome::CANCELLED);
/// assert_eq!(throttle.counts().requests, 0, "the backend did not say whether it is overloaded");
/// ```
#[derive(Debug)]
#[must_use = "dropping it leaves the request counted as not accepted"]
pub struct ThrottlePermit {
    ticket: Ticket<State>,
    /// The bucket of the request.
    tag: u32,
    is_accepted: bool,
}

impl ThrottlePermit {
    #[inline]
    pub(super) fn new(ticket: Ticket<State>, tag: u32) -> Self {
        Self { ticket, tag, is_accepted: false }
    }

    #[inline]
    fn accept(&mut self) {
        if !self.is_accepted {
            self.is_accepted = true;
            self.ticket.count_accepted(&self.ticket.lanes[self.ticket.shard()], self.tag);
        }
    }

    #[cold]
    fn take_back_acceptance(&mut self) {
        if std::mem::take(&mut self.is_accepted) {
            uncount(&self.ticket.lanes[self.ticket.shard()].accepted[slot_of(self.tag)], self.tag);
        }
    }

    /// Makes as if the call had not been made.
    #[cold]
    pub(super) fn take_back(&mut self) {
        self.take_back_acceptance();
        uncount(&self.ticket.lanes[self.ticket.shard()].requests[slot_of(self.tag)], self.tag);
    }
}

impl Permit for ThrottlePermit {
    #[inline]
    fn settle(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Success => self.accept(),
            Outcome::Failure(failure) if failure.overload => self.take_back_acceptance(),
            Outcome::Ignored(Ignored::LocalReject) => self.take_back(),
            Outcome::Failure(failure) => match failure.kind {
                // Without an answer it is unknown what the backend would have done. After the head
                // of one it is not.
                FailureKind::Connect | FailureKind::Transport | FailureKind::Timeout if !self.is_accepted => {
                    self.take_back();
                }
                _ => self.accept(),
            },
            Outcome::Ignored(_) if !self.is_accepted => self.take_back(),
            Outcome::Ignored(_) => {}
        }
    }

    /// A stream of hours is accepted when it begins. If its head turns out to be a rejection,
    /// `settle` takes that back.
    #[inline]
    fn progress(&mut self, progress: Progress) {
        if progress == Progress::Head {
            self.accept();
        }
    }
}
