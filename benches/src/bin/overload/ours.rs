//! Our limiters, on a manual clock.

use std::time::{Duration, Instant};

use buttress_core::bulkhead::Bulkhead;
use buttress_core::concurrency::{
    AdaptiveLimit, Aimd, EnvoyGradient, Gradient2, LimitAlgorithm, Pid, Statistic, Vegas,
};
use buttress_core::context::CallContext;
use buttress_core::shard::compact;
use buttress_core::{Clock, ManualClock, Outcome, Permit, Policy, Priority, Progress};

use crate::arm::{Admission, Limiter, Slots};

pub(crate) struct Ours<A: LimitAlgorithm> {
    limit: AdaptiveLimit<A, ManualClock>,
    clock: ManualClock,
    start: Instant,
    permits: Slots<<AdaptiveLimit<A, ManualClock> as Policy<()>>::Permit>,
}

type Builder<A> = buttress_core::concurrency::Builder<A, ManualClock>;

pub(crate) fn default(seed: u64) -> Box<dyn Limiter> {
    make(Gradient2::builder().seed(seed).build().expect("it is valid"), |builder| builder)
}

/// With the parameters of Netflix's library, apart from the three changes that always apply.
pub(crate) fn published(_: u64) -> Box<dyn Limiter> {
    let gradient = Gradient2::builder().average(600).tolerance(1.5).smoothing(0.2).growth(1.0).queue(4.0);
    make(gradient.build().expect("it is valid"), as_netflix)
}

pub(crate) fn vegas(seed: u64) -> Box<dyn Limiter> {
    make(Vegas::default().seed(seed), |builder| builder)
}

pub(crate) fn envoy(seed: u64) -> Box<dyn Limiter> {
    make(EnvoyGradient::builder().seed(seed).build().expect("it is valid"), |builder| builder)
}

pub(crate) fn pid(_: u64) -> Box<dyn Limiter> {
    make(Pid::default(), |builder| builder)
}

pub(crate) fn aimd(_: u64) -> Box<dyn Limiter> {
    make(Aimd::new(0.9, Duration::from_millis(100)).expect("it is valid"), |builder| builder)
}

fn as_netflix<A: LimitAlgorithm>(builder: Builder<A>) -> Builder<A> {
    builder.window(Duration::from_secs(1)).statistic(Statistic::Mean)
}

pub(crate) fn make<A: LimitAlgorithm>(algorithm: A, configure: fn(Builder<A>) -> Builder<A>) -> Box<dyn Limiter> {
    let clock = ManualClock::new();
    let builder = AdaptiveLimit::<_, ManualClock>::builder("simulated").clock(clock.clone()).algorithm(algorithm);
    // One thread runs all calls: with shards per core, results would depend on the machine.
    let limit = compact(|| configure(builder).build()).expect("it is valid");
    let start = clock.now();
    Box::new(Ours { limit, clock, start, permits: Slots::default() })
}

impl<A: LimitAlgorithm> Limiter for Ours<A> {
    fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission {
        self.clock.set(self.start + now);
        // As the gate does: `poll_ready` peeks, and `call` refuses or admits.
        if let Err(refused) = Policy::<()>::peek(&self.limit) {
            let _rejection = self.limit.refuse(&(), refused);
            return Admission::Rejected;
        }
        let _entered = CallContext::default().with_priority(priority).enter();
        let permit = self.limit.admit(&()).ok();
        Admission::new(permit.map(|permit| self.permits.put(id, permit)).is_some())
    }

    fn head(&mut self, now: Duration, id: usize) {
        self.clock.set(self.start + now);
        if let Some(permit) = self.permits.get(id) {
            permit.progress(Progress::Head);
        }
    }

    fn end(&mut self, now: Duration, id: usize, is_answered: bool) {
        self.clock.set(self.start + now);
        if let Some(mut permit) = self.permits.take(id) {
            permit.settle(&if is_answered { Outcome::Success } else { Outcome::CANCELLED });
        }
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit.limit())
    }
}

/// A bulkhead: a limit that does not change.
pub(crate) struct Static {
    bulkhead: Bulkhead<ManualClock>,
    places: Slots<<Bulkhead<ManualClock> as Policy<()>>::Permit>,
}

impl Static {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bulkhead: compact(|| Bulkhead::new(limit)), places: Slots::default() }
    }
}

impl Limiter for Static {
    fn admit(&mut self, _: Duration, id: usize, _: Priority) -> Admission {
        let place = self.bulkhead.admit(&()).ok();
        Admission::new(place.map(|place| self.places.put(id, place)).is_some())
    }

    fn head(&mut self, _: Duration, _: usize) {}

    fn end(&mut self, _: Duration, id: usize, _: bool) {
        drop(self.places.take(id));
    }

    fn limit(&self) -> Option<usize> {
        Some(self.bulkhead.limit())
    }
}
