//! Tests of the fallback.

use crate::{Handle, SECOND, layer, request};
use buttress::{
    BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Ending, Error, FallbackLayer, PlainExt, RetryLayer,
    TimeoutLayer, bulkhead, circuit_breaker, context,
    ending::Plain,
    fallback::{self, FallbackFailed},
    outcome::{Failure, FailureKind, Ignored, Outcome},
    policy::{CallContext, Clock, TokioClock},
};
use std::{
    convert::Infallible,
    error::Error as StdError,
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock::Spawn;

/// Calls a service whose backend fails, and polls the call until it waits for its fallback.
fn fail<L>(service: &mut Spawn<L>, handle: &mut Handle) -> tokio_test::task::Spawn<L::Future>
where
    L: Service<&'static str, Response = &'static str, Error = Error>,
{
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("request"));
    assert_pending!(call.poll());
    request(handle).1.send_error("down");
    call
}

/// Returns the error of a fallback that failed.
fn of_fallback(error: &Error) -> &(dyn StdError + 'static) {
    error.source().and_then(|source| source.downcast_ref::<FallbackFailed>()).expect("a failed fallback").fallback()
}

#[tokio::test(start_paused = true)]
async fn a_success_is_not_replaced_whatever_the_predicate_says() {
    let fallback = FallbackLayer::to("fallback").when(|_| true);
    let stats = fallback.stats();
    let (mut service, mut handle) = layer(fallback.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("request"));
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("response");
    assert_eq!(assert_ready_ok!(call.poll()), "response");
    assert_eq!((stats.used(), stats.failed(), stats.rejected()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_value_answers_a_failed_call() {
    let fallback = FallbackLayer::to("fallback");
    let stats = fallback.stats();
    let (mut service, mut handle) = layer(fallback.plain());
    assert_eq!(assert_ready_ok!(fail(&mut service, &mut handle).poll()), "fallback");
    assert_eq!(stats.used(), 1);
}

#[tokio::test(start_paused = true)]
async fn rejections_are_answered_and_what_a_classifier_ignores_is_not() {
    let full = ServiceBuilder::new()
        .layer(FallbackLayer::to("fallback").plain())
        .layer(BulkheadLayer::new(0).plain())
        .service_fn(async |_: ()| Ok::<_, Error>("response"));
    assert_eq!(full.oneshot(()).await.unwrap(), "fallback");

    let late = ServiceBuilder::new()
        .layer(FallbackLayer::to("fallback").plain())
        .layer(TimeoutLayer::total(SECOND).plain())
        .service_fn(|_: ()| pending::<Result<&str, Error>>());
    assert_eq!(late.oneshot(()).await.unwrap(), "fallback");

    for ignored in [Ignored::Classified, Ignored::Cancelled] {
        let ends = Plain::new().classify(move |_: Result<&&str, &Error>| Outcome::Ignored(ignored));
        let service =
            FallbackLayer::to("fallback").end(ends).layer(service_fn(async |_: ()| Ok::<_, Error>("original")));
        assert_eq!(service.oneshot(()).await.unwrap(), "original");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_is_replaced_too_and_the_predicate_sees_its_outcome() {
    let ends = Plain::new().classify(|result: Result<&u16, &Error>| match result {
        Ok(status) if *status >= 500 => Failure::new(FailureKind::Http(*status)).into(),
        _ => Outcome::Success,
    });
    let kind = |outcome: &Outcome| outcome.failure().map(|failure| failure.kind);
    let layer =
        FallbackLayer::with(async |outcome: Outcome| Ok::<_, Infallible>(if outcome.is_failure() { 203 } else { 0 }))
            .when(move |outcome| kind(outcome) == Some(FailureKind::Http(503)))
            .end(ends);
    let service = layer.layer(service_fn(async |status: u16| Ok::<_, Error>(status)));
    for (status, expected) in [(200, 200), (404, 404), (500, 500), (503, 203)] {
        assert_eq!(service.clone().oneshot(status).await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fallback_gets_the_note_of_its_request_and_nothing_else_is_kept() {
    /// Not `Clone`.
    struct Request(u32);
    let layer = FallbackLayer::with_note(
        |request: &Request| request.0,
        async |number, _| Ok::<_, Infallible>(format!("{number}")),
    );
    let down = service_fn(async |_: Request| Err::<String, _>(io::Error::other("down")));
    assert_eq!(layer.plain().layer(down).oneshot(Request(7)).await.unwrap(), "7");
}

#[tokio::test(start_paused = true)]
async fn a_failing_fallback_returns_the_original_error_with_its_own_beside() {
    let fallback = FallbackLayer::with(async |_| Err::<&str, _>(io::Error::other("no cache")));
    let stats = fallback.stats();
    let (mut service, mut handle) = layer(fallback.plain());
    let error = assert_ready_err!(fail(&mut service, &mut handle).poll());
    assert_eq!(error.to_string(), "down; and its fallback: no cache");
    assert!(of_fallback(&error).is::<io::Error>());
    assert_eq!((stats.used(), stats.failed()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_failed_fallback_means_what_the_original_means() {
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::with(async |_| Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused))).plain())
        .layer(BulkheadLayer::new(0).plain())
        .service_fn(async |_: ()| Ok::<_, Error>(()));
    let error = service.oneshot(()).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &bulkhead::FULL);
    assert_eq!(buttress::error::outcome(&error), Outcome::Ignored(Ignored::LocalReject));
    let again = Error::from_inner(Box::new(error) as BoxError);
    assert_eq!(again.rejection().unwrap().reason(), &bulkhead::FULL);
}

#[tokio::test(start_paused = true)]
async fn a_failing_fallback_of_a_response_returns_that_response() {
    let ends = Plain::new().classify(|_: Result<&u16, &Error>| Failure::new(FailureKind::Application).into());
    let layer = FallbackLayer::with(async |_| Err::<u16, BoxError>("no cache".into())).end(ends);
    let service = layer.layer(service_fn(async |status: u16| Ok::<_, Error>(status)));
    assert_eq!(service.oneshot(500).await.unwrap(), 500);
}

#[tokio::test(start_paused = true)]
async fn ten_fallbacks_run_at_a_time_and_the_eleventh_is_rejected() {
    let fallback = FallbackLayer::with(|_| pending::<Result<&'static str, Infallible>>()).named("slow");
    let stats = fallback.stats();
    let (mut service, mut handle) = layer(fallback.plain());
    let mut running: Vec<_> = (0..10)
        .map(|_| {
            let mut call = fail(&mut service, &mut handle);
            assert_pending!(call.poll());
            call
        })
        .collect();
    let error = assert_ready_err!(fail(&mut service, &mut handle).poll());
    assert_eq!(error.to_string(), "down; and its fallback: fallback `slow`: full");
    assert_eq!(stats.rejected(), 1);
    // A dropped call gives its place back.
    running.pop();
    assert_pending!(fail(&mut service, &mut handle).poll());
}

#[tokio::test(start_paused = true)]
async fn a_value_has_no_bounds() {
    let passed = CallContext::default().with_deadline(TokioClock.now());
    let layer = FallbackLayer::to("fallback").concurrency(0).timeout(Duration::ZERO).plain();
    let service = layer.layer(service_fn(async |_: ()| Err::<&str, _>(io::Error::other("down"))));
    assert_eq!(context::with(passed, service.oneshot(())).await.unwrap(), "fallback");
}

/// Calls a service that fails at once, whose fallback hangs, in the context of a call with 1 s
/// left.
async fn with_one_second_left(fallback: impl Fn() -> tower::util::BoxCloneService<(), (), Error>) -> Error {
    let context = CallContext::default().with_deadline(TokioClock.now() + SECOND);
    context::with(context, fallback().oneshot(())).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_fallback_has_what_is_left_of_the_deadline_and_no_more_than_its_timeout() {
    for (timeout, expected) in [(None, SECOND), (Some(SECOND / 2), SECOND / 2), (Some(5 * SECOND), SECOND)] {
        let start = TokioClock.now();
        let error = with_one_second_left(|| {
            let mut layer = FallbackLayer::with(|_| pending::<Result<(), Infallible>>());
            if let Some(timeout) = timeout {
                layer = layer.timeout(timeout);
            }
            let down = service_fn(async |_: ()| Err::<(), _>(io::Error::other("down")));
            tower::util::BoxCloneService::new(layer.plain().layer(down))
        })
        .await;
        assert_eq!(TokioClock.now() - start, expected, "{timeout:?}");
        let rejection = of_fallback(&error).downcast_ref::<buttress::Rejection>().unwrap();
        assert_eq!((rejection.reason(), rejection.limit()), (&fallback::TIMEOUT, Some(expected)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fallback_does_not_start_after_the_deadline() {
    let started = Arc::new(AtomicU32::new(0));
    let layer = FallbackLayer::with({
        let started = started.clone();
        move |_| {
            started.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, Infallible>(()))
        }
    });
    let stats = layer.stats();
    let slow = service_fn(async |_: ()| {
        tokio::time::sleep(2 * SECOND).await;
        Err::<(), _>(io::Error::other("down"))
    });
    let service = tower::util::BoxCloneService::new(layer.plain().layer(slow));
    let error = with_one_second_left(|| service.clone()).await;
    assert_eq!(of_fallback(&error).to_string(), "fallback: the deadline has passed");
    assert_eq!((started.load(Ordering::Relaxed), stats.rejected()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_alternate_gets_the_request_once_it_is_ready() {
    let (alternate, mut other) = tower_test::mock::pair::<&'static str, &'static str>();
    let (mut service, mut handle) = layer(FallbackLayer::service(alternate).plain());
    other.allow(0);
    let mut call = fail(&mut service, &mut handle);
    assert_pending!(call.poll());
    other.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (request, response) = other.next_request().await.unwrap();
    assert_eq!(request, "request");
    response.send_response("alternate");
    assert_eq!(assert_ready_ok!(call.poll()), "alternate");
}

/// A backend whose requests are not idempotent.
#[derive(Clone, Copy)]
struct Orders;

mod orders {
    use super::*;
    use buttress::Rejection;
    use buttress::ending::{Begin, Ended, Finish, Kept, Replay, Substitute};
    use buttress::policy::{InFlight, Name, Permit};

    pub(super) struct Once(u32);

    impl Kept for Once {
        type Attempt = u32;

        fn again(&mut self, _: u32) -> Option<u32> {
            Some(self.0)
        }

        fn is_idempotent(&self) -> bool {
            false
        }
    }

    impl Ended for Orders {}

    impl Replay<u32> for Orders {
        type Attempt = u32;
        type Kept = Once;

        fn first(&self, request: u32) -> (u32, Once) {
            (request, Once(request))
        }

        fn only(&self, request: u32) -> u32 {
            request
        }
    }

    impl Begin<u32> for Orders {
        type Context = ();
        type Ahead = Infallible;

        fn begin<P: Permit>(&self, _: &mut u32) {}
    }

    impl Finish<(), u32, Error> for Orders {
        type Response<P: Permit> = u32;
        type Error = Error;

        fn head(&self, (): &(), _: &u32) -> Outcome {
            Outcome::Success
        }

        fn response<P: Permit>(&self, (): (), response: u32, _: &mut InFlight<P>) -> u32 {
            response
        }

        fn reject<P: Permit>(&self, (): (), rejection: Rejection) -> Result<u32, Error> {
            Err(rejection.into())
        }

        fn inner(&self, error: Error) -> Error {
            error
        }

        fn outcome(&self, error: &Error) -> Outcome {
            buttress::error::outcome(error)
        }
    }

    impl Substitute<(), u32, Error, u32> for Orders {
        type Substituted = u32;

        fn original(&self, response: u32) -> u32 {
            response
        }

        fn substitute(&self, response: u32, _: Option<&Name>) -> u32 {
            response
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_processed_goes_to_no_alternate_unless_that_only_reads() {
    let alternate = || service_fn(async |request: u32| Ok::<_, Error>(100 + request));
    let failing =
        |kind| service_fn(move |_: u32| std::future::ready(Err::<u32, _>(Error::from_inner(io::Error::from(kind)))));
    let (reset, refused) = (io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused);

    let layer = FallbackLayer::service(alternate()).end(Orders);
    assert_eq!(layer.layer(failing(refused)).oneshot(1).await.unwrap(), 101);
    let error = layer.layer(failing(reset)).oneshot(1).await.unwrap_err();
    assert!(matches!(error, Error::Inner(inner) if inner.is::<io::Error>()), "the error is the original one");
    assert_eq!((layer.stats().used(), layer.stats().unrepeatable()), (1, 1));

    let layer = FallbackLayer::service(alternate()).read_only().end(Orders);
    assert_eq!(layer.layer(failing(reset)).oneshot(1).await.unwrap(), 101);
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_of_the_alternate_is_no_answer() {
    let ends = Plain::new().classify(|result: Result<&u16, &Error>| match result {
        Ok(200..500) => Outcome::Success,
        _ => Failure::new(FailureKind::Application).into(),
    });
    let layer = FallbackLayer::service(service_fn(async |_: ()| Ok::<_, Error>(502))).end(ends);
    let service = layer.layer(service_fn(async |_: ()| Ok::<_, Error>(500)));
    assert_eq!(service.oneshot(()).await.unwrap(), 500);
    assert_eq!((layer.stats().used(), layer.stats().failed()), (0, 1));
}

/// Fails to become ready, once.
#[derive(Clone)]
struct FailsToBecomeReady(u32);

impl Service<()> for FailsToBecomeReady {
    type Response = &'static str;
    type Error = io::Error;
    type Future = std::future::Ready<Result<&'static str, io::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), io::Error>> {
        self.0 += 1;
        assert_eq!(self.0, 1, "a service that failed must not be polled again");
        std::task::Poll::Ready(Err(io::Error::other("cannot become ready")))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        unreachable!("it is not ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_become_ready_has_a_fallback_too() {
    let mut service = FallbackLayer::to("fallback").plain().layer(FailsToBecomeReady(0));
    service.ready().await.unwrap();
    service.ready().await.unwrap();
    assert_eq!(service.call(()).await.unwrap(), "fallback");
    let service = FallbackLayer::to("fallback").when(|_| false).plain().layer(FailsToBecomeReady(0));
    assert_eq!(service.oneshot(()).await.unwrap_err().to_string(), "cannot become ready");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_inside_records_the_failures_that_the_fallback_hides() {
    let breaker = CircuitBreaker::builder("payments").consecutive_failures(3).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::to("fallback").plain())
        .layer(RetryLayer::new(1).plain())
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .service_fn(async |_: ()| Err::<&str, _>(io::Error::other("down")));
    for _ in 0..3 {
        assert_eq!(service.clone().oneshot(()).await.unwrap(), "fallback");
    }
    assert_eq!(breaker.state(), circuit_breaker::State::Open);
    assert_eq!(service.oneshot(()).await.unwrap(), "fallback");
}

/// Counts how many of it exist.
struct Alive(Arc<AtomicU32>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_takes_its_fallback_along() {
    let alive = Arc::new(AtomicU32::new(0));
    let fallback = FallbackLayer::with({
        let alive = alive.clone();
        move |_| {
            alive.fetch_add(1, Ordering::Relaxed);
            let alive = Alive(alive.clone());
            async move {
                pending::<()>().await;
                drop(alive);
                Ok::<_, Infallible>("never")
            }
        }
    });
    let (mut service, mut handle) = layer(fallback.plain());
    let mut call = fail(&mut service, &mut handle);
    assert_pending!(call.poll());
    assert_eq!(alive.load(Ordering::Relaxed), 1);
    drop(call);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}
