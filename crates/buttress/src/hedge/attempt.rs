use super::layer::Shared;
use crate::{
    clock::TokioClock,
    events,
    ready_call::ReadyCall,
    retry::{RetryInFlight, Withdrawal},
};
use buttress_core::Clock;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tower_service::Service;

/// An attempt after the first. In a box, because few calls have one.
pub(super) struct Attempt<S, Req, F> {
    /// The first attempt is number 1.
    pub(super) number: u32,
    call: Pin<Box<ReadyCall<S, Req, F>>>,
    /// What pays for the attempt until it is sent.
    withdrawal: Option<Withdrawal>,
    /// Its place among the retries in flight, once it is sent.
    in_flight: Option<RetryInFlight>,
    /// `None` if it replaces an attempt that failed.
    after: Option<Duration>,
    /// When it was sent.
    started: Option<Instant>,
}

impl<S: Service<Req>, Req> Attempt<S, Req, S::Future> {
    pub(super) fn new(number: u32, service: S, request: Req, withdrawal: Withdrawal, after: Option<Duration>) -> Self {
        let call = Box::pin(ReadyCall::new(service, request));
        Self { number, call, withdrawal: Some(withdrawal), in_flight: None, after, started: None }
    }

    pub(super) fn poll(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<Result<S::Response, S::Error>> {
        if self.withdrawal.is_some() {
            ready!(self.call.as_mut().poll_ready(cx))?;
            self.in_flight = self.withdrawal.take().map(Withdrawal::spend);
            let sent = if self.after.is_some() { &shared.stats.hedges } else { &shared.stats.retries };
            sent.add(1);
            events::hedging(self.number, self.after);
            if shared.config.delay.learns() {
                self.started = Some(TokioClock.now());
            }
            self.call.as_mut().start();
        }
        self.call.as_mut().poll(cx)
    }
}

impl<S, Req, F> Attempt<S, Req, F> {
    /// Returns how long the attempt has taken, if it was sent and its time counts.
    pub(super) fn elapsed(&self, now: Instant) -> Option<Duration> {
        self.started.map(|started| now.saturating_duration_since(started))
    }
}
