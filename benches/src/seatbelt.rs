//! seatbelt, through its tower side, with its defaults.

use std::time::Duration;

use seatbelt::breaker::Breaker;
use seatbelt::retry::Retry;
use seatbelt::timeout::Timeout;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;
use tower::{Service, ServiceBuilder};

use crate::subject::{Bare, Expect, FAIL, Failure, Family, Kind, Subject, call};

type Context = ResilienceContext<u64, Result<u64, Failure>>;

pub(crate) fn subjects() -> Vec<Subject> {
    let context = Context::new(Clock::new_tokio());
    let retry = Retry::layer("retry", &context)
        .clone_input()
        .recovery_with(|result: &Result<u64, Failure>, _| recovery(result));
    let timeout = Timeout::layer("timeout", &context).timeout(Duration::from_secs(30)).timeout_error(|_| Failure);
    vec![
        peer("seatbelt/breaker", Family::Breaker, breaker(&context)),
        open(&context),
        peer("seatbelt/retry", Family::Retry, ServiceBuilder::new().layer(retry).service(Bare)),
        peer("seatbelt/timeout", Family::Timeout, ServiceBuilder::new().layer(timeout).service(Bare)),
    ]
}

fn peer<S>(name: &'static str, family: Family, service: S) -> Subject
where
    S: Service<u64> + Clone + Send + 'static,
{
    Subject::service(name, Kind::Peer, family, Expect::Ok, service)
}

fn breaker(context: &Context) -> impl Service<u64, Response = u64, Error = Failure> + Clone + Send + 'static {
    let layer = Breaker::layer("breaker", context)
        .recovery_with(|result: &Result<u64, Failure>, _| recovery(result))
        .rejected_input_error(|_, _| Failure)
        .break_duration(Duration::from_secs(3_600));
    ServiceBuilder::new().layer(layer).service(Bare)
}

fn open(context: &Context) -> Subject {
    let mut service = breaker(context);
    // Its default window needs 100 calls before it can trip.
    for _ in 0..1_000 {
        let _ = call(&mut service, FAIL);
    }
    Subject::service("seatbelt/breaker(open)", Kind::Peer, Family::OpenBreaker, Expect::Err, service)
}

fn recovery(result: &Result<u64, Failure>) -> RecoveryInfo {
    match result {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}
