//! Runs the traces of `tests/conformance/rate_limit` in the repository against the rate limit, on
//! virtual time. The README beside them specifies the format.

#[path = "../../../tests/conformance/rate_limit.rs"]
mod rate_limit;
#[path = "../../../tests/conformance/trace.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "each runner uses a part")]
mod trace;

use rate_limit::{RateTrace, ours};
use std::path::Path;

#[test]
fn the_rate_limit_passes_every_trace() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/rate_limit");
    let traces = RateTrace::read_all(&directory).unwrap();
    assert!(!traces.is_empty());
    for trace in traces {
        assert!(trace.requires.is_sorted(), "{}", trace.name);
        let mut limiter = ours(trace.config);
        for number in 0..trace.steps.len() {
            if let Err(deviation) = trace.step(number, &mut *limiter) {
                let at = trace.steps[number].at_ms;
                panic!("{}: {}\nstep {} at {at} ms: {deviation}", trace.name, trace.rule, number + 1);
            }
        }
    }
}
