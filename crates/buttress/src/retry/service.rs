use super::{
    CallInFlight, RetryInFlight, Withdrawal, enter,
    layer::{RetryLayer, Shared},
};
use crate::{
    clock::TokioClock,
    ending::{Begin, Ended, Finish, Kept, Replay},
    events,
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::Timer,
};
use buttress_core::{
    Backoff, Clock, Failure, FailureKind, Ignored, Outcome, Sent,
    backoff::Pauses,
    context::{CallContext, Retried},
    shard::Ticket,
};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Base of the backoff when the backend sheds load. Source: the AWS SDKs' base for throttled calls.
const OVERLOAD_BASE: Duration = Duration::from_secs(1);

/// Number of attempts of one call that may fail without having been sent. They do not count as
/// attempts; without this limit a proxy that refuses connections would be called in a loop.
const NEVER_SENT: u32 = 3;

/// A service behind a [`RetryLayer`](crate::RetryLayer).
///
/// ```
/// use buttress::{PlainExt, RetryLayer, ending::Plain, retry::Retry};
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> Retry<S, Plain> {
///     RetryLayer::new(3).plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct Retry<S, E, Attempts = Same> {
    pub(super) inner: S,
    pub(super) layer: RetryLayer<E, Attempts>,
}

inner_service!(Retry<S, E, Attempts>);

impl<S, E: Ended + Clone, Attempts: Clone> Layer<S> for RetryLayer<E, Attempts> {
    type Service = Retry<S, E, Attempts>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, layer: self.clone() }
    }
}

impl<S, E, Attempts, Req> Service<Req> for Retry<S, E, Attempts>
where
    Attempts: PerRequest<Req, u32>,
    E: Begin<Req> + Replay<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
    S: Service<E::Attempt> + Clone,
{
    type Response = S::Response;
    type Error = E::Error;
    type Future = ResponseFuture<S, E::Kept, E, E::Context, E::Attempt, S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.ends.inner(error))
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let RetryLayer { ends, attempts, shared } = &self.layer;
        let ticket = shared.ticket();
        let context = ends.begin::<()>(&mut request);
        let in_flight = if ends.deposits(&request) { enter(&ticket.config.budget) } else { None };
        let attempts = ends.attempts(&request).or_else(|| attempts.of(&request)).unwrap_or(ticket.config.attempts);
        let (attempt, kept) = if attempts > 1 {
            let (attempt, kept) = ends.first(request);
            (attempt, Some(kept))
        } else {
            (ends.only(request), None)
        };
        // The instance that was polled ready makes the first attempt. Later ones poll it ready
        // again.
        let fresh = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, fresh);
        let future = service.call(attempt);
        let repeat = kept.map(|kept| Repeat {
            kept,
            service,
            pauses: None,
            attempts,
            made: 1,
            counted: 1,
            never_sent: 0,
            transparent: false,
            denied: false,
        });
        let state = State::Attempt { future, retry: None };
        ResponseFuture { state, repeat, context, in_flight, ends: ends.clone(), ticket }
    }
}

/// State for further attempts.
struct Repeat<S, Stored> {
    kept: Stored,
    service: S,
    pauses: Option<Pauses>,
    /// Attempts that are allowed.
    attempts: u32,
    /// Attempts that were made.
    made: u32,
    /// Attempts that count against `attempts`.
    counted: u32,
    /// Attempts that failed before they were sent.
    never_sent: u32,
    /// Whether the one free retry of a request that the transport returned is used up.
    transparent: bool,
    /// Whether the budget denied a retry.
    denied: bool,
}

/// The next attempt after a failed one.
struct Next<Req> {
    request: Req,
    pause: Duration,
    withdrawal: Option<Withdrawal>,
}

