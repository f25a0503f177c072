//! Policies around a circuit: each forwards what gates, keyed policies and the exporter ask of it.

use crate::{MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{
    CircuitBreaker, CircuitBreakerLayer, PlainExt, Reason, Rejection,
    circuit_breaker::{FORCED_OPEN, OPEN, PROBES_EXHAUSTED, State},
    gate::GateLayer,
    keyed::Keyed,
    policy::{Class, Counted, Idle, LabelValues, Metric, Policy, Report, Reserve, Sink, Value},
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};

type Request = &'static str;

/// Returns a circuit that opens on the first failure and closes by one probe.
fn touchy() -> CircuitBreaker {
    CircuitBreaker::builder("touchy").consecutive_failures(1).probes(1).build().unwrap()
}

/// Checks what gates ask of the policy that `wrap` makes of a circuit.
async fn forwards<P>(wrap: impl Fn(CircuitBreaker) -> P)
where
    P: Policy<Request> + Reserve<Permit = <P as Policy<Request>>::Permit> + Idle + Clone,
{
    let breaker = touchy();
    let (mut rejecting, mut handle) = layer(GateLayer::with_policy(wrap(breaker.clone())).plain());
    handle.allow(0);
    assert_pending!(rejecting.poll_ready());
    breaker.force_open();
    assert!(rejecting.is_woken(), "a gate whose inner service hangs is not woken when the circuit opens");
    assert_ready_ok!(rejecting.poll_ready(), "the gate waits for the inner service although the circuit is open");
    assert_eq!(refusal(&mut spawn(rejecting.call("a"))), &FORCED_OPEN);
    assert_eq!(breaker.snapshot().rejected, 1, "a rejection is counted once");
    assert!(!wrap(breaker.clone()).is_idle());
    breaker.reset();
    assert!(wrap(breaker.clone()).is_idle());
    handle.send_error("no connection");
    assert_ready_err!(rejecting.poll_ready());
    assert_eq!(breaker.state(), State::Open, "a failed readiness is evidence");

    let breaker = touchy();
    let (mut reserving, mut handle) = layer(GateLayer::with_policy(wrap(breaker.clone())).backpressure().plain());
    assert_ready_ok!(reserving.poll_ready());
    breaker.force_open();
    assert_pending!(reserving.poll_ready(), "a permit from before the circuit opened is stale");
    breaker.reset();
    assert!(reserving.is_woken());
    assert_ready_ok!(reserving.poll_ready());
    breaker.force_open();
    assert_eq!(refusal(&mut spawn(reserving.call("a"))), &FORCED_OPEN);
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_selects_its_probes_is_asked_like_any_other() {
    forwards(|breaker| CircuitBreakerLayer::from(breaker).can_probe(|_: &Request| true).handle().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_whose_rejections_are_counted_is_asked_like_any_other() {
    forwards(|breaker| Counted::new("counted", breaker)).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_not_probe_leaves_the_probe_to_one_that_may() {
    let may_probe = |request: &Request| *request == "small";
    for reserves in [false, true] {
        let breaker = touchy();
        let layers = CircuitBreakerLayer::from(breaker.clone()).can_probe(may_probe);
        let (mut gate, mut gate_handle) = layer(layers.clone().plain());
        let (mut reserving, mut reserving_handle) = layer(layers.backpressure().plain());
        let handle = if reserves { &mut reserving_handle } else { &mut gate_handle };
        let mut call = |request| {
            if reserves {
                assert_ready_ok!(reserving.poll_ready());
                reserving.call(request)
            } else {
                assert_ready_ok!(gate.poll_ready());
                gate.call(request)
            }
        };
        let mut large = spawn(call("large"));
        assert_pending!(large.poll(), "a closed circuit admits every request");
        assert_eq!(request(handle).0, "large");
        breaker.open_for(MS);
        pass(2 * MS).await;
        assert_eq!(refusal(&mut spawn(call("large"))), &PROBES_EXHAUSTED);
        assert_eq!(breaker.snapshot().rejected, 1);
        let mut small = spawn(call("small"));
        assert_pending!(small.poll());
        let (reached, answer) = request(handle);
        assert_eq!((reached, breaker.state()), ("small", State::HalfOpen));
        answer.send_response("done");
        assert_ready_ok!(small.poll());
        assert_eq!(breaker.state(), State::Closed, "{reserves}");
    }
}

/// Collects the values of a report.
#[derive(Default)]
struct Values(Vec<(&'static str, LabelValues, Value)>);

impl Sink for Values {
    fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value) {
        self.0.push((metric.name, labels, value));
    }
}

fn values(report: &impl Report) -> Vec<(&'static str, LabelValues, Value)> {
    let mut values = Values::default();
    report.report(&mut values);
    values.0
}

#[test]
fn a_circuit_that_selects_its_probes_is_reported_as_the_circuit() {
    fn metrics_of<P: Report>(_: &P) -> Vec<Metric> {
        P::metrics()
    }
    let breaker = touchy();
    let layer = CircuitBreakerLayer::from(breaker.clone()).can_probe(|_: &Request| true);
    breaker.force_open();
    assert!(breaker.admit("a").is_err());
    assert_eq!(values(layer.handle()), values(&breaker));
    assert!(values(&breaker).contains(&("resilience.breaker.rejected", ["", ""], Value::Counter(1))));
    assert_eq!((Report::name(layer.handle()), metrics_of(layer.handle())), (Some("touchy"), metrics_of(&breaker)));
}

#[test]
fn rejections_are_counted_by_reason_and_a_ninth_reason_is_not() {
    static REASONS: [Reason; 9] = [
        Reason::new("r1", "1", Class::Refused),
        Reason::new("r2", "2", Class::Refused),
        Reason::new("r3", "3", Class::Refused),
        Reason::new("r4", "4", Class::Refused),
        Reason::new("r5", "5", Class::Refused),
        Reason::new("r6", "6", Class::Refused),
        Reason::new("r7", "7", Class::Refused),
        Reason::new("r8", "8", Class::Refused),
        Reason::new("r9", "9", Class::Refused),
    ];

    /// Rejects a number with the reason at its place.
    #[derive(Clone)]
    struct Numbered;

    impl Policy<usize> for Numbered {
        type Permit = ();

        fn admit(&self, request: &usize) -> Result<(), Rejection> {
            Err(Rejection::new("numbered", &REASONS[*request]))
        }
    }

    let counted = Counted::new("mine", Numbered);
    for (place, _) in REASONS.iter().enumerate() {
        (0..=place).for_each(|_| assert!(counted.admit(&place).is_err()));
    }
    let expected: Vec<_> = REASONS[..8].iter().zip(1..).map(|(reason, n)| (reason.word(), n)).collect();
    let reported: Vec<_> = values(&counted)
        .into_iter()
        .map(|(_, [word, _], value)| (word, if let Value::Counter(n) = value { n } else { 0 }))
        .collect();
    assert_eq!(reported, expected);
    assert_eq!((counted.rejected(&REASONS[7]), counted.rejected(&REASONS[8])), (8, 0));
    assert_eq!(Report::name(&counted), Some("mine"));
}

#[tokio::test(start_paused = true)]
async fn rejections_are_counted_wherever_a_gate_makes_them() {
    let breaker = touchy();
    let counted = Counted::new("counted", breaker.clone());
    let (mut gate, _handle) = layer(GateLayer::with_policy(counted.clone()).plain());
    assert_ready_ok!(gate.poll_ready());
    breaker.open_for(SECOND);
    assert_eq!(refusal(&mut spawn(gate.call("admitted, then open"))), &OPEN);
    assert_ready_ok!(gate.poll_ready());
    assert_eq!(refusal(&mut spawn(gate.call("open from the start"))), &OPEN);
    assert_eq!(counted.rejected(&OPEN), 2);

    let (mut reserving, _handle) = layer(GateLayer::with_policy(counted.clone()).backpressure().plain());
    breaker.reset();
    assert_ready_ok!(reserving.poll_ready());
    breaker.force_open();
    assert_eq!(refusal(&mut spawn(reserving.call("reserved, then open"))), &FORCED_OPEN);
    assert_eq!((counted.rejected(&OPEN), counted.rejected(&FORCED_OPEN)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_keyed_policy_keeps_what_a_wrapper_says_is_in_use() {
    let make = |_: &usize| CircuitBreakerLayer::from(touchy()).can_probe(|_: &usize| true).handle().clone();
    let keyed = Keyed::builder(|key: &usize| *key, make).max_keys(2).build().unwrap();
    (1..=2).for_each(|key| drop(keyed.admit(&key)));
    keyed.get(&1).unwrap().breaker().force_open();
    (3..6).for_each(|key| drop(keyed.admit(&key)));
    assert!(keyed.get(&1).is_some() && keyed.get(&5).is_some());
}
