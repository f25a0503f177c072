//! Our ways to reject the less important calls, with priorities.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use buttress_core::bulkhead::{Acquire, Bulkhead, BulkheadPermit, Discipline, Place};
use buttress_core::concurrency::{AdaptiveLimit, Gradient2};
use buttress_core::context::CallContext;
use buttress_core::load_shed::{LoadShed, LoadShedPermit};
use buttress_core::shard::compact;
use buttress_core::throttle::{Throttle, ThrottlePermit};
use buttress_core::{
    Clock, Criticality, Failure, FailureKind, ManualClock, Outcome, Permit, Policy, Priority, Progress,
};

use crate::arm::{Admission, Arm, Limiter, Slots};

/// The arms in the order of the tables. The first has no priorities, the second is the default.
pub(crate) const BY_PRIORITY: [Arm; 8] = [
    Arm { name: "adaptive, all alike", make: |seed| Box::new(Adaptive::new(seed, 0.0, None)) },
    Arm { name: "adaptive", make: |seed| Box::new(Adaptive::new(seed, STEP, None)) },
    Arm { name: "shed at 0.9, adaptive, all alike", make: |seed| Box::new(Adaptive::new(seed, 0.0, Some(0.9))) },
    Arm { name: "shed at 0.9, adaptive", make: |seed| Box::new(Adaptive::new(seed, STEP, Some(0.9))) },
    Arm { name: "bulkhead of 40", make: |_| Box::new(Queueing::new(0, 0.0)) },
    Arm { name: "bulkhead of 40, queue of 40", make: |_| Box::new(Queueing::new(40, 0.0)) },
    Arm { name: "bulkhead of 40, queue of 40, 10 % for Sheddable", make: |_| Box::new(Queueing::new(40, 0.1)) },
    Arm { name: "throttle, adaptive", make: |seed| Box::new(Throttled::new(seed)) },
];

/// The arm of which the tests make demands.
#[cfg(test)]
pub(crate) const DEFAULT: Arm = BY_PRIORITY[1];

/// The default of the limit.
const STEP: f64 = 0.2;

/// An adaptive limit, and perhaps a load shed around it.
pub(crate) struct Adaptive {
    shed: Option<LoadShed<ManualClock>>,
    limit: AdaptiveLimit<Gradient2, ManualClock>,
    clock: ManualClock,
    start: Instant,
    permits: Slots<Permits>,
}

type Permits = (Option<LoadShedPermit<ManualClock>>, <AdaptiveLimit<Gradient2, ManualClock> as Policy<()>>::Permit);

impl Adaptive {
    pub(crate) fn new(seed: u64, step: f64, shed_at: Option<f64>) -> Self {
        let clock = ManualClock::new();
        let gradient = Gradient2::builder().seed(seed).build().expect("it is valid");
        let builder = AdaptiveLimit::<_, ManualClock>::builder("simulated").clock(clock.clone()).algorithm(gradient);
        // One thread runs all calls: with shards per core, results would depend on the machine.
        let limit = compact(|| builder.priority_step(step).build()).expect("it is valid");
        let shed = shed_at.map(|at| {
            let builder = LoadShed::<ManualClock>::builder("simulated").clock(clock.clone()).seed(seed);
            compact(|| builder.monitor_at(at, limit.clone()).build()).expect("it is valid")
        });
        let start = clock.now();
        Self { shed, limit, clock, start, permits: Slots::default() }
    }

    /// Returns the share that the load shed rejects.
    #[cfg(test)]
    pub(crate) fn share(&self) -> f64 {
        self.shed.as_ref().map_or(0.0, LoadShed::share)
    }
}

impl Limiter for Adaptive {
    fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission {
        self.clock.set(self.start + now);
        let _entered = CallContext::default().with_priority(priority).enter();
        let shed = match self.shed.as_ref().map(|shed| shed.admit(&())) {
            Some(Err(_)) => return Admission::Rejected,
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        let Ok(permit) = self.limit.admit(&()) else { return Admission::Rejected };
        self.permits.put(id, (shed, permit));
        Admission::Admitted
    }

    fn head(&mut self, now: Duration, id: usize) {
        self.clock.set(self.start + now);
        if let Some((shed, permit)) = self.permits.get(id) {
            permit.progress(Progress::Head);
            shed.iter_mut().for_each(|shed| shed.progress(Progress::Head));
        }
    }

    fn end(&mut self, now: Duration, id: usize, is_answered: bool) {
        self.clock.set(self.start + now);
        if let Some((shed, mut permit)) = self.permits.take(id) {
            let outcome = if is_answered { Outcome::Success } else { Outcome::CANCELLED };
            permit.settle(&outcome);
            shed.into_iter().for_each(|mut shed| shed.settle(&outcome));
        }
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit.limit())
    }
}

