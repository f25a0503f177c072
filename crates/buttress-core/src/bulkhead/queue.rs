use super::{
    QUEUE_DEADLINE, QUEUE_DELAY, QUEUE_FULL,
    overload::{INTERVAL, Overload},
};
use crate::{Criticality, Reason};
use std::{
    collections::BTreeMap,
    task::Waker,
    time::{Duration, Instant},
};

/// Number of classes of priority.
pub(super) const CLASSES: usize = Criticality::ALL.len();

/// The order in which calls of one class leave the queue. Calls of a more important class go first
/// in any case.
///
/// ```
/// use buttress_core::{ManualClock, bulkhead::{Bulkhead, Discipline}};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(10);
/// assert_eq!(bulkhead.discipline(), Discipline::Fifo);
/// bulkhead.set_discipline(Discipline::Adaptive);
/// assert_eq!(bulkhead.discipline(), Discipline::Adaptive);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Discipline {
    /// First in, first out: no call of the class is overtaken.
    #[default]
    Fifo,
    /// Last in, first out: under overload, places go to calls whose callers have just begun to
    /// wait. The oldest calls wait until their time is over.
    Lifo,
    /// First in, first out while the queue delay stays below [`TARGET`](super::TARGET). Under
    /// overload last in, first out, and calls that have waited for longer than the target are
    /// rejected at once.
    ///
    /// The queue delay is the time that the oldest call in the queue has waited. Overload begins
    /// when it has been above the target for an [`INTERVAL`](super::INTERVAL) without a break, and
    /// ends after an interval in which it did not exceed the target. The call that would get the
    /// next place is not rejected, so that no place stays free while a call waits.
    Adaptive,
}

/// The queue. All decisions about it, and changes of the limit, happen under its lock. A release
/// that sees an empty queue in the state word takes no lock.
#[derive(Debug, Default)]
pub(super) struct Queue {
    discipline: Discipline,
    next: u64,
    /// Waiters by class and number. The state word contains how many there are.
    waiting: [BTreeMap<u64, Waiter>; CLASSES],
    /// Waiters that were granted a place, which is counted in the state word, or refused, and that
    /// have not been polled since.
    decided: BTreeMap<u64, Decision>,
    overload: Overload,
    /// When the last waiter left, and how long it had waited.
    left: Option<(Instant, Duration)>,
}

/// What became of a waiter: it has a place, which is counted in its class if there are shares, or
/// is rejected for a reason.
pub(super) type Decision = Result<Option<Criticality>, &'static Reason>;

#[derive(Debug)]
struct Waiter {
    waker: Waker,
    since: Instant,
    deadline: Option<Instant>,
}

/// A waiter: its class, and its number, which tells its age.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Number {
    pub(super) class: Criticality,
    pub(super) number: u64,
}

/// How many places each class lacks of its share.
pub(super) type Owed = [u32; CLASSES];

/// The wakers of waiters about which something was decided, to be woken outside the lock: a waker
/// may drop a future that has a place in this queue. One needs no allocation.
#[derive(Debug, Default)]
#[must_use = "waiters that are not woken hang"]
pub(super) struct Woken {
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Woken {
    fn push(&mut self, waker: Waker) {
        match &self.first {
            None => self.first = Some(waker),
            Some(_) => self.more.push(waker),
        }
    }

    pub(super) fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}

impl Queue {
    pub(super) fn discipline(&self) -> Discipline {
        self.discipline
    }

    pub(super) fn set_discipline(&mut self, discipline: Discipline) {
        if self.discipline != discipline {
            // Nothing was judged meanwhile.
            self.overload = Overload::default();
        }
        self.discipline = discipline;
    }

    pub(super) fn push(&mut self, class: Criticality, since: Instant, deadline: Option<Instant>) -> Number {
        let number = self.next;
        self.next += 1;
        let waiter = Waiter { waker: Waker::noop().clone(), since, deadline };
        self.waiting[class as usize].insert(number, waiter);
        Number { class, number }
    }

    pub(super) fn waiting(&self, class: Criticality) -> usize {
        self.waiting[class as usize].len()
    }

    /// Judges at each change of the queue whether it is overloaded.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let oldest = self.oldest();
        self.discipline == Discipline::Adaptive && self.overload.look(oldest, now)
    }

