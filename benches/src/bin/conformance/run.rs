//! Runs the steps of a trace against an implementation.

#![expect(clippy::disallowed_methods, reason = "the peers run on the real clock, so this does")]

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::breaker::{Breaker, Call, Implementation};
use crate::trace::{Admission, Config, Feature, Op, Operator, Outcome, Trace, Window};

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
    let verdicts = (0..TRIES).map(|_| {
        let breaker = (implementation.make)(trace);
        Run { breaker, real: !implementation.virtual_clock, start: Instant::now(), calls: HashMap::new() }.go(trace)
    });
    verdicts.into_iter().find(|verdict| !matches!(verdict, Verdict::Late)).unwrap_or(Verdict::Late)
}

/// The trace with all times multiplied, after the division that it allows for a real clock.
fn stretched(trace: &Trace, by: u64) -> Trace {
    let mut trace = trace.clone();
    let part = u64::from(trace.divide_by);
    // Shorter times are invalid in a configuration.
    let stretch = |time: &mut u64| *time = (*time * by / part).max(10);
    let stretch_config = |config: &mut Config| {
        let times = [&mut config.open_ms, &mut config.lease_ms, &mut config.max_half_open_ms];
        times.into_iter().chain(&mut config.slow_threshold_ms).for_each(stretch);
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

struct Run {
    breaker: Box<dyn Breaker>,
    real: bool,
    start: Instant,
    calls: HashMap<String, Vec<Box<dyn Call>>>,
}

impl Run {
    fn go(mut self, trace: &Trace) -> Verdict {
        for (number, step) in trace.steps.iter().enumerate() {
            let at = Duration::from_millis(step.at_ms);
            if self.real {
                thread::sleep(at.saturating_sub(self.start.elapsed()));
            } else {
                self.breaker.set_time(at);
            }
            let result = self.step(&step.op, at);
            if self.real && self.start.elapsed() > at + LATE {
                return Verdict::Late;
            }
            if let Err(what) = result {
                return Verdict::Fail(Deviation { step: number + 1, at_ms: step.at_ms, what });
            }
        }
        Verdict::Pass
    }

    fn step(&mut self, op: &Op, now: Duration) -> Result<(), String> {
        match op {
            Op::Admit { call, count, expect, retry_within_ms } => (0..*count).try_for_each(|_| {
                let admitted = self.admit_as(*expect)?;
                if let Some(within) = retry_within_ms {
                    let after = self.breaker.retry_after();
                    if after.is_none_or(|after| after > Duration::from_millis(*within)) {
                        return Err(format!("expected a retry-after of at most {within} ms, but it is {after:?}"));
                    }
                }
                if let Some(admitted) = admitted {
                    self.calls.entry(call.clone().unwrap_or_default()).or_default().push(admitted);
                }
                Ok(())
            }),
            Op::Progress { call, part } => {
                let calls = self.calls.get_mut(call).ok_or_else(|| format!("no call is named {call}"))?;
                calls.iter_mut().for_each(|call| call.progress(*part, now));
                Ok(())
            }
            Op::Settle { call, outcome } => {
                let calls = self.calls.remove(call).ok_or_else(|| format!("no call is named {call}"))?;
                calls.into_iter().for_each(|call| call.end(*outcome, now));
                Ok(())
            }
            Op::Drop { call } => self.calls.remove(call).map(drop).ok_or_else(|| format!("no call is named {call}")),
            Op::Calls { count, outcome } => (1..=*count).try_for_each(|n| self.call(n as usize, *outcome, now)),
            Op::Results { outcomes } => {
                outcomes.iter().enumerate().try_for_each(|(n, outcome)| self.call(n + 1, *outcome, now))
            }
            Op::Attempt { outcome } => {
                self.breaker.admit().into_iter().for_each(|call| call.end(*outcome, now));
                Ok(())
            }
            Op::Trip => {
                let refuses = (0..Trace::TRIP_LIMIT).any(|_| match self.breaker.admit() {
                    Some(call) => {
                        call.end(Outcome::Failure, now);
                        false
                    }
                    None => true,
                });
                if refuses { Ok(()) } else { Err(format!("{} failures did not trip it", Trace::TRIP_LIMIT)) }
            }
            Op::State { expect } => match self.breaker.state() {
                Some(state) if state != *expect => Err(format!("expected {expect:?}, but it is {state:?}")),
                _ => Ok(()),
            },
            Op::FailureRate { expect } => match self.breaker.failure_rate() {
                Some(rate) if rate != *expect => Err(format!("expected {expect:?}, but it is {rate:?}")),
                _ => Ok(()),
            },
            Op::Reload { config } => {
                if self.breaker.reload(config) {
                    Ok(())
                } else {
                    Err("it refuses the configuration".into())
                }
            }
            Op::Operator(operator) => {
                if self.breaker.operate(*operator) {
                    Ok(())
                } else {
                    Err("it cannot do that".into())
                }
            }
        }
    }

    fn call(&mut self, number: usize, outcome: Outcome, now: Duration) -> Result<(), String> {
        let admitted = self.admit_as(Admission::Admitted).map_err(|what| format!("call {number}: {what}"))?;
        admitted.into_iter().for_each(|call| call.end(outcome, now));
        Ok(())
    }

    fn admit_as(&mut self, expected: Admission) -> Result<Option<Box<dyn Call>>, String> {
        let call = self.breaker.admit();
        let actual = match &call {
            None => Admission::Rejected,
            // If the implementation does not tell, assume the expected kind.
            Some(call) => match call.is_probe() {
                None if expected == Admission::Probe => Admission::Probe,
                None | Some(false) => Admission::Admitted,
                Some(true) => Admission::Probe,
            },
        };
        if actual == expected { Ok(call) } else { Err(format!("expected {expected:?}, but it is {actual:?}")) }
    }
}
