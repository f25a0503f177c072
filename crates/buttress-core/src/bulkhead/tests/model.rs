use super::*;
use crate::bulkhead::{Acquire, Discipline};
use crate::context::CallContext;
use proptest::prelude::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

/// A naive model of a bulkhead, without atomics, in milliseconds.
#[derive(Debug)]
struct Model {
    limit: usize,
    discipline: Discipline,
    shares: [usize; 4],
    in_flight: [usize; 4],
    queue: Vec<Waiter>,
    decided: Vec<(usize, Option<&'static Reason>)>,
    now: usize,
    overloaded: bool,
    /// For each millisecond: whether a waiter was late at some moment of it, and at every one.
    late: Vec<(bool, bool)>,
}

#[derive(Clone, Debug)]
struct Waiter {
    id: usize,
    class: usize,
    since: usize,
    deadline: Option<usize>,
}

impl Model {
    fn new(limit: usize, discipline: Discipline, shares: [usize; 4]) -> Self {
        let late = vec![(false, false)];
        let (in_flight, queue, decided) = ([0; 4], Vec::new(), Vec::new());
        Self { limit, discipline, shares, in_flight, queue, decided, now: 0, overloaded: false, late }
    }

    fn has_room(&self) -> bool {
        self.in_flight.iter().sum::<usize>() < self.limit
    }

    fn take(&mut self, class: usize) -> bool {
        let taken = self.queue.is_empty() && self.has_room();
        self.in_flight[class] += usize::from(taken);
        taken
    }

    fn owed(&self, class: usize) -> usize {
        // Shares are in tenths.
        (self.limit * self.shares[class]).div_ceil(10).saturating_sub(self.in_flight[class])
    }

    /// The waiters in the order in which they would be served if no class lacked more places than
    /// it has waiters, each with its rank.
    fn order(&self) -> Vec<((bool, usize), Waiter)> {
        let newest_first =
            self.discipline == Discipline::Lifo || self.discipline == Discipline::Adaptive && self.overloaded;
        let mut order = Vec::new();
        for class in 0..4 {
            let mut waiters: Vec<_> = self.queue.iter().filter(|waiter| waiter.class == class).cloned().collect();
            if newest_first {
                waiters.reverse();
            }
            let owed = self.owed(class);
            order.extend(waiters.into_iter().enumerate().map(|(n, waiter)| ((n >= owed, class), waiter)));
        }
        order.sort_by_key(|(rank, _)| *rank);
        order
    }

    fn decide(&mut self, id: usize, reason: Option<&'static Reason>) {
        self.queue.retain(|waiter| waiter.id != id);
        self.decided.push((id, reason));
    }

    fn is_late(&self, waiter: &Waiter) -> bool {
        self.now - waiter.since > 5
    }

    /// Notes whether a waiter is late, at any change of the queue or the time.
    fn note(&mut self) {
        let late = self.queue.iter().any(|waiter| self.is_late(waiter));
        let (some, every) = &mut self.late[self.now];
        (*some, *every) = (*some || late, *every && late);
    }

    fn judge(&mut self) {
        let last = &self.late[self.late.len().saturating_sub(100)..];
        self.overloaded = match self.overloaded {
            true => last.iter().any(|(some, _)| *some),
            false => last.len() == 100 && last.iter().all(|(_, every)| *every),
        };
    }

    fn advance(&mut self, time: usize) {
        for _ in 0..time {
            self.now += 1;
            let late = self.queue.iter().any(|waiter| self.is_late(waiter));
            self.late.push((late, late));
        }
    }

    fn serve(&mut self) {
        self.judge();
        while self.has_room() && !self.queue.is_empty() {
            let (_, first) = self.order().remove(0);
            if first.deadline.is_some_and(|deadline| deadline <= self.now) {
                self.decide(first.id, Some(&QUEUE_DEADLINE));
            } else {
                self.in_flight[first.class] += 1;
                self.decide(first.id, None);
            }
        }
        self.shed();
    }

    fn shed(&mut self) {
        self.note();
        self.judge();
        if self.discipline == Discipline::Adaptive && self.overloaded {
            for (_, waiter) in self.order().into_iter().skip(1) {
                if self.is_late(&waiter) {
                    self.decide(waiter.id, Some(&QUEUE_DELAY));
                }
            }
            self.note();
        }
    }

