//! Peers that wrap a closure, not a service. They keep no permit in a future and have no
//! `poll_ready`, so they do less than a layer must. They show the cost of the algorithm alone. Both
//! can wrap a future too, which costs more.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use failsafe::{CircuitBreaker, backoff, failure_policy};
use recloser::Recloser;

use crate::caller::{Around, Caller, call};
use crate::family::{CONSECUTIVE, DEFAULTS, LAST_100, OPEN, OVER_RATE, RATE_LIMIT};
use crate::inner::{Bare, Failure};
use crate::situation::{AllFail, FAIL, Kept, MANY_IN_A_ROW, MostFail, NEARLY_ALL, Rejecting, Situation, TenthFails};
use crate::subject::{Kind::Wrapper, Rows};

const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn add(rows: &mut Rows) {
    rows.of(Wrapper, "failsafe(consecutive), no service", CONSECUTIVE)
        .caller(Kept, consecutive::<Kept>(5))
        .caller(TenthFails, consecutive::<TenthFails>(MANY_IN_A_ROW))
        .caller(AllFail, consecutive::<AllFail>(u32::MAX));
    rows.of(Wrapper, "failsafe(defaults), no service", DEFAULTS)
        .caller(Kept, failsafe::<Kept, _>(failsafe::Config::new().build()));
    rows.of(Wrapper, "recloser, no service", LAST_100)
        .caller(Kept, recloser::<Kept>(0.5))
        .caller(TenthFails, recloser::<TenthFails>(0.5))
        .caller(MostFail, recloser::<MostFail>(NEARLY_ALL));
    rows.of(Wrapper, "governor, no service", RATE_LIMIT)
        .caller(Kept, governor::<Kept>(governor::Quota::per_second(NonZeroU32::MAX)));
    let one_an_hour = governor::Quota::per_hour(NonZeroU32::MIN);
    rows.of(Wrapper, "governor, no service", OVER_RATE).caller(Rejecting, tripped(governor::<Rejecting>(one_an_hour)));
    rows.of(Wrapper, "recloser, no service", OPEN).caller(Rejecting, tripped(recloser::<Rejecting>(0.5)));
    rows.of(Wrapper, "failsafe(consecutive), no service", OPEN).caller(Rejecting, tripped(consecutive::<Rejecting>(5)));
}

fn consecutive<T: Situation>(failures: u32) -> impl Caller {
    let policy = failure_policy::consecutive_failures(failures, backoff::constant(HOUR));
    failsafe::<T, _>(failsafe::Config::new().failure_policy(policy).build())
}

/// Its breaker is a handle that is cheap to clone.
fn failsafe<T: Situation, B: CircuitBreaker + Clone + Send + Sync + 'static>(breaker: B) -> impl Caller {
    Around(move |req| breaker.call(|| bare::<T>(req)).is_ok())
}

/// Its default rule: a ring of the last 100 results.
fn recloser<T: Situation>(share: f32) -> impl Caller {
    let recloser = Arc::new(Recloser::custom().error_rate(share).closed_len(100).open_wait(HOUR).build());
    Around(move |req| recloser.call(|| bare::<T>(req)).is_ok())
}

/// Its default clock, which reads the time-stamp counter of the processor.
fn governor<T: Situation>(quota: governor::Quota) -> impl Caller {
    let limiter = Arc::new(governor::RateLimiter::direct(quota));
    Around(move |req| limiter.check().is_ok() && bare::<T>(req).is_ok())
}

fn tripped(mut caller: impl Caller) -> impl Caller {
    for _ in 0..1_000 {
        call(&mut caller, FAIL);
    }
    caller
}

/// A call of the bare service, as the closure that these wrap.
#[inline(always)]
fn bare<T: Situation>(req: u64) -> Result<(), Failure> {
    if call(&mut Bare::<T>::new(), req) { Ok(()) } else { Err(Failure) }
}
