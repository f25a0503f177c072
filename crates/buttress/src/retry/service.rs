use super::{
    Withdrawal,
    layer::{RetryLayer, Shared},
    protocol::{Cloning, Protocol, Replay},
};
use crate::observe::{Classify, Plain};
use buttress_core::{Backoff, Failure, FailureKind, Outcome, Sent, backoff::Pauses, shard::Ticket};
use fastrand::Rng;
use pin_project_lite::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tower_service::Service;

/// The shortest step of the backoff when the backend sheds load: the AWS SDKs' base for throttled calls.
const OVERLOAD_BASE: Duration = Duration::from_secs(1);

/// A service that repeats failed calls.
#[derive(Clone, Debug)]
pub struct Retry<S, P = Cloning, C = Plain> {
    pub(super) inner: S,
    pub(super) layer: RetryLayer<P, C>,
}

impl<S, P, C, Req> Service<Req> for Retry<S, P, C>
where
    P: Protocol<Req>,
    S: Service<<P::Kept as Replay>::Attempt> + Clone,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, P::Kept, C, <P::Kept as Replay>::Attempt, S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let RetryLayer { protocol, classify, shared } = &self.layer;
        let ticket = shared.ticket();
        if protocol.deposits(&request) {
            ticket.config.budget.deposit();
        }
        let (attempt, kept) =
            if ticket.config.attempts > 1 { protocol.first(request) } else { (protocol.only(request), None) };
        // The instance that was polled ready makes the first attempt; further ones drive it to readiness again.
        let fresh = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, fresh);
        let future = service.call(attempt);
        let repeat = kept.map(|kept| Repeat { kept, service, pauses: None, made: 1, counted: 1, transparent: false });
        ResponseFuture { state: State::Attempt { future }, repeat, classify: classify.clone(), ticket }
    }
}

/// What a further attempt needs.
struct Repeat<S, K> {
    kept: K,
    service: S,
    pauses: Option<Pauses>,
    /// Attempts made.
    made: u32,
    /// Attempts that count.
    counted: u32,
    /// Whether the one free repetition of an unprocessed request is used up.
    transparent: bool,
}

/// How to go on after a failed attempt.
struct Next<Req> {
    request: Req,
    pause: Duration,
    withdrawal: Option<Withdrawal>,
}

impl<S, K: Replay> Repeat<S, K> {
    /// Decides in the order that the module documents. `None`: the failure is the answer.
    fn next(&mut self, failure: &Failure, shared: &Shared) -> Option<Next<K::Attempt>> {
        let Shared { config, stats } = shared;
        if failure.no_retry {
            return None;
        }
        let refused = failure.sent == Sent::NotProcessed && failure.kind == FailureKind::Transport;
        if refused && !std::mem::replace(&mut self.transparent, true) {
            return Some(Next { request: self.again()?, pause: Duration::ZERO, withdrawal: None });
        }
        if self.counted >= config.attempts {
            stats.out_of_attempts.add(1);
            return None;
        }
        if failure.sent == Sent::MaybeProcessed && !self.kept.is_idempotent() {
            return None;
        }
        let pause = self.pause(failure, shared)?;
        let request = self.again()?;
        // What was never sent loads nobody, so it costs nothing.
        let withdrawal = if failure.sent == Sent::Never {
            None
        } else if let Some(withdrawal) = config.budget.try_withdraw() {
            Some(withdrawal)
        } else {
            stats.out_of_budget.add(1);
            return None;
        };
        self.counted += 1;
        stats.retries.add(1);
        Some(Next { request, pause, withdrawal })
    }

    fn again(&mut self) -> Option<K::Attempt> {
        self.made += 1;
        self.kept.again(self.made)
    }

    fn pause(&mut self, failure: &Failure, Shared { config, .. }: &Shared) -> Option<Duration> {
        let pauses =
            self.pauses.get_or_insert_with(|| config.backoff.pauses(config.seed.map_or_else(Rng::new, Rng::with_seed)));
        let mut pause = pauses.next_pause();
        if failure.overload {
            let throttled = Backoff::full_jitter(OVERLOAD_BASE, config.backoff.cap());
            pause = pause.max(throttled.pause(self.counted - 1, pauses.rng()));
        }
        match (failure.retry_after, failure.kind) {
            (Some(hint), _) if hint > config.max_hint => None,
            // gRFC A6: the pushback is the delay, and not a hint.
            (Some(hint), FailureKind::Grpc(_)) => Some(hint),
            // Up to a tenth more, so that those who were sent away together do not come back together.
            (Some(hint), _) => Some(pause.max(hint).mul_f64(1.0 + 0.1 * pauses.rng().f64())),
            (None, _) => Some(pause),
        }
    }
}

pin_project! {
    /// The future of a [`Retry`].
    pub struct ResponseFuture<S, K, C, Req, F> {
        #[pin]
        state: State<Req, F>,
        repeat: Option<Repeat<S, K>>,
        classify: C,
        ticket: Ticket<Shared>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<Req, F> {
        Attempt { #[pin] future: F },
        Pausing { #[pin] timer: Sleep, withdrawal: Option<Withdrawal>, request: Option<Req> },
        Readying { request: Option<Req> },
    }
}

impl<S, K, C, Req, F> fmt::Debug for ResponseFuture<S, K, C, Req, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, K, C> Future for ResponseFuture<S, K, C, K::Attempt, S::Future>
where
    K: Replay,
    S: Service<K::Attempt>,
    C: Classify<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Attempt { future } => ready!(future.poll(cx)),
                StateProj::Pausing { timer, withdrawal, request } => {
                    ready!(timer.poll(cx));
                    if let Some(withdrawal) = withdrawal.take() {
                        withdrawal.spend();
                    }
                    let request = request.take();
                    this.state.set(State::Readying { request });
                    continue;
                }
                StateProj::Readying { request } => {
                    let repeat = this.repeat.as_mut().expect("only a repeatable call gets ready again");
                    match ready!(repeat.service.poll_ready(cx)) {
                        Ok(()) => {
                            let future =
                                repeat.service.call(request.take().expect("the request leaves only with the call"));
                            this.state.set(State::Attempt { future });
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            let Some(repeat) = this.repeat else { return Poll::Ready(result) };
            let Outcome::Failure(failure) = this.classify.classify(result.as_ref()) else { return Poll::Ready(result) };
            let Some(Next { request, pause, withdrawal }) = repeat.next(&failure, this.ticket) else {
                return Poll::Ready(result);
            };
            // The failed response goes before the pause: it may hold a connection.
            drop(result);
            this.state.set(State::Pausing { timer: sleep(pause), withdrawal, request: Some(request) });
        }
    }
}
