//! The backend at the end of the tiers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;

use crate::service::{Request, Service, respond, service};

/// Workers with one queue. As a database behind its driver, it does not learn that a caller has
/// left, and finishes what it was asked.
#[derive(Clone)]
pub(crate) struct Backend(Arc<State>);

struct State {
    workers: Semaphore,
    mean: Duration,
    /// The share of its calls that fails.
    failures: f64,
    /// Whether every call takes twice as long.
    is_slow: AtomicBool,
    calls: AtomicU64,
    rng: Mutex<Rng>,
}

impl Backend {
    pub(crate) fn new(workers: usize, mean: Duration, failures: f64, seed: u64) -> Self {
        Self(Arc::new(State {
            workers: Semaphore::new(workers),
            mean,
            failures,
            is_slow: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            rng: Mutex::new(Rng::with_seed(seed)),
        }))
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn slow_down(&self, is_slow: bool) {
        self.0.is_slow.store(is_slow, Ordering::Relaxed);
    }

    pub(crate) fn service(&self) -> Service {
        let state = self.0.clone();
        service(tower::service_fn(move |_: Request| {
            state.calls.fetch_add(1, Ordering::Relaxed);
            let (answer, answered) = oneshot::channel();
            tokio::spawn(work(state.clone(), answer));
            async {
                let fails = answered.await.unwrap_or(true);
                let status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
                Ok::<_, Infallible>(respond(status))
            }
        }))
    }
}

async fn work(state: Arc<State>, answer: oneshot::Sender<bool>) {
    let Ok(_worker) = state.workers.acquire().await else { return };
    let (fails, share) = {
        let mut rng = state.rng.lock().unwrap_or_else(PoisonError::into_inner);
        // Exponential service times.
        (rng.f64() < state.failures, -(1.0 - rng.f64()).ln())
    };
    let slower = if state.is_slow.load(Ordering::Relaxed) { 2.0 } else { 1.0 };
    tokio::time::sleep(state.mean.mul_f64(share * slower)).await;
    // The caller may have left.
    let _ = answer.send(fails);
}
