//! A backend whose attempts take the time and have the result that a test plans.

use buttress::{
    BoxError, Error, Rejection, RetryBudget,
    ending::{Judge, Plain},
    outcome::{Failure, FailureKind, Outcome},
    policy::{Clock, TokioClock},
};
use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::Service;

type Planned = (u64, Result<&'static str, &'static str>);

#[derive(Clone, Debug)]
pub(super) struct Backend(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    plan: Vec<Planned>,
    origin: Instant,
    starts: Vec<u64>,
    ended: Vec<Ended>,
}

/// How an attempt ended, with its number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    Answered(usize),
    Dropped(usize),
}

impl Backend {
    /// Each attempt takes so many milliseconds.
    pub(super) fn new(plan: impl IntoIterator<Item = Planned>) -> Self {
        let (plan, origin) = (plan.into_iter().collect(), TokioClock.now());
        Self(Arc::new(Mutex::new(State { plan, origin, starts: Vec::new(), ended: Vec::new() })))
    }

    /// When the attempts started, in milliseconds.
    pub(super) fn starts(&self) -> Vec<u64> {
        self.0.lock().unwrap().starts.clone()
    }

    pub(super) fn ended(&self) -> Vec<Ended> {
        self.0.lock().unwrap().ended.clone()
    }
}

struct InFlight(Backend, usize, bool);

impl InFlight {
    fn answer(&mut self) {
        self.2 = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let ended = if self.2 { Ended::Answered(self.1) } else { Ended::Dropped(self.1) };
        self.0.0.lock().unwrap().ended.push(ended);
    }
}

impl Service<&'static str> for Backend {
    type Response = &'static str;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<&'static str, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        let (number, (millis, result)) = {
            let mut state = self.0.lock().unwrap();
            let elapsed = TokioClock.now() - state.origin;
            // Timers fire up to a millisecond late.
            let millis = elapsed.as_millis() as u64 / 5 * 5;
            state.starts.push(millis);
            (state.starts.len(), state.plan[state.starts.len() - 1])
        };
        let mut in_flight = InFlight(self.clone(), number, false);
        Box::pin(async move {
            if millis > 0 {
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            in_flight.answer();
            result.map_err(|text| match text {
                "rejected" => Error::from(Rejection::new("bulkhead", &buttress::bulkhead::FULL)).into(),
                text => text.into(),
            })
        })
    }
}

/// Reads the failure from the text of an error.
pub(super) fn ending() -> Plain<impl Judge<&'static str, Error> + Clone> {
    Plain::new().classify(|result: Result<&&'static str, &Error>| {
        let Err(error) = result else { return Outcome::Success };
        let (text, failure) = (error.to_string(), Failure::new(FailureKind::Application));
        Outcome::from(match text.split_once(' ') {
            _ if text == "fatal" => Failure { no_retry: true, conclusive: true, ..failure },
            _ if text == "never" => Failure { no_retry: true, ..failure },
            _ if text == "retried" => Failure { retried: true, ..failure },
            _ if text == "timeout" => Failure::new(FailureKind::Timeout),
            Some(("after", millis)) => {
                Failure { retry_after: Some(Duration::from_millis(millis.parse().unwrap())), ..failure }
            }
            _ => failure,
        })
    })
}

/// A budget of half of the calls.
pub(super) fn budget(burst: u32) -> RetryBudget {
    RetryBudget::builder().percent(50.0).min_per_second(0.0).burst(burst).build().unwrap()
}
