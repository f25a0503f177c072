use super::{attempt::Attempt, layer::Shared};
use crate::{
    clock::TokioClock,
    ending::{Finish, Kept},
    events,
    retry::Withdrawal,
    timer::{Deadline, Limit},
};
use buttress_core::{Clock, Failure, FailureKind, Ignored, Outcome, context::CallContext};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower_service::Service;

/// State of a call that may have further attempts. `T` is the result of the call.
pub(super) struct Hedging<S, Stored, Req, F, T> {
    kept: Stored,
    service: S,
    /// The delay that the request asks for.
    own_delay: Option<Duration>,
    /// The delay of the call, once an attempt was pending. `None` if no attempt is sent for the
    /// time that the others take.
    delay: Option<Duration>,
    pub(super) next: Next,
    /// Attempts that were made, the first included.
    made: u32,
    /// Further attempts that are allowed.
    allowed: u32,
    /// What pays for the next attempt, during the pause that a failure asked for.
    paid: Option<Withdrawal>,
    /// Whether a percentile learns from the call.
    learns: bool,
    /// When the first attempt was found pending, if a percentile learns from it.
    started: Option<Instant>,
    /// Attempts in flight after the first.
    others: Vec<Attempt<S, Req, F>>,
    /// The result of the earliest attempt that failed, and its number.
    failed: Option<(u32, T)>,
}

/// When the next attempt is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// No attempt was pending so far.
    Unknown,
    /// At once, because an attempt has failed.
    Now,
    /// When the timer fires, which is set to the delay.
    After(Duration),
    /// When the timer fires, which is set to the pause that a failure asked for.
    Hint(Duration),
    Never,
}

/// What the result of an attempt means for its call.
pub(super) enum Verdict<T> {
    /// It is the result of the call. The flag is whether the attempt succeeded.
    Final(T, bool),
    /// The call goes on while it has other attempts or may have one. `None` if a layer of this
    /// process rejected the attempt.
    Failed(T, Option<Failure>),
}

impl<T> Verdict<T> {
    pub(super) fn of<E, Cx, Res, Err>(ends: &E, context: &Cx, result: Result<Res, Err>, shared: &Shared) -> Self
    where
        E: Finish<Cx, Res, Err>,
        Result<Res, E::Error>: Into<T>,
    {
        let (outcome, result) = match result {
            Ok(response) => (ends.head(context, &response), Ok(response)),
            Err(error) => {
                let error = ends.inner(error);
                (ends.outcome(&error), Err(error))
            }
        };
        // A retry around this layer records the outcomes in a budget that is its own.
        if shared.config.deposits {
            shared.config.budget.record(&outcome);
        }
        let result = result.into();
        match outcome {
            Outcome::Failure(failure) if failure.conclusive => Self::Final(result, false),
            Outcome::Failure(failure) => Self::Failed(result, Some(failure)),
            Outcome::Ignored(Ignored::LocalReject) => Self::Failed(result, None),
            _ => Self::Final(result, true),
        }
    }
}

impl<S, Stored, Req, F, T> Hedging<S, Stored, Req, F, T> {
    pub(super) fn new(kept: Stored, service: S, own_delay: Option<Duration>, shared: &Shared) -> Self {
        Self {
            kept,
            service,
            own_delay,
            delay: None,
            next: Next::Unknown,
            made: 1,
            allowed: shared.config.max_hedges,
            paid: None,
            learns: own_delay.is_none() && shared.config.delay.learns(),
            started: None,
            others: Vec::new(),
            failed: None,
        }
    }

    /// Notes that the first attempt is pending, and sets when the first hedge is due.
    pub(super) fn begin(&mut self, shared: &Shared, mut timer: Pin<&mut Deadline>) {
        self.next = Next::Never;
        let delay = self.own_delay.or_else(|| shared.config.delay.current());
        self.delay = delay.filter(|delay| *delay < Duration::MAX);
        if self.learns {
            self.started = Some(TokioClock.now());
        }
        // A hedge is due after the delay, and then needs as much time again.
        if let Some(delay) = self.delay.filter(|delay| has_time(delay.saturating_mul(2))) {
            self.next = Next::After(delay);
            if let Some(started) = self.started {
                timer.set(Deadline::since(started.into(), delay));
            }
        }
    }

