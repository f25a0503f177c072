use super::{
    Withdrawal,
    layer::{RetryLayer, Shared},
};
use crate::{
    ending::{Begin, Ended, Finish, Kept, Replay},
    events,
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::Timer,
};
use buttress_core::{Backoff, Failure, FailureKind, Outcome, Sent, backoff::Pauses, shard::Ticket};
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
        if ends.deposits(&request) {
            ticket.config.budget.deposit();
        }
        let attempts = attempts.of(&request).unwrap_or(ticket.config.attempts);
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
        });
        ResponseFuture { state: State::Attempt { future }, repeat, context, ends: ends.clone(), ticket }
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
        if failure.no_retry {
            return None;
        }
        let given_up = failure.graceful && failure.sent == Sent::MaybeProcessed;
        let sent = if given_up && self.kept.is_untouched() { Sent::NotProcessed } else { failure.sent };
        let handed_back = sent == Sent::NotProcessed && failure.kind == FailureKind::Transport;
        if handed_back && !self.transparent {
            let request = self.again()?;
            self.transparent = true;
            stats.transparent.add(1);
            return Some(Next { request, pause: Duration::ZERO, withdrawal: None });
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
        // Withdraw before `again`: making the request again cuts off the body of the last attempt,
        // which may still be sent.
        let withdrawal = match never_sent {
            true => None,
            false => {
                let withdrawal = config.budget.try_withdraw();
                if withdrawal.is_none() {
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

    fn pause(&mut self, failure: &Failure, shared: &Shared) -> Option<Duration> {
        let config = &shared.config;
        let pauses = self.pauses.get_or_insert_with(|| config.backoff.pauses(shared.fork_rng()));
        let mut pause = pauses.next_pause();
        if failure.overload {
            let throttled = Backoff::full_jitter(OVERLOAD_BASE, config.backoff.cap());
            pause = pause.max(throttled.pause(self.counted - 1, pauses.rng()));
        }
        match (failure.retry_after, failure.kind) {
            (Some(hint), _) if hint > config.max_hint => None,
            // gRFC A6: the pushback is the exact pause, not a lower bound.
            (Some(hint), FailureKind::Grpc(_)) => Some(hint),
            (Some(hint), _) => Some(config.backoff.hinted(pause, hint, pauses.rng())),
            (None, _) => Some(pause),
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
    ends: E,
    ticket: Ticket<Shared>,
}

#[pin_project(project = StateProj)]
enum State<Req, F> {
    Attempt {
        #[pin]
        future: F,
    },
    Pausing {
        #[pin]
        timer: Timer,
        withdrawal: Option<Withdrawal>,
        request: Option<Req>,
    },
    Readying {
        request: Option<Req>,
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
                StateProj::Attempt { future } => ready!(future.poll(cx)),
                StateProj::Pausing { timer, withdrawal, request } => {
                    ready!(timer.poll_in_call(None, cx));
                    if let Some(withdrawal) = withdrawal.take() {
                        withdrawal.spend();
                    }
                    let request = request.take();
                    this.state.set(State::Readying { request });
                    continue;
                }
                StateProj::Readying { request } => {
                    let repeat = this.repeat.as_mut().expect("only a call with further attempts polls readiness again");
                    match ready!(repeat.service.poll_ready(cx)) {
                        Ok(()) => {
                            let mut request = request.take().expect("the request is taken once");
                            // The pause has used up some of the time that is left.
                            repeat.kept.refresh(&mut request);
                            let future = repeat.service.call(request);
                            this.state.set(State::Attempt { future });
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            let (outcome, result) = match result {
                Ok(response) => (this.ends.head(this.context, &response), Ok(response)),
                Err(error) => {
                    let error = this.ends.inner(error);
                    (this.ends.outcome(&error), Err(error))
                }
            };
            let (Some(repeat), Outcome::Failure(failure)) = (this.repeat.as_mut(), outcome) else {
                return Poll::Ready(result);
            };
            let Some(Next { request, pause, withdrawal }) = repeat.next(&failure, this.ticket) else {
                return Poll::Ready(result);
            };
            // Drop the failed response before the pause: it may hold a connection.
            drop(result);
            this.state.set(State::Pausing { timer: Timer::after(pause), withdrawal, request: Some(request) });
        }
    }
}