impl<S, Stored: Kept> Repeat<S, Stored> {
    /// Applies the rules of the module in their order. `None`: the failure is the result.
    fn next(&mut self, failure: &Failure, shared: &Shared) -> Option<Next<Stored::Attempt>> {
        let Shared { config, stats, .. } = shared;
        let given_up = failure.graceful && failure.sent == Sent::MaybeProcessed;
        let sent = if given_up && self.kept.is_untouched() { Sent::NotProcessed } else { failure.sent };
        let handed_back = sent == Sent::NotProcessed && failure.kind == FailureKind::Transport;
        if handed_back && !self.transparent && !failure.no_retry && !failure.retried {
            self.in_time(failure, Duration::ZERO, shared)?;
            let request = self.again()?;
            self.transparent = true;
            stats.transparent.add(1);
            return Some(Next { request, pause: Duration::ZERO, withdrawal: None });
        }
        config.budget.record(&Outcome::Failure(*failure));
        if failure.no_retry {
            return None;
        }
        if failure.retried {
            stats.retried_below.add(1);
            events::retried_below(failure, self.made);
            return None;
        }
        // A request that was not sent did not load the backend. It is free, and limited by
        // NEVER_SENT.
        let never_sent = sent == Sent::Never;
        self.never_sent += u32::from(never_sent);
        if if never_sent { self.never_sent >= NEVER_SENT } else { self.counted >= self.attempts } {
            stats.out_of_attempts.add(1);
            return None;
        }
        if sent == Sent::MaybeProcessed && !self.kept.is_idempotent() {
            return None;
        }
        let pause = self.pause(failure, shared)?;
        self.in_time(failure, pause, shared)?;
        // Withdraw before `again`: making the request again cuts off the body of the last attempt,
        // which may still be sent.
        let withdrawal = match never_sent {
            true => None,
            false => {
                let withdrawal = config.budget.try_withdraw();
                if withdrawal.is_none() {
                    self.denied = true;
                    stats.out_of_budget.add(1);
                    events::out_of_budget(failure, self.made);
                    return None;
                }
                withdrawal
            }
        };
        let request = self.again()?;
        self.counted += u32::from(!never_sent);
        stats.retries.add(1);
        events::retrying(failure, self.made, pause);
        Some(Next { request, pause, withdrawal })
    }

    fn again(&mut self) -> Option<Stored::Attempt> {
        let request = self.kept.again(self.made + 1)?;
        self.made += 1;
        Some(request)
    }

    /// Returns `None` if the deadline of the call leaves no time for another attempt after `pause`.
    fn in_time(&self, failure: &Failure, pause: Duration, shared: &Shared) -> Option<()> {
        let Some(deadline) = CallContext::current().deadline else { return Some(()) };
        let left = deadline.saturating_duration_since(TokioClock.now());
        if pause.saturating_add(shared.config.min_useful) <= left {
            return Some(());
        }
        shared.stats.out_of_time.add(1);
        events::out_of_time(failure, self.made, pause);
        None
    }

    /// Returns the number of retries that were made, if the caller should not repeat the call once
    /// more.
    fn in_vain(&self, outcome: &Outcome) -> Option<u32> {
        let retries = self.made - 1 - u32::from(self.transparent);
        let is_marked = match outcome {
            Outcome::Failure(failure) => failure.retried || self.denied || retries > 0,
            // A circuit that has opened between the attempts.
            Outcome::Ignored(Ignored::LocalReject) => retries > 0,
            _ => false,
        };
        is_marked.then_some(retries)
    }

    fn pause(&mut self, failure: &Failure, shared: &Shared) -> Option<Duration> {
        let config = &shared.config;
        let pauses = self.pauses.get_or_insert_with(|| config.backoff.pauses(shared.fork_rng()));
        let mut pause = pauses.next_pause();
        if failure.overload {
            let throttled = Backoff::full_jitter(OVERLOAD_BASE, config.backoff.cap());
            pause = pause.max(throttled.pause(self.counted - 1, pauses.rng()));
        }
        match failure.retry_after {
            Some(hint) if hint > config.max_hint => None,
            // gRFC A6: the pushback is the exact pause, not a lower bound.
            Some(hint) if failure.pushback => Some(hint),
            Some(hint) => Some(config.backoff.hinted(pause, hint, pauses.rng())),
            None => Some(pause),
        }
    }
}