    /// Returns how long the first attempt has taken.
    pub(super) fn first_elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| TokioClock.now().saturating_duration_since(started))
    }

    /// Takes the result of an attempt. Returns the result of the call, if it is that.
    pub(super) fn settle(
        &mut self,
        number: u32,
        elapsed: Duration,
        verdict: Verdict<T>,
        shared: &Shared,
        timer: Pin<&mut Deadline>,
    ) -> Option<T> {
        let timed_out = |failure: &Failure| failure.kind == FailureKind::Timeout;
        let counts = match &verdict {
            Verdict::Final(_, succeeded) => *succeeded,
            Verdict::Failed(_, failure) => failure.as_ref().is_some_and(timed_out),
        };
        if counts && self.learns {
            shared.config.delay.record(elapsed);
        }
        match verdict {
            Verdict::Final(result, succeeded) => {
                if succeeded && number > 1 {
                    shared.stats.wins.add(1);
                    events::hedge_won(number);
                }
                Some(result)
            }
            Verdict::Failed(result, failure) => {
                if self.failed.as_ref().is_none_or(|(earliest, _)| number < *earliest) {
                    self.failed = Some((number, result));
                }
                // Nothing is sent after a rejection of ours: it would be rejected as well.
                if let Some(failure) = failure {
                    self.next = self.next_after(&failure, shared, timer);
                }
                None
            }
        }
    }

    /// Returns when the next attempt is due after a failure.
    fn next_after(&mut self, failure: &Failure, shared: &Shared, mut timer: Pin<&mut Deadline>) -> Next {
        // A failure that a service below has repeated is not sent again: tiers would multiply.
        if failure.no_retry || failure.retried {
            self.allowed = 0;
        }
        match failure.retry_after {
            _ if self.allowed == 0 => Next::Never,
            None => Next::Now,
            Some(hint) if hint <= shared.config.max_hint && has_time(hint) => {
                // Before the pause: a call without a budget does not wait for nothing.
                self.paid = self.withdraw(shared);
                if self.paid.is_none() {
                    return Next::Never;
                }
                timer.set(Deadline::new());
                Next::Hint(hint)
            }
            Some(_) => Next::Never,
        }
    }

    /// Pays for the next attempt. Without a budget there is none.
    fn withdraw(&mut self, shared: &Shared) -> Option<Withdrawal> {
        let withdrawal = self.paid.take().or_else(|| shared.config.budget.try_withdraw());
        if withdrawal.is_none() {
            self.allowed = 0;
            shared.stats.out_of_budget.add(1);
            events::hedge_out_of_budget(self.made + 1);
        }
        withdrawal
    }

    /// Records how long the attempts in flight have taken, which end now without an answer.
    ///
    /// Only those that have taken the delay: that another one would have taken more than less says
    /// nothing, and as a latency it would lower the percentile.
    pub(super) fn record_in_flight(&self, first_in_flight: bool, shared: &Shared) {
        let Some(delay) = self.delay.filter(|_| self.learns) else { return };
        let started = self.started.filter(|_| first_in_flight);
        if started.is_none() && self.others.is_empty() {
            return;
        }
        let now = TokioClock.now();
        let first = started.map(|started| now.saturating_duration_since(started));
        let others = self.others.iter().filter_map(|other| other.elapsed(now));
        let long = first.into_iter().chain(others).filter(|elapsed| *elapsed >= delay);
        long.for_each(|elapsed| shared.config.delay.record(elapsed));
    }

    /// Returns the failure of the earliest attempt, if no attempt is in flight and none is due.
    pub(super) fn take_failure(&mut self, first_in_flight: bool) -> Option<T> {
        if first_in_flight || !self.others.is_empty() || matches!(self.next, Next::Hint(_)) {
            return None;
        }
        self.failed.take().map(|(_, result)| result)
    }
}

impl<S, Stored, T> Hedging<S, Stored, Stored::Attempt, S::Future, T>
where
    Stored: Kept,
    S: Service<Stored::Attempt> + Clone,
{
    /// Polls the attempts after the first from `index` on, up to one that has ended. Returns its
    /// number, the time that it took, and its result. `index` is that of the next attempt to poll.
    #[expect(clippy::type_complexity, reason = "the result of a service")]
    pub(super) fn poll_others(
        &mut self,
        index: &mut usize,
        shared: &Shared,
        cx: &mut Context<'_>,
    ) -> Option<(u32, Duration, Result<S::Response, S::Error>)> {
        let _limit = Limit::enter();
        while let Some(attempt) = self.others.get_mut(*index) {
            if let Poll::Ready(result) = attempt.poll(shared, cx) {
                let attempt = self.others.remove(*index);
                let elapsed = attempt.elapsed(TokioClock.now()).unwrap_or_default();
                return Some((attempt.number, elapsed, result));
            }
            *index += 1;
        }
        None
    }

    /// Makes the attempt that is due, if it is allowed.
    pub(super) fn launch(&mut self, shared: &Shared, mut timer: Pin<&mut Deadline>) {
        let delay = match std::mem::replace(&mut self.next, Next::Never) {
            Next::After(delay) => Some(delay),
            _ => None,
        };
        if self.allowed == 0 || !has_time(delay.unwrap_or_default()) {
            return;
        }
        let Some(withdrawal) = self.withdraw(shared) else { return };
        let Some(mut request) = self.kept.again(self.made + 1) else {
            self.allowed = 0;
            return;
        };
        // Less time is left than for the first attempt.
        self.kept.refresh(&mut request);
        self.made += 1;
        self.allowed -= 1;
        self.others.push(Attempt::new(self.made, self.service.clone(), request, withdrawal, delay));
        if let Some(next) = self.delay.filter(|_| self.allowed > 0) {
            // At multiples of the delay. After a failure it starts anew (gRFC A6).
            let start = timer.end().filter(|_| delay.is_some()).unwrap_or_else(|| TokioClock.now().into());
            timer.set(Deadline::since(start, next));
            self.next = Next::After(next);
        }
    }
}

/// Returns whether the call has this much time until its deadline, and any.
fn has_time(time: Duration) -> bool {
    CallContext::current().deadline.is_none_or(|deadline| {
        let left = deadline.saturating_duration_since(TokioClock.now());
        left >= time.max(Duration::from_nanos(1))
    })
}
