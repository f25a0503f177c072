//! tower-resilience, through its layer.
//!
//! Its clock cannot be set, but with its default window, which counts calls, it reads the clock
//! only to check whether the open time of 30 s is over. So its open time is set to 2 ms. The
//! simulation rejects the calls within 30 s of virtual time after it opened without asking it, and
//! waits 2 ms before the next call.

#![expect(clippy::disallowed_methods, reason = "its clock cannot be set")]

use std::thread;
use std::time::{Duration, Instant};

use tower::Layer;
use tower_resilience_circuitbreaker::{
    CircuitBreaker, CircuitBreakerConfigBuilder, CircuitBreakerError, CircuitBreakerHandle, CircuitBreakerLayer,
    CircuitState, DefaultClassifier,
};

use crate::breaker::{Backend, Breaker, call};

/// Its default open time.
const OPEN: Duration = Duration::from_secs(30);
const REAL_OPEN: Duration = Duration::from_millis(2);

struct TowerResilience {
    service: CircuitBreaker<Backend, DefaultClassifier>,
    handle: CircuitBreakerHandle,
    /// When it opened, in virtual and in real time.
    opened: Option<(Duration, Instant)>,
}

pub(crate) fn default(_: u64) -> Box<dyn Breaker> {
    make(CircuitBreakerLayer::builder())
}

pub(crate) fn consecutive(_: u64) -> Box<dyn Breaker> {
    make(CircuitBreakerLayer::builder().consecutive_failures(5))
}

fn make(builder: CircuitBreakerConfigBuilder<DefaultClassifier>) -> Box<dyn Breaker> {
    let (layer, handle) = builder.wait_duration_in_open(REAL_OPEN).build_with_handle().expect("it is valid");
    Box::new(TowerResilience { service: layer.layer(Backend), handle, opened: None })
}

impl Breaker for TowerResilience {
    fn call(&mut self, now: Duration, fails: bool) -> bool {
        if let Some((opened, really)) = self.opened {
            if now < opened + OPEN {
                return false;
            }
            thread::sleep(REAL_OPEN.saturating_sub(really.elapsed()));
            self.opened = None;
        }
        let admitted = !matches!(call(&mut self.service, fails), Err(CircuitBreakerError::OpenCircuit));
        if admitted && fails && self.handle.state() == CircuitState::Open {
            self.opened = Some((now, Instant::now()));
        }
        admitted
    }

    fn is_closed(&self) -> bool {
        self.handle.state() == CircuitState::Closed
    }
}
