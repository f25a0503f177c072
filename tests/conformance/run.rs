//! Runs the steps of a trace against an implementation, at times that the caller sets.

use crate::trace::{Admission, Config, Op, Operator, Outcome, Part, State, Trace};
use std::{collections::HashMap, time::Duration};

/// An implementation, made for the configuration of one trace.
pub(crate) trait Breaker {
    /// Sets its clock, if it can be set.
    fn set_time(&mut self, _since_start: Duration) {}

    /// Asks for admission. `None` if the call is rejected.
    fn admit(&mut self) -> Option<Box<dyn Call>>;

    /// The retry-after of the last rejection.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Changes the configuration at run time. `false` if that is not supported.
    fn reload(&mut self, _config: &Config) -> bool {
        false
    }

    /// Its failure rate, which may be unknown. `None` if it does not expose one.
    fn failure_rate(&mut self) -> Option<Option<f64>> {
        None
    }

    /// Its state. `None` if it does not expose one.
    fn state(&mut self) -> Option<State> {
        None
    }

    /// Applies an operator's action. `false` if that is not supported.
    fn operate(&mut self, _operator: Operator) -> bool {
        false
    }
}

/// A call in flight. Dropping it abandons the call without an outcome.
pub(crate) trait Call {
    /// Whether it is a probe. `None` if the implementation does not tell.
    fn is_probe(&self) -> Option<bool> {
        None
    }

    /// Delivers a part of its response.
    fn progress(&mut self, part: Part);

    /// Ends the call.
    fn end(self: Box<Self>, outcome: Outcome);
}

pub(crate) struct Run {
    breaker: Box<dyn Breaker>,
    calls: HashMap<String, Vec<Box<dyn Call>>>,
}

impl Run {
    pub(crate) fn new(breaker: Box<dyn Breaker>) -> Self {
        Self { breaker, calls: HashMap::new() }
    }

    /// Executes a step at `now`.
    ///
    /// # Errors
    /// How the implementation deviates from what the trace expects.
    pub(crate) fn step(&mut self, op: &Op, now: Duration) -> Result<(), String> {
        self.breaker.set_time(now);
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
                calls.iter_mut().for_each(|call| call.progress(*part));
                Ok(())
            }
            Op::Settle { call, outcome } => {
                let calls = self.calls.remove(call).ok_or_else(|| format!("no call is named {call}"))?;
                calls.into_iter().for_each(|call| call.end(*outcome));
                Ok(())
            }
            Op::Drop { call } => self.calls.remove(call).map(drop).ok_or_else(|| format!("no call is named {call}")),
            Op::Calls { count, outcome } => (1..=*count).try_for_each(|n| self.call(n as usize, *outcome)),
            Op::Results { outcomes } => {
                outcomes.iter().enumerate().try_for_each(|(n, outcome)| self.call(n + 1, *outcome))
            }
            Op::Attempt { count, outcome, admitted_at_most } => {
                let mut admitted = 0;
                for call in (0..*count).filter_map(|_| self.breaker.admit()) {
                    call.end(*outcome);
                    admitted += 1;
                }
                match admitted_at_most {
                    Some(most) if admitted > *most => {
                        Err(format!("expected at most {most} of {count} calls to be Admitted, but {admitted} are"))
                    }
                    _ => Ok(()),
                }
            }
            Op::Trip => {
                let refuses = (0..Trace::TRIP_LIMIT).any(|_| match self.breaker.admit() {
                    Some(call) => {
                        call.end(Outcome::Failure);
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

    fn call(&mut self, number: usize, outcome: Outcome) -> Result<(), String> {
        let admitted = self.admit_as(Admission::Admitted).map_err(|what| format!("call {number}: {what}"))?;
        admitted.into_iter().for_each(|call| call.end(outcome));
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
