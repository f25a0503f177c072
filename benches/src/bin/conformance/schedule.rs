//! Runs all traces against all implementations at the same time.

#![expect(clippy::disallowed_methods, reason = "the peers run on the real clock, so this does")]

use std::thread;
use std::time::{Duration, Instant};

use crate::breaker::Implementation;
use crate::run::Run;
use crate::trace::{Config, Feature, Op, Operator, Trace, Window};

/// Maximum delay of a step on the real clock. The result of a later step is not meaningful.
const LATE: Duration = Duration::from_millis(50);
/// Number of attempts for a run with a late step.
const TRIES: u32 = 5;

#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Pass,
    Fail(Deviation),
    NotApplicable(Vec<Feature>),
    /// A step was late in every attempt, because the machine was too busy.
    Late,
}

#[derive(Clone, Debug)]
pub(crate) struct Deviation {
    /// Counted from 1.
    pub(crate) step: usize,
    pub(crate) at_ms: u64,
    pub(crate) what: String,
}

/// For each trace, the verdicts on all implementations. All runs are concurrent: they mostly sleep.
pub(crate) fn all(traces: &[Trace], implementations: &[Implementation], stretch: u32) -> Vec<Vec<Verdict>> {
    thread::scope(|scope| {
        let runs: Vec<Vec<_>> = traces
            .iter()
            .map(|trace| {
                implementations
                    .iter()
                    .map(|implementation| scope.spawn(move || judge(trace, implementation, stretch)))
                    .collect()
            })
            .collect();
        let join = |run: thread::ScopedJoinHandle<'_, _>| run.join().expect("a runner does not panic");
        runs.into_iter().map(|runs| runs.into_iter().map(join).collect()).collect()
    })
}

fn judge(trace: &Trace, implementation: &Implementation, stretch: u32) -> Verdict {
    let lacks = implementation.lacks(trace);
    if !lacks.is_empty() {
        return Verdict::NotApplicable(lacks);
    }
    let on_real_clock;
    let trace = if implementation.virtual_clock {
        trace
    } else {
        on_real_clock = stretched(trace, stretch.into());
        &on_real_clock
    };
    let verdicts = (0..TRIES).map(|_| attempt(trace, implementation));
    verdicts.into_iter().find(|verdict| !matches!(verdict, Verdict::Late)).unwrap_or(Verdict::Late)
}

fn attempt(trace: &Trace, implementation: &Implementation) -> Verdict {
    let real = !implementation.virtual_clock;
    let (mut run, start) = (Run::new((implementation.make)(trace)), Instant::now());
    for (number, step) in trace.steps.iter().enumerate() {
        let at = Duration::from_millis(step.at_ms);
        if real {
            thread::sleep(at.saturating_sub(start.elapsed()));
        }
        let result = run.step(&step.op, at);
        if real && start.elapsed() > at + LATE {
            return Verdict::Late;
        }
        if let Err(what) = result {
            return Verdict::Fail(Deviation { step: number + 1, at_ms: step.at_ms, what });
        }
    }
    Verdict::Pass
}

/// The trace with all times multiplied, after the division that it allows for a real clock.
fn stretched(trace: &Trace, by: u64) -> Trace {
    let mut trace = trace.clone();
    let part = u64::from(trace.divide_by);
    // Shorter times are invalid in a configuration.
    let stretch = |time: &mut u64| *time = (*time * by / part).max(10);
    let stretch_config = |config: &mut Config| {
        let times = [&mut config.open_ms, &mut config.lease_ms, &mut config.max_half_open_ms];
        let optional = [&mut config.slow_threshold_ms, &mut config.open_max_ms, &mut config.recovery_ms];
        times.into_iter().chain(optional.into_iter().flatten()).for_each(stretch);
        if let Window::TimeMs(time) = &mut config.window {
            stretch(time);
        }
    };
    stretch_config(&mut trace.config);
    for step in &mut trace.steps {
        step.at_ms = step.at_ms * by / part;
        match &mut step.op {
            Op::Operator(Operator::OpenFor { ms }) => stretch(ms),
            Op::Admit { retry_within_ms: Some(ms), .. } => stretch(ms),
            Op::Reload { config } => stretch_config(config),
            _ => {}
        }
    }
    trace
}