    /// Returns how long the oldest waiter has waited; without a waiter, how long the last one did,
    /// if it left within an interval.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        let last = || self.left.filter(|(at, _)| now.saturating_duration_since(*at) <= INTERVAL);
        let oldest = self.oldest().map(|since| now.saturating_duration_since(since));
        oldest.or_else(|| last().map(|(_, waited)| waited)).unwrap_or_default()
    }

    /// Returns the waiter that gets the next place: of the most important class that lacks places
    /// of its share, otherwise of the most important class.
    pub(super) fn first(&self, owed: &Owed) -> Option<Number> {
        let rank = |class: &Criticality| (owed[*class as usize] == 0, *class as usize);
        let class = Criticality::ALL.into_iter().filter(|class| self.waiting(*class) > 0).min_by_key(rank)?;
        Some(Number { class, number: self.end(class, !self.newest_first())? })
    }

    /// Returns the waiter to evict for a new one of `class`: the one that would be served last, if
    /// the new one goes before it. Equals do not evict each other.
    fn last_behind(&self, class: Criticality, owed: &Owed) -> Option<Number> {
        // A share puts only as many waiters of its class first as places are lacking. Otherwise a
        // crowd of a class below its share would evict all others.
        let rank = |class: Criticality, before: usize| (owed[class as usize] as usize <= before, class as usize);
        let waiting = Criticality::ALL.into_iter().filter(|class| self.waiting(*class) > 0);
        let last = waiting.max_by_key(|class| rank(*class, self.waiting(*class) - 1))?;
        if rank(class, self.waiting(class)) >= rank(last, self.waiting(last) - 1) {
            return None;
        }
        Some(Number { class: last, number: self.end(last, self.newest_first())? })
    }

    pub(super) fn deadline(&self, waiter: Number) -> Option<Instant> {
        self.waiting[waiter.class as usize].get(&waiter.number)?.deadline
    }

    /// Grants a place to a waiter, which is counted in this class.
    pub(super) fn grant(&mut self, waiter: Number, counted: Option<Criticality>, now: Instant, woken: &mut Woken) {
        self.decide(waiter, Ok(counted), now, woken);
    }

    /// Rejects a waiter whose deadline has passed.
    pub(super) fn expire(&mut self, waiter: Number, now: Instant, woken: &mut Woken) {
        self.decide(waiter, Err(&QUEUE_DEADLINE), now, woken);
    }

    /// Rejects one waiter that is less important than a new one of `class`. Returns whether there
    /// is one.
    pub(super) fn evict(&mut self, class: Criticality, owed: &Owed, now: Instant, woken: &mut Woken) -> bool {
        let last = self.last_behind(class, owed);
        last.is_some_and(|last| self.decide(last, Err(&QUEUE_FULL), now, woken))
    }

    /// Rejects a waiter that is older than the target, apart from the one that gets the next place.
    /// Returns whether there is one.
    pub(super) fn shed_one(&mut self, owed: &Owed, now: Instant, woken: &mut Woken) -> bool {
        let first = self.first(owed);
        let old = Criticality::ALL.into_iter().find_map(|class| {
            let (number, waiter) = self.waiting[class as usize].first_key_value()?;
            let oldest = Number { class, number: *number };
            (Overload::is_late(waiter.since, now) && Some(oldest) != first).then_some(oldest)
        });
        old.is_some_and(|old| self.decide(old, Err(&QUEUE_DELAY), now, woken))
    }

    fn decide(&mut self, waiter: Number, decision: Decision, now: Instant, woken: &mut Woken) -> bool {
        let Some(known) = self.waiting[waiter.class as usize].remove(&waiter.number) else { return false };
        self.left = Some((now, now.saturating_duration_since(known.since)));
        self.decided.insert(waiter.number, decision);
        woken.push(known.waker);
        true
    }

    /// Removes and returns the decision about a waiter, if there is one.
    pub(super) fn decision(&mut self, waiter: Number) -> Option<Decision> {
        self.decided.remove(&waiter.number)
    }

    /// Replaces the waker of a waiter, and returns the one before.
    pub(super) fn set_waker(&mut self, waiter: Number, waker: &Waker) -> Option<Waker> {
        let known = self.waiting[waiter.class as usize].get_mut(&waiter.number)?;
        (!known.waker.will_wake(waker)).then(|| std::mem::replace(&mut known.waker, waker.clone()))
    }

    /// Removes a waiter that gives up. Returns its waker, if nothing was decided about it.
    pub(super) fn leave(&mut self, waiter: Number, now: Instant) -> Option<Waker> {
        let known = self.waiting[waiter.class as usize].remove(&waiter.number)?;
        self.left = Some((now, now.saturating_duration_since(known.since)));
        Some(known.waker)
    }

    fn newest_first(&self) -> bool {
        match self.discipline {
            Discipline::Fifo => false,
            Discipline::Lifo => true,
            Discipline::Adaptive => self.overload.is_on(),
        }
    }

    /// Returns the oldest or the newest waiter of a class.
    fn end(&self, class: Criticality, oldest: bool) -> Option<u64> {
        let waiting = &self.waiting[class as usize];
        let end = if oldest { waiting.first_key_value() } else { waiting.last_key_value() };
        end.map(|(number, _)| *number)
    }

    fn oldest(&self) -> Option<Instant> {
        let oldest = self.waiting.iter().filter_map(BTreeMap::first_key_value).min_by_key(|(number, _)| **number);
        oldest.map(|(_, waiter)| waiter.since)
    }
}
