//! seatbelt: through its tower side, which boxes futures, and through its own, which does not; with
//! tokio's clock and with its fast one.

use std::future::Future;
use std::time::Duration;

use seatbelt::breaker::{Breaker, BreakerLayer};
use seatbelt::retry::{Retry, RetryLayer};
use seatbelt::timeout::{Timeout, TimeoutLayer};
use seatbelt::typestates::Set;
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;
use tower::{Layer, ServiceBuilder};

use crate::caller::Caller;
use crate::family::{DEFAULTS, OPEN, RETRY, STACK_SEATBELT, TEN_SECONDS, TIMEOUT};
use crate::inner::Failure;
use crate::situation::{AllFail, Kept, MostFail, NEARLY_ALL, TenthFails};
use crate::subject::{Kind::Peer, Rows};

pub(crate) type Answer = Result<u64, Failure>;
pub(crate) type Context = ResilienceContext<u64, Answer>;

pub(crate) fn add(rows: &mut Rows) {
    let context = context();
    let fast = Context::new(Clock::new_tokio().with_fast_instant(true));
    macro_rules! rows {
        ($side:literal, $context:expr, $wrap:path) => {
            let context = $context;
            let breaker = |share| ten_seconds(context).failure_threshold(share);
            rows.of(Peer, concat!("seatbelt/breaker(10 s)", $side), TEN_SECONDS)
                .healthy(|| $wrap(breaker(0.5)))
                .when(TenthFails, || $wrap(breaker(0.5)))
                .when(MostFail, || $wrap(breaker(NEARLY_ALL)))
                .when(AllFail, || $wrap(breaker(0.5).min_throughput(u32::MAX)));
            rows.of(Peer, concat!("seatbelt/breaker(defaults)", $side), DEFAULTS)
                .when(Kept, || $wrap(breaker_by_default(context)));
            rows.of(Peer, concat!("seatbelt/breaker", $side), OPEN).open(|| $wrap(breaker(0.5)));
            rows.of(Peer, concat!("seatbelt/timeout", $side), TIMEOUT).healthy(|| $wrap(timeout(context)));
            rows.of(Peer, concat!("seatbelt/stack3", $side), STACK_SEATBELT).healthy(|| {
                $wrap(ServiceBuilder::new().layer(retry(context)).layer(breaker(0.5)).layer(timeout(context)))
            });
        };
    }
    rows!("", &context, identity);
    rows!(", unboxed", &context, Unboxed);
    rows!(", unboxed, fast clock", &fast, Unboxed);
    // It has no budget and reads no clock.
    rows.of(Peer, "seatbelt/retry", RETRY).healthy(|| retry(&context));
    rows.of(Peer, "seatbelt/retry, unboxed", RETRY).healthy(|| Unboxed(retry(&context)));
}

pub(crate) fn context() -> Context {
    Context::new(Clock::new_tokio())
}

fn identity<L>(layer: L) -> L {
    layer
}

fn ten_seconds(context: &Context) -> BreakerLayer<u64, Answer, Set, Set> {
    breaker_by_default(context)
        .sampling_duration(Duration::from_secs(10))
        .min_throughput(100)
        .break_duration(Duration::from_secs(3_600))
}

pub(crate) fn breaker_by_default(context: &Context) -> BreakerLayer<u64, Answer, Set, Set> {
    Breaker::layer("breaker", context)
        .recovery_with(|answer: &Answer, _| recovery(answer))
        .rejected_input_error(|_, _| Failure)
}

fn retry(context: &Context) -> RetryLayer<u64, Answer, Set, Set> {
    Retry::layer("retry", context).clone_input().recovery_with(|answer: &Answer, _| recovery(answer))
}

fn timeout(context: &Context) -> TimeoutLayer<u64, Answer, Set, Set> {
    Timeout::layer("timeout", context).timeout(Duration::from_secs(30)).timeout_error(|_| Failure)
}

pub(crate) fn recovery<R, E>(answer: &Result<R, E>) -> RecoveryInfo {
    match answer {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}

/// A layer or service that is called through seatbelt's own trait.
#[derive(Clone)]
struct Unboxed<T>(T);

impl<I, L: Layer<I>> Layer<I> for Unboxed<L> {
    type Service = Unboxed<L::Service>;

    fn layer(&self, inner: I) -> Self::Service {
        Unboxed(self.0.layer(inner))
    }
}

impl<S: layered::Service<u64, Out = Answer> + Clone + 'static> Caller for Unboxed<S> {
    #[inline(always)]
    fn start(&mut self, req: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send {
        self.0.execute(req)
    }
}
