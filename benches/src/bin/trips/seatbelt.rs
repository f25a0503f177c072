//! seatbelt, through its tower side, on a manual clock. The random generator of its stages cannot
//! be seeded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use seatbelt::breaker::{Breaker as SeatbeltBreaker, BreakerLayer, HalfOpenMode};
use seatbelt::typestates::Set;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::ClockControl;
use tower::{Service, ServiceBuilder};

use crate::breaker::{Backend, Breaker, Failed, call};

struct Seatbelt<S> {
    service: S,
    clock: ClockControl,
    now: Duration,
    closed: Arc<AtomicBool>,
    rejected: Arc<AtomicBool>,
}

type Answer = Result<(), Failed>;
type Layer = BreakerLayer<bool, Answer, Set, Set>;

pub(crate) fn default(_: u64) -> Box<dyn Breaker> {
    make(|layer| layer)
}

/// The failure rate of the others, and a single probe.
pub(crate) fn half(_: u64) -> Box<dyn Breaker> {
    make(|layer| layer.failure_threshold(0.5).half_open_mode(HalfOpenMode::quick()))
}

fn make(configure: fn(Layer) -> Layer) -> Box<dyn Breaker> {
    let clock = ClockControl::new();
    let context = ResilienceContext::<bool, Answer>::new(clock.to_clock());
    let (closed, rejected) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let [opened_flag, closed_flag] = [&closed, &closed].map(Arc::clone);
    let rejected_flag = Arc::clone(&rejected);
    let layer = SeatbeltBreaker::layer("simulated", &context)
        .recovery_with(|result, _| if result.is_ok() { RecoveryInfo::never() } else { RecoveryInfo::retry() })
        .rejected_input_error(move |_, _| {
            rejected_flag.store(true, Ordering::Relaxed);
            Failed
        })
        .on_opened(move |_, _| opened_flag.store(false, Ordering::Relaxed))
        .on_closed(move |_, _| closed_flag.store(true, Ordering::Relaxed));
    let service = ServiceBuilder::new().layer(configure(layer)).service(Backend);
    Box::new(Seatbelt { service, clock, now: Duration::ZERO, closed, rejected })
}

impl<S: Service<bool>> Breaker for Seatbelt<S> {
    fn call(&mut self, now: Duration, fails: bool) -> bool {
        self.clock.advance(now - self.now);
        self.now = now;
        self.rejected.store(false, Ordering::Relaxed);
        let _ = call(&mut self.service, fails);
        !self.rejected.load(Ordering::Relaxed)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}
