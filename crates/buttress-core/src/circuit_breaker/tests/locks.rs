//! Which calls take no lock: they end while another thread holds it.

use super::*;
use crate::testing::without_waiting;

#[test]
fn a_call_that_a_closed_circuit_admits_and_that_succeeds_takes_no_lock() {
    let settings: [fn(Builder) -> Builder; 3] = [
        |builder| builder,
        |builder| builder.window(Window::Count(100)),
        |builder| builder.slow_threshold(SECOND).slow_rate(0.5).count_overdue(true),
    ];
    for configure in settings {
        let breaker = configure(CircuitBreaker::builder("test")).build().unwrap();
        let caller = breaker.clone();
        breaker.circuit.change(breaker.clock.now(), |_, _, _| {
            without_waiting(move || caller.admit(&()).unwrap().settle(&Outcome::Success));
        });
        assert_eq!(breaker.snapshot().counts.succeeded, 1);
    }
}

#[test]
fn a_call_that_an_open_circuit_rejects_takes_no_lock() {
    let breaker = consecutive(1).build().unwrap();
    breaker.admit(&()).unwrap().settle(&FAILURE);
    let caller = breaker.clone();
    breaker.circuit.change(breaker.clock.now(), |_, _, _| {
        assert!(without_waiting(move || caller.admit(&()).is_err()));
    });
}