/// The future of a [`Retry`].
#[pin_project]
pub struct ResponseFuture<S, Stored, E, Cx, Req, F> {
    #[pin]
    state: State<Req, F>,
    repeat: Option<Repeat<S, Stored>>,
    context: Cx,
    in_flight: Option<CallInFlight>,
    ends: E,
    ticket: Ticket<Shared>,
}

#[pin_project(project = StateProj)]
enum State<Req, F> {
    Attempt {
        #[pin]
        future: F,
        retry: Option<RetryInFlight>,
    },
    Pausing {
        #[pin]
        timer: Timer,
        withdrawal: Option<Withdrawal>,
        request: Option<Req>,
    },
    Readying {
        request: Option<Req>,
        retry: Option<RetryInFlight>,
    },
}

opaque_debug!(ResponseFuture<S, Stored, E, Cx, Req, F>);

impl<S, Stored, E, Cx> Future for ResponseFuture<S, Stored, E, Cx, Stored::Attempt, S::Future>
where
    Stored: Kept,
    S: Service<Stored::Attempt>,
    E: Finish<Cx, S::Response, S::Error>,
{
    type Output = Result<S::Response, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Attempt { future, retry } => {
                    let result = ready!(future.poll(cx));
                    *retry = None;
                    result
                }
                StateProj::Pausing { timer, withdrawal, request } => {
                    ready!(timer.poll_in_call(None, cx));
                    let retry = withdrawal.take().map(Withdrawal::spend);
                    let request = request.take();
                    this.state.set(State::Readying { request, retry });
                    continue;
                }
                StateProj::Readying { request, retry } => {
                    let repeat = this.repeat.as_mut().expect("only a call with further attempts polls readiness again");
                    match ready!(repeat.service.poll_ready(cx)) {
                        Ok(()) => {
                            let mut request = request.take().expect("the request is taken once");
                            // The pause has used up some of the time that is left.
                            repeat.kept.refresh(&mut request);
                            let future = repeat.service.call(request);
                            let retry = retry.take();
                            this.state.set(State::Attempt { future, retry });
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            let (outcome, mut result) = match result {
                Ok(response) => (this.ends.head(this.context, &response), Ok(response)),
                Err(error) => {
                    let error = this.ends.inner(error);
                    (this.ends.outcome(&error), Err(error))
                }
            };
            let shared: &Shared = this.ticket;
            let next = match (&outcome, this.repeat.as_mut()) {
                (Outcome::Failure(failure), Some(repeat)) => repeat.next(failure, shared),
                _ => {
                    shared.config.budget.record(&outcome);
                    None
                }
            };
            let Some(Next { request, pause, withdrawal }) = next else {
                if outcome != Outcome::Success {
                    mark(this.ends, this.repeat.as_ref(), &outcome, result.as_mut().ok());
                }
                *this.in_flight = None;
                return Poll::Ready(result);
            };
            // Drop the failed response before the pause: it may hold a connection.
            drop(result);
            this.state.set(State::Pausing { timer: Timer::after(pause), withdrawal, request: Some(request) });
        }
    }
}

/// Tells the callers of this service that a call was repeated in vain: in the response, and for the
/// thread.
#[cold]
fn mark<S, Stored: Kept, E, Cx, Res, Err>(
    ends: &E,
    repeat: Option<&Repeat<S, Stored>>,
    outcome: &Outcome,
    response: Option<&mut Res>,
) where
    E: Finish<Cx, Res, Err>,
{
    let retries = match repeat {
        Some(repeat) => repeat.in_vain(outcome),
        None => outcome.failure().filter(|failure| failure.retried).map(|_| 0),
    };
    let Some(retries) = retries else { return };
    Retried::note(retries);
    if let Some(response) = response {
        ends.mark_retried(response, retries);
    }
}
