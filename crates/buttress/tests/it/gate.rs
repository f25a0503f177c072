//! Tests of the gate that rejects at once.

use crate::{SECOND, layer, no_request, refusal, request};
use buttress::{
    BoxError, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Ending, Error, PlainExt, Reason, Rejection,
    TimeoutLayer,
    circuit_breaker::State,
    ending::Plain,
    gate::GateLayer,
    keyed::Keyed,
    outcome::Outcome,
    policy::{Class, Permit, Policy, Refused, Reserve},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Service, ServiceBuilder, ServiceExt};

/// Returns a circuit that opens on the first failure.
fn touchy() -> CircuitBreaker {
    CircuitBreaker::builder("touchy").consecutive_failures(1).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_refuses_and_says_which_it_is() {
    let (mut service, mut handle) = layer(BulkheadLayer::named("database", 1).plain());
    assert_ready_ok!(service.poll_ready());
    let mut first = spawn(service.call("first"));
    let (_, answer) = request(&mut handle);
    assert_ready_ok!(service.poll_ready());
    let error = assert_ready_err!(spawn(service.call("second")).poll());
    assert_eq!(error.to_string(), "bulkhead `database`: full");
    no_request(&mut handle);

    answer.send_response("done");
    assert_eq!(assert_ready_ok!(first.poll()), "done");
    assert_ready_ok!(service.poll_ready());
    let mut third = spawn(service.call("third"));
    assert_pending!(third.poll());
    assert_eq!(request(&mut handle).0, "third");
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_once_its_call_has_answered_and_not_only_when_its_future_is_dropped() {
    let bulkhead = Bulkhead::new(1);
    let (mut service, mut handle) = layer(BulkheadLayer::from(bulkhead.clone()).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    request(&mut handle).1.send_response("b");
    assert_eq!(bulkhead.in_flight(), 1);
    assert_ready_ok!(call.poll());
    assert_eq!(bulkhead.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_wait_for_an_inner_service_that_hangs() {
    let breaker = CircuitBreaker::new("payments");
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).plain());
    handle.allow(0);
    assert_pending!(service.poll_ready());
    breaker.force_open();
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::circuit_breaker::FORCED_OPEN);
}

#[tokio::test(start_paused = true)]
async fn what_would_be_admitted_after_all_is_not_sent_to_an_inner_service_that_is_not_ready() {
    let bulkhead = Bulkhead::new(0);
    let (mut service, mut handle) = layer(BulkheadLayer::from(bulkhead.clone()).plain());
    handle.allow(0);
    assert_ready_ok!(service.poll_ready());
    bulkhead.set_limit(1);
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::bulkhead::FULL);
    assert_eq!((bulkhead.in_flight(), bulkhead.rejected()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_gate_whose_inner_service_hangs_wakes_when_the_circuit_opens() {
    let breaker = CircuitBreaker::new("payments");
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).plain());
    handle.allow(0);
    assert_pending!(service.poll_ready());
    assert!(!service.is_woken());
    breaker.force_open();
    assert!(service.is_woken(), "the caller waits for the inner service although the circuit is open");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::circuit_breaker::FORCED_OPEN);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_rejected_holds_nothing_of_the_inner_service() {
    let shared = tower::limit::GlobalConcurrencyLimitLayer::new(1);
    let inner =
        || tower::Layer::layer(&shared, tower::service_fn(|name: &'static str| async move { Ok::<_, BoxError>(name) }));
    let mut rejecting = ServiceBuilder::new().layer(BulkheadLayer::new(0).plain()).service(inner());
    let error = rejecting.ready().await.unwrap().call("a").await.unwrap_err();
    assert!(error.rejection().is_some());
    let (_rejecting, mut other) = (rejecting, inner());
    assert_ready_ok!(spawn(other.ready()).poll());
}

#[tokio::test(start_paused = true)]
async fn a_failing_readiness_teaches_a_keyed_policy_with_the_call_that_it_fails() {
    let keyed = Keyed::new(|_: &&'static str| 0, |_: &u32| touchy());
    let (mut service, mut handle) = layer(GateLayer::with_policy(keyed.clone()).plain());
    handle.send_error("no connection");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(assert_ready_err!(spawn(service.call("a")).poll()).to_string(), "no connection");
    assert_eq!(keyed.get(&0).map(|breaker| breaker.state()), Some(State::Open));
}

#[tokio::test(start_paused = true)]
async fn a_failing_readiness_counts_no_rejection() {
    let breaker = touchy();
    let events = std::sync::Arc::new(std::sync::Mutex::new(0));
    let counter = events.clone();
    breaker.on_event(move |event| {
        *counter.lock().unwrap() += u32::from(matches!(event, buttress::circuit_breaker::Event::NotPermitted { .. }));
    });
    breaker.force_open();
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).plain());
    handle.send_error("no connection");
    assert_ready_ok!(service.poll_ready(), "the call would be rejected");
    assert_eq!((breaker.snapshot().rejected, *events.lock().unwrap()), (0, 0), "without a call there is no rejection");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_polled_ready_is_refused_without_a_panic() {
    let (mut service, mut handle) = layer(CircuitBreakerLayer::new("payments").plain());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::policy::NOT_READY);
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("b"));
    assert_pending!(call.poll());
    assert_eq!(refusal(&mut spawn(service.call("c"))), &buttress::policy::NOT_READY, "one poll_ready allows one call");
    assert_eq!(request(&mut handle).0, "b");
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_cannot_become_ready_trips_the_circuit() {
    let breaker = touchy();
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).plain());
    handle.send_error("no connection");
    assert_eq!(assert_ready_err!(service.poll_ready()).to_string(), "no connection");
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_our_own_is_no_evidence_against_the_backend() {
    let breaker = touchy();
    let stack = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .layer(BulkheadLayer::new(0).plain());
    let (mut service, _handle) = layer(stack);
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::bulkhead::FULL);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_evidence() {
    let breaker = touchy();
    let timeout = TimeoutLayer::attempt(SECOND).plain();
    let (mut service, _handle) =
        layer(ServiceBuilder::new().layer(CircuitBreakerLayer::from(breaker.clone()).plain()).layer(timeout));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    crate::pass(SECOND).await;
    assert_ready_err!(call.poll());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_observer_of_your_own_decides_what_is_a_failure() {
    let breaker = touchy();
    let ending = Plain::new().classify(|result: Result<&&str, &Error>| match result {
        Ok(&"bad") => buttress::outcome::Failure::new(buttress::outcome::FailureKind::Application).into(),
        _ => buttress::outcome::Outcome::Success,
    });
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).end(ending));
    for (answer, state) in [("good", State::Closed), ("bad", State::Open)] {
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        request(&mut handle).1.send_response(answer);
        assert_eq!(assert_ready_ok!(call.poll()), answer);
        assert_eq!(breaker.state(), state);
    }
}

/// Rejects requests with upper-case letters.
#[derive(Clone)]
struct Librarian;

static TOO_LOUD: Reason = Reason::new("too_loud", "too loud", Class::Refused);

impl Policy<&'static str> for Librarian {
    type Permit = ();

    fn admit(&self, request: &&'static str) -> Result<(), Rejection> {
        let loud = request.chars().any(char::is_uppercase);
        if loud { Err(Rejection::new("librarian", &TOO_LOUD)) } else { Ok(()) }
    }

    fn confirm(&self, (): (), request: &&'static str) -> Result<(), Rejection> {
        self.admit(request)
    }
}