    fn queue(&mut self, max: usize, waiter: Waiter) -> Result<bool, &'static Reason> {
        if self.take(waiter.class) {
            return Ok(true);
        }
        if max == 0 {
            return Err(&FULL);
        }
        self.shed();
        if self.take(waiter.class) {
            return Ok(true);
        }
        if waiter.deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err(&QUEUE_DEADLINE);
        }
        if self.queue.len() >= max {
            let before = self.queue.iter().filter(|other| other.class == waiter.class).count();
            let rank = (before >= self.owed(waiter.class), waiter.class);
            match self.order().pop() {
                Some((last, evicted)) if rank < last => self.decide(evicted.id, Some(&QUEUE_FULL)),
                _ => return Err(&QUEUE_FULL),
            }
            self.queue.push(waiter);
            self.note();
        } else {
            self.queue.push(waiter);
            self.serve();
        }
        Ok(false)
    }

    fn release(&mut self, class: usize) {
        self.in_flight[class] -= 1;
        if self.queue.is_empty() {
            return;
        }
        self.serve();
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.note();
        self.judge();
        match self.decided.iter().position(|(id, _)| *id == waiter.id).map(|at| self.decided.remove(at)) {
            Some((_, None)) => self.release(waiter.class),
            Some(_) => {}
            None => self.queue.retain(|queued| queued.id != waiter.id),
        }
        self.note();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Queue { max: usize, class: usize, deadline: Option<usize> },
    Poll(usize),
    GiveUp(usize),
    Finish(usize),
    SetLimit(usize),
    Advance(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let deadline = prop_oneof![3 => Just(None), 1 => (0usize..20).prop_map(Some)];
    prop_oneof![
        1 => (0usize..4).prop_map(Step::Take),
        3 => (0usize..5, 0usize..4, deadline)
            .prop_map(|(max, class, deadline)| Step::Queue { max, class, deadline }),
        1 => (0usize..8).prop_map(Step::Poll),
        1 => (0usize..8).prop_map(Step::GiveUp),
        1 => (0usize..8).prop_map(Step::Finish),
        1 => (0usize..12).prop_map(Step::SetLimit),
        1 => prop_oneof![0usize..8, 90usize..110].prop_map(Step::Advance),
    ]
}

fn discipline() -> impl Strategy<Value = Discipline> {
    prop_oneof![Just(Discipline::Fifo), Just(Discipline::Lifo), Just(Discipline::Adaptive)]
}

proptest! {
    /// With one shard, which keeps no spares, and with four, which keep some from a limit of 16 on.
    #[test]
    fn it_does_what_the_model_does(
        shards in prop_oneof![Just(1usize), Just(4)],
        limit in prop_oneof![0usize..6, 14usize..20],
        discipline in discipline(),
        shares in prop_oneof![Just([0usize; 4]), [0usize..4, 0usize..4, 0usize..2, 0usize..3]],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let clock = ManualClock::new();
        let start = clock.now();
        let bulkhead = Bulkhead::with_shards(limit, None, shards, clock.clone());
        bulkhead.set_discipline(discipline);
        for (class, share) in Criticality::ALL.into_iter().zip(shares) {
            if shares != [0; 4] {
                bulkhead.reserve(class, share as f64 / 10.0).unwrap();
            }
        }
        let mut model = Model::new(limit, discipline, shares);
        let (mut permits, mut places, mut next) = (Vec::new(), Vec::<(Waiter, Place)>::new(), 0);
        for step in steps {
            match step {
                Step::Take(class) => {
                    let _entered = CallContext::default().with_priority(Criticality::ALL[class].into()).enter();
                    let taken = take(&bulkhead);
                    prop_assert_eq!(taken.is_some(), model.take(class));
                    permits.extend(taken.map(|permit| (class, permit)));
                }
                Step::Queue { max, class, deadline } => {
                    let deadline = deadline.map(|left| model.now + left);
                    let mut context = CallContext::default().with_priority(Criticality::ALL[class].into());
                    context.deadline = deadline.map(|at| start + at as u32 * MS);
                    let _entered = context.enter();
                    let waiter = Waiter { id: next, class, since: model.now, deadline };
                    let expected = model.queue(max, waiter.clone());
                    match bulkhead.acquire_or_queue(max) {
                        Ok(Acquire::Taken(permit)) => {
                            prop_assert_eq!(expected, Ok(true));
                            permits.push((class, permit));
                        }
                        Ok(Acquire::Queued(place)) => {
                            prop_assert_eq!(expected, Ok(false));
                            places.push((waiter, place));
                            next += 1;
                        }
                        Err(rejection) => prop_assert_eq!(expected, Err(rejection.reason())),
                    }
                }
                Step::Poll(n) if n < places.len() => {
                    let (waiter, place) = &mut places[n];
                    let decided = model.decided.iter().position(|(id, _)| *id == waiter.id);
                    let expected = decided.map(|at| model.decided.remove(at).1);
                    match place.poll_acquire(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(result) => {
                            prop_assert_eq!(expected, Some(result.as_ref().err().map(Rejection::reason)));
                            let class = waiter.class;
                            permits.extend(result.ok().map(|permit| (class, permit)));
                            drop(places.remove(n));
                        }
                        Poll::Pending => prop_assert_eq!(expected, None),
                    }
                }
                Step::GiveUp(n) if n < places.len() => {
                    let (waiter, place) = places.remove(n);
                    drop(place);
                    model.forget(&waiter);
                }
                Step::Finish(n) if n < permits.len() => {
                    let (class, permit) = permits.remove(n);
                    drop(permit);
                    model.release(class);
                }
                Step::SetLimit(limit) => {
                    bulkhead.set_limit(limit);
                    model.limit = limit;
                    if !model.queue.is_empty() {
                        model.serve();
                    }
                }
                Step::Advance(time) => {
                    clock.advance(time as u32 * MS);
                    model.advance(time);
                }
                Step::Poll(_) | Step::GiveUp(_) | Step::Finish(_) => {}
            }
            let seen = (bulkhead.limit(), bulkhead.in_flight(), bulkhead.waiting());
            prop_assert_eq!(seen, (model.limit, model.in_flight.iter().sum::<usize>(), model.queue.len()));
            for class in Criticality::ALL {
                let waiting = model.queue.iter().filter(|waiter| waiter.class == class as usize).count();
                prop_assert_eq!(bulkhead.waiting_of(class), waiting);
                let in_flight = bulkhead.in_flight_of(class).unwrap_or(model.in_flight[class as usize]);
                prop_assert_eq!(in_flight, model.in_flight[class as usize]);
            }
        }
        drop((permits, places));
        prop_assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
        for class in Criticality::ALL {
            prop_assert_eq!(bulkhead.in_flight_of(class).unwrap_or(0), 0);
        }
    }
}