/// A bulkhead with a queue, and perhaps a share for the least important calls.
struct Queueing {
    bulkhead: Bulkhead<ManualClock>,
    queue: usize,
    clock: ManualClock,
    start: Instant,
    calls: Slots<Queued>,
    woken: Arc<Mutex<Vec<usize>>>,
}

enum Queued {
    Waits(Place<ManualClock>),
    Has(#[expect(dead_code, reason = "held to keep the place")] BulkheadPermit<ManualClock>),
}

/// Notes which call was woken.
struct Note {
    id: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

impl Queueing {
    fn new(queue: usize, sheddable: f64) -> Self {
        let clock = ManualClock::new();
        let bulkhead = compact(|| Bulkhead::with_clock(40, clock.clone()));
        bulkhead.set_discipline(Discipline::Adaptive);
        if sheddable > 0.0 {
            bulkhead.reserve(Criticality::Sheddable, sheddable).expect("it is valid");
        }
        let start = clock.now();
        Self { bulkhead, queue, clock, start, calls: Slots::default(), woken: Arc::default() }
    }

    fn poll(&mut self, id: usize) -> Option<(usize, bool)> {
        let waker = Waker::from(Arc::new(Note { id, woken: self.woken.clone() }));
        let Some(Queued::Waits(place)) = self.calls.get(id) else { return None };
        match place.poll_acquire(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(Err(_)) => {
                drop(self.calls.take(id));
                Some((id, false))
            }
            Poll::Ready(Ok(permit)) => {
                self.calls.put(id, Queued::Has(permit));
                Some((id, true))
            }
        }
    }
}

impl Limiter for Queueing {
    fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission {
        self.clock.set(self.start + now);
        let _entered = CallContext::default().with_priority(priority).enter();
        let (call, admission) = match self.bulkhead.acquire_or_queue(self.queue) {
            Err(_) => return Admission::Rejected,
            Ok(Acquire::Taken(permit)) => (Queued::Has(permit), Admission::Admitted),
            Ok(Acquire::Queued(place)) => (Queued::Waits(place), Admission::Queued),
        };
        self.calls.put(id, call);
        if admission == Admission::Queued {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        admission
    }

    fn head(&mut self, _: Duration, _: usize) {}

    fn end(&mut self, now: Duration, id: usize, _: bool) {
        self.clock.set(self.start + now);
        drop(self.calls.take(id));
    }

    fn decided(&mut self) -> Option<(usize, bool)> {
        loop {
            let id = self.woken.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if let Some(decided) = self.poll(id) {
                return Some(decided);
            }
        }
    }

    fn limit(&self) -> Option<usize> {
        Some(self.bulkhead.limit())
    }
}

/// A client with a throttle, and a server with an adaptive limit.
struct Throttled {
    throttle: Throttle<ManualClock>,
    server: Adaptive,
    permits: Slots<ThrottlePermit>,
}

impl Throttled {
    fn new(seed: u64) -> Self {
        let server = Adaptive::new(seed, STEP, None);
        let builder = Throttle::<ManualClock>::builder("simulated").clock(server.clock.clone()).seed(seed);
        Self { throttle: compact(|| builder.build()).expect("it is valid"), server, permits: Slots::default() }
    }
}

impl Limiter for Throttled {
    fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission {
        self.server.clock.set(self.server.start + now);
        let _entered = CallContext::default().with_priority(priority).enter();
        let Ok(mut permit) = self.throttle.admit(&()) else { return Admission::Unsent };
        let admission = self.server.admit(now, id, priority);
        if admission == Admission::Rejected {
            permit.settle(&Failure { overload: true, ..Failure::new(FailureKind::Http(503)) }.into());
        } else {
            self.permits.put(id, permit);
        }
        admission
    }

    fn head(&mut self, now: Duration, id: usize) {
        self.server.head(now, id);
        if let Some(permit) = self.permits.get(id) {
            permit.progress(Progress::Head);
        }
    }

    fn end(&mut self, now: Duration, id: usize, is_answered: bool) {
        self.server.end(now, id, is_answered);
        if let Some(mut permit) = self.permits.take(id) {
            permit.settle(&if is_answered { Outcome::Success } else { Outcome::CANCELLED });
        }
    }

    fn limit(&self) -> Option<usize> {
        self.server.limit()
    }
}