impl Reserve for Librarian {
    type Permit = ();

    fn try_reserve(&self) -> Result<(), Refused> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_look_at_the_request_in_both_modes() {
    let (mut service, mut handle) = layer(GateLayer::with_policy(Librarian).plain());
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("HELLO"))), &TOO_LOUD);
    let (mut reserving, mut reserving_handle) = layer(GateLayer::with_policy(Librarian).backpressure().plain());
    assert_ready_ok!(reserving.poll_ready());
    assert_eq!(refusal(&mut spawn(reserving.call("HELLO"))), &TOO_LOUD);

    assert_ready_ok!(service.poll_ready());
    assert_ready_ok!(reserving.poll_ready());
    let calls = (spawn(service.call("hello")), spawn(reserving.call("hello")));
    assert_eq!((request(&mut handle).0, request(&mut reserving_handle).0), ("hello", "hello"));
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn nested_layers_with_a_boxing_layer_between_leave_one_flat_error() {
    let boxing = tower::util::MapErrLayer::new(|error: Error| -> BoxError { Box::new(error) });
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::total(SECOND).plain())
        .layer(boxing)
        .layer(BulkheadLayer::new(0).plain());
    let (mut service, _handle) = layer(stack);
    assert_ready_ok!(service.poll_ready());
    let error: Error = assert_ready!(spawn(service.call("a")).poll()).unwrap_err();
    assert!(
        matches!(&error, Error::Rejected(rejection) if rejection.reason() == &buttress::bulkhead::FULL),
        "{error:?}"
    );
}

