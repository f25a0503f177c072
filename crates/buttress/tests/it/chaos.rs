//! Tests of injected faults, for services that are not HTTP.

use crate::{Handle, MS, SECOND, layer, no_request, pass, request};
use buttress::{
    CircuitBreaker, CircuitBreakerLayer, Ending, Error, PlainExt, Rejection,
    chaos::{Chaos, ChaosLayer, Fault, Faults, FaultsBuilder, Injected, Strike},
    circuit_breaker::State,
    ending::Plain,
    error::sources,
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock::{Mock, Spawn};

type Chaotic = Spawn<buttress::chaos::ChaosService<Mock<&'static str, &'static str>, Plain>>;

/// A service with faults, around a mock.
fn chaotic(faults: FaultsBuilder) -> (Chaos, Chaotic, Handle) {
    let chaos = Chaos::builder().seed(7).build().unwrap();
    chaos.set(faults.build().unwrap());
    let (service, handle) = layer(ChaosLayer::from(chaos.clone()).plain());
    (chaos, service, handle)
}

/// Answers the next request.
fn answer(handle: &mut Handle) {
    request(handle).1.send_response("response");
}

#[tokio::test(start_paused = true)]
async fn a_switch_that_is_off_passes_calls_through_and_can_be_changed_at_any_time() {
    let (chaos, mut service, mut handle) = chaotic(Faults::builder().errors(1.0));
    chaos.off();
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    answer(&mut handle);
    assert_eq!(assert_ready_ok!(call.poll()), "response");

    chaos.set(Faults::builder().errors(1.0).build().unwrap());
    assert_ready_ok!(service.poll_ready());
    assert_ready_err!(spawn(service.call("b")).poll());
    no_request(&mut handle);
    assert_eq!((chaos.injected(Fault::Error), chaos.active()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_injected_error_is_marked_and_means_what_a_real_one_means() {
    let breaker = CircuitBreaker::builder("backend").consecutive_failures(3).build().unwrap();
    let chaos = Chaos::new();
    chaos.set(Faults::builder().errors(1.0).build().unwrap());
    let service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .layer(ChaosLayer::from(chaos).plain())
        .service_fn(async |_: ()| Ok::<_, Error>(()));
    for _ in 0..3 {
        let error = service.clone().oneshot(()).await.unwrap_err();
        let injected = sources(&error).find_map(|error| error.downcast_ref::<Injected>());
        assert_eq!(injected.map(|injected| injected.fault()), Some(Fault::Error));
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn latency_delays_the_call_of_the_inner_service() {
    let (chaos, mut service, mut handle) = chaotic(Faults::builder().latency(1.0, SECOND..=SECOND));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(SECOND - MS).await;
    assert_pending!(call.poll());
    no_request(&mut handle);
    pass(2 * MS).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    answer(&mut handle);
    assert_eq!(assert_ready_ok!(call.poll()), "response");
    assert_eq!((chaos.injected(Fault::Latency), chaos.active()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_error_after_the_call_loses_its_response() {
    let (_, mut service, mut handle) = chaotic(Faults::builder().errors(1.0).strike(Strike::After));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    answer(&mut handle);
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "injected fault: error");
}

#[tokio::test(start_paused = true)]
async fn a_hang_ends_when_the_switch_is_off_on_either_side_of_the_call() {
    for (strike, is_sent) in [(Strike::Before, false), (Strike::After, true)] {
        let (chaos, mut service, mut handle) = chaotic(Faults::builder().hangs(1.0).strike(strike));
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        assert_pending!(call.poll());
        if is_sent {
            answer(&mut handle);
        } else {
            no_request(&mut handle);
        }
        pass(3600 * SECOND).await;
        assert_pending!(call.poll());
        assert_eq!((chaos.injected(Fault::Hang), chaos.active()), (1, 1));
        chaos.off();
        assert!(call.is_woken());
        if !is_sent {
            assert_pending!(call.poll());
            answer(&mut handle);
        }
        assert_eq!(assert_ready_ok!(call.poll()), "response");
        assert_eq!(chaos.active(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_suffers_no_more() {
    let (chaos, mut service, _handle) = chaotic(Faults::builder().hangs(1.0));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    assert_eq!(chaos.active(), 1);
    drop(call);
    assert_eq!(chaos.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_bound_are_spared() {
    let chaos = Chaos::builder().max_active(1).build().unwrap();
    chaos.set(Faults::builder().hangs(1.0).build().unwrap());
    let service = ChaosLayer::from(chaos.clone()).plain().layer(service_fn(async |_: ()| Ok::<_, Error>(())));
    let mut hanging = spawn(service.clone().oneshot(()));
    assert_pending!(hanging.poll());
    for _ in 0..10 {
        service.clone().oneshot(()).await.unwrap();
    }
    assert_eq!((chaos.active(), chaos.spared()), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn faults_are_scoped_by_the_request() {
    let chaos = Chaos::new();
    chaos.set(Faults::builder().errors(1.0).build().unwrap());
    let echo = service_fn(async |path: &'static str| Ok::<_, Error>(path));
    let scoped = ChaosLayer::from(chaos.clone()).only(|path: &&str| path.starts_with("/stock")).plain().layer(echo);
    assert_eq!(scoped.clone().oneshot("/prices").await.unwrap(), "/prices");
    scoped.oneshot("/stock/7").await.unwrap_err();

    chaos.set(Faults::default());
    let errors = Faults::builder().errors(1.0).build().unwrap();
    let by = ChaosLayer::from(chaos.clone()).by(move |path: &&str| (*path == "/test").then(|| errors.clone()));
    let service = by.plain().layer(echo);
    assert_eq!(service.clone().oneshot("/prices").await.unwrap(), "/prices");
    service.clone().oneshot("/test").await.unwrap_err();
    chaos.off();
    assert_eq!(service.oneshot("/test").await.unwrap(), "/test", "the kill switch holds for these too");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_http_answers_as_for_a_rejection() {
    let chaos = Chaos::new();
    chaos.set(Faults::builder().errors(1.0).build().unwrap());
    let ends = Plain::new().respond(|rejection: Rejection| rejection.to_string());
    let service = ChaosLayer::from(chaos)
        .end(ends)
        .layer(service_fn(async |_: ()| Ok::<_, std::convert::Infallible>("response".to_owned())));
    assert_eq!(service.oneshot(()).await.unwrap(), "chaos: injected fault");
}
