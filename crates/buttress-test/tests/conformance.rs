//! Runs the traces of `tests/conformance` in the repository against the layer of the circuit
//! breaker, on virtual time. The tests of the core run the same traces against the algorithm.

#[path = "../../../tests/conformance/future.rs"]
#[allow(dead_code, reason = "each runner uses a part")]
mod future;
#[path = "../../../tests/conformance/layer.rs"]
mod layer;
#[path = "../../../tests/conformance/ours.rs"]
#[allow(dead_code, reason = "each runner uses a part")]
mod ours;
#[path = "../../../tests/conformance/plain.rs"]
mod plain;
#[path = "../../../tests/conformance/run.rs"]
mod run;
#[path = "../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "each runner uses a part")]
mod trace;

use run::{Breaker, Run};
use std::{path::Path, time::Duration};
use tokio::{runtime::Builder, time::advance};
use trace::{Feature, Trace};

#[test]
fn the_layer_around_an_http_client_passes_what_the_core_passes() {
    check_all(ours::has, layer::make);
}

#[test]
fn the_layer_around_a_plain_service_passes_what_needs_no_parts_of_a_response() {
    check_all(plain::has, plain::make);
}

fn check_all(has: fn(Feature) -> bool, make: fn(&Trace) -> Box<dyn Breaker>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance");
    for trace in Trace::read_all(&directory).unwrap().values() {
        if trace.requires.iter().all(|feature| *feature == Feature::ExactTime || has(*feature)) {
            check(trace, make);
        }
    }
}

fn check(trace: &Trace, make: fn(&Trace) -> Box<dyn Breaker>) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _paused = runtime.enter();
    let mut run = Run::new(make(trace));
    let mut now = Duration::ZERO;
    for (number, step) in trace.steps.iter().enumerate() {
        let at = Duration::from_millis(step.at_ms);
        runtime.block_on(advance(at - now));
        now = at;
        if let Err(deviation) = run.step(&step.op, now) {
            panic!("{}: {}\nstep {} at {} ms: {deviation}", trace.name, trace.rule, number + 1, step.at_ms);
        }
    }
}