#[test]
fn layers_with_closures_of_a_user_have_debug() {
    let ends = Plain::new().classify(|_: Result<&(), &()>| Outcome::Success).respond(|_: Rejection| ());
    let layer = CircuitBreakerLayer::new("files").can_probe(|_: &u32| true).end(ends);
    let text = format!("{:?} {:?}", layer, TimeoutLayer::total(SECOND).by(|_: &u32| None));
    assert!(text.contains("files") && text.contains("By(..)"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_was_seen_before_the_call_says_when_to_come_back_all_the_same() {
    let breaker = CircuitBreaker::new("payments");
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).plain());
    for open_for in [SECOND, 3600 * SECOND] {
        breaker.open_for(open_for);
        assert_ready_ok!(service.poll_ready());
        let error = assert_ready_err!(spawn(service.call("a")).poll());
        assert_eq!(error.rejection().unwrap().retry_after(), Some(open_for));
    }
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_would_admit_again_asks_its_inner_service_anew() {
    let bulkhead = Bulkhead::new(1);
    let (mut service, mut handle) = layer(BulkheadLayer::from(bulkhead.clone()).plain());
    assert_ready_ok!(service.poll_ready());
    bulkhead.set_limit(0);
    assert_ready_ok!(service.poll_ready());
    bulkhead.set_limit(1);
    handle.allow(1);
    assert_ready_ok!(service.poll_ready(), "readiness of before must not stand for that of now");
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "a");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_an_inner_layer_does_not_reach_the_classification_of_an_ending_that_responds() {
    let breaker = touchy();
    let failure = |result: Result<&&str, &Error>| match result {
        Ok(_) => Outcome::Success,
        Err(_) => buttress::outcome::Failure::new(buttress::outcome::FailureKind::Application).into(),
    };
    let ending = Plain::new().classify(failure).respond(|_: Rejection| "try later");
    let stack = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).end(ending))
        .layer(BulkheadLayer::new(0).plain());
    let (mut service, _handle) = layer(stack);
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::bulkhead::FULL);
    assert_eq!(breaker.state(), State::Closed);
}

/// A policy that needs the request to count a failure, and that can be closed.
#[derive(Clone, Default)]
struct Closable(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Closable {
    fn close(&self, closed: bool) {
        self.0.store(closed, std::sync::atomic::Ordering::SeqCst);
    }
}

struct Learns;

impl Permit for Learns {
    fn settle(&mut self, _: &Outcome) {}
}

static CLOSED: Reason = Reason::new("closed", "closed", Class::Unavailable);

impl Policy<&'static str> for Closable {
    type Permit = Learns;

    fn admit(&self, _: &&'static str) -> Result<Learns, Rejection> {
        self.peek().map(|()| Learns).map_err(|_| Rejection::new("closable", &CLOSED))
    }

    fn peek(&self) -> Result<(), Refused> {
        let closed = self.0.load(std::sync::atomic::Ordering::SeqCst);
        if closed { Err(Refused { retry_after: None }) } else { Ok(()) }
    }

    fn refuse(&self, _: &&'static str, _: Refused) -> Rejection {
        Rejection::new("closable", &CLOSED)
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_is_not_kept_beyond_the_next_call() {
    for is_seen_before_the_call in [true, false] {
        let policy = Closable::default();
        let (mut service, mut handle) = layer(GateLayer::with_policy(policy.clone()).plain());
        handle.send_error("no connection");
        assert_ready_ok!(service.poll_ready());
        policy.close(true);
        if is_seen_before_the_call {
            assert_ready_ok!(service.poll_ready());
        }
        assert_eq!(refusal(&mut spawn(service.call("rejected"))), &CLOSED);
        policy.close(false);
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        assert_pending!(call.poll(), "an error of before the last call");
        assert_eq!(request(&mut handle).0, "a");
    }
}
