//! Peers that wrap a closure, not a service. They keep no permit in a future and have no
//! `poll_ready`, so they do less than a layer must. They show the cost of the algorithm alone.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use failsafe::CircuitBreaker;
use failsafe::{backoff, failure_policy};
use governor::{Quota, RateLimiter};
use recloser::Recloser;

use crate::subject::{Bare, Family, Kind, Subject, call};

pub(crate) fn subjects() -> Vec<Subject> {
    let recloser = Arc::new(Recloser::custom().build());
    let open = backoff::constant(Duration::from_secs(3_600));
    let consecutive =
        Arc::new(failsafe::Config::new().failure_policy(failure_policy::consecutive_failures(5, open)).build());
    let default = Arc::new(failsafe::Config::new().build());
    // A limit that is never reached: this measures an admission.
    let limiter = Arc::new(RateLimiter::direct(Quota::per_second(NonZeroU32::MAX)));
    vec![
        peer("recloser", Family::BreakerCall, move || {
            let recloser = Arc::clone(&recloser);
            move |bare| recloser.call(|| call(bare, black_box(7))).is_ok()
        }),
        peer("failsafe(consecutive)", Family::BreakerCall, move || {
            let breaker = Arc::clone(&consecutive);
            move |bare| breaker.call(|| call(bare, black_box(7))).is_ok()
        }),
        peer("failsafe(default)", Family::BreakerCall, move || {
            let breaker = Arc::clone(&default);
            move |bare| breaker.call(|| call(bare, black_box(7))).is_ok()
        }),
        peer("governor/check", Family::RateLimit, move || {
            let limiter = Arc::clone(&limiter);
            move |bare| limiter.check().is_ok() && call(bare, black_box(7)).is_ok()
        }),
    ]
}

fn peer<F>(name: &'static str, family: Family, make: impl Fn() -> F + 'static) -> Subject
where
    F: FnMut(&mut Bare) -> bool + Send + 'static,
{
    Subject::around(name, Kind::Peer, family, make)
}
