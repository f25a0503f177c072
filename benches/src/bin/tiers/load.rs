//! Users, who do not wait for the answers of others.

#![expect(clippy::disallowed_methods, reason = "measures time on the paused clock; no layer is involved")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use crate::service::{Service, get};

/// How long a user waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// A call of a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// When it was made, in seconds from the start.
    pub(crate) at: f64,
    /// Whether it was answered within the user's patience.
    pub(crate) is_good: bool,
}

/// Makes `rate` calls per second for `lasts`, and waits for their ends. `at` runs at the start of
/// each second.
pub(crate) fn run(
    seed: u64,
    rate: f64,
    lasts: Duration,
    make: impl FnOnce() -> Service,
    at: impl Fn(u64),
) -> Vec<Call> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without IO needs nothing from the system");
    let calls = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        let (service, start, mut rng) = (make(), Instant::now(), Rng::with_seed(seed));
        let (mut next, mut second, mut users) = (0.0, 0, JoinSet::new());
        while next < lasts.as_secs_f64() {
            sleep_until(start + Duration::from_secs_f64(next)).await;
            while second <= next as u64 {
                at(second);
                second += 1;
            }
            users.spawn(user(service.clone(), next, calls.clone()));
            next += -(1.0 - rng.f64()).ln() / rate;
        }
        users.join_all().await;
    });
    std::mem::take(&mut calls.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn user(service: Service, at: f64, calls: Arc<Mutex<Vec<Call>>>) {
    let answer = tokio::time::timeout(PATIENCE, service.oneshot(get())).await;
    let is_good = answer.is_ok_and(|answer| answer.is_ok_and(|response| response.status().is_success()));
    calls.lock().unwrap_or_else(PoisonError::into_inner).push(Call { at, is_good });
}
