//! Runs one saga from its current step until it must wait or has ended.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::call::Meta;
use super::error::{ErrorKind, StepError};
use super::flow::{CallError, Called, Flow};
use super::id::SagaId;
use super::machine::Next;
use super::state::Status;
use super::store::{self, Lease, Owned};
use crate::clock::Timestamp;
use crate::db::{Database, Db, DbError, DbErrorKind, Tx};
use crate::event::{DomainEvent, TraceContext};
use crate::outbox::{Outbox, OutboxError};
use crate::task::Stop;
use crate::text::Chain;

pub(super) struct Run<D: Database> {
    pub(super) db: Db<D>,
    pub(super) outbox: Outbox<D>,
    pub(super) flow: Arc<dyn Flow<D>>,
    pub(super) saga: Owned,
    pub(super) lease: Duration,
    pub(super) recoveries: u32,
    /// The last moment that is known. The next one is not earlier, unless a clock was set back.
    pub(super) not_before: Timestamp,
    pub(super) stop: Stop,
    /// Sends the saga's id when its outcome is decided, to those who wait for it.
    pub(super) news: broadcast::Sender<Arc<SagaId>>,
}

/// The transaction of a local step, until its end is recorded in it.
struct Open<D: Database> {
    tx: Tx<D>,
    /// Asking for the time of leases now could need a second connection.
    time: Time,
}

/// The time of leases, as it was once read.
#[derive(Clone, Copy)]
struct Time {
    lease_now: Timestamp,
    /// The time of this process then.
    began: Timestamp,
}

impl Time {
    fn now<D: Database>(&self, db: &Db<D>, not_before: Timestamp) -> Timestamp {
        let now = self.lease_now.plus(db.now().since(self.began));
        if not_before.since(now) <= JITTER { now.max(not_before) } else { now }
    }
}

/// Two measurements of a server's clock differ by less, and a saga that is due must not have to
/// wait again because of that. A clock that is further behind was set back.
const JITTER: Duration = Duration::from_secs(1);

/// Pause of a saga after the database failed its run.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(1);

impl<D: Database> Run<D> {
    /// Returns when the saga has ended, must wait, or belongs to another coordinator.
    pub(super) async fn drive(mut self) {
        let Err(error) = self.steps().await else { return };
        tracing::error!(saga = %self.saga.id, error = %Chain(&error), "cannot write the saga; pausing it");
        let pause = REST_AFTER_FAILURE.min(self.lease);
        if is_outage(&error) {
            self.give_back(pause).await;
        } else {
            // It stays owned, so that claiming it again counts as a recovery, and a saga that fails
            // every time ends up stuck and visible.
            let _ = store::renew(&self.db, &self.saga, pause).await;
        }
    }

    /// Releases the saga when the database can be written again, at the latest when its lease ends:
    /// an outage of the database is no fault of the saga, and must not count as a recovery.
    async fn give_back(&mut self, pause: Duration) {
        let tries = self.lease.as_millis() / pause.as_millis().max(1);
        for _ in 0..tries.max(1) {
            if store::release(&self.db, &self.saga, pause).await.is_ok() {
                return;
            }
            tokio::select! {
                () = self.stop.wait() => return,
                () = sleep(pause) => {}
            }
        }
    }

    async fn steps(&mut self) -> Result<(), OutboxError> {
        let flow = self.flow.clone();
        let names: Vec<_> = flow.rules().iter().map(|rule| rule.name.as_str()).collect();
        self.check(&names);
        let db = self.db.clone();
        let mut events = Vec::new();
        let mut open: Option<Open<D>> = None;
        let mut known = self.saga.progress.status;
        loop {
            // All moments of a saga are measured by the clock of leases, as its coordinators are.
            let time = match &open {
                Some(Open { time, .. }) => *time,
                None => Time { lease_now: self.db.lease_now().await?, began: self.db.now() },
            };
            let not_before = self.not_before;
            let now = || time.now(&db, not_before);
            // When it should stop it begins no step, but records the outcome of the last one.
            let next = match self.stop.is_set() && self.saga.progress.stuck.is_none() {
                true => Next::Wait,
                false => self.saga.progress.plan(flow.rules(), now()),
            };
            let lease = match next {
                Next::Act { .. } | Next::Undo { .. } => Lease::Until(now().plus(self.lease)),
                Next::Wait | Next::End => Lease::GiveBack,
            };
            let mut tx = match open.take() {
                Some(open) => open.tx,
                None => self.db.begin().await?,
            };
            if !store::save(&self.db, &mut tx, &mut self.saga, &names, lease).await? {
                tracing::warn!(saga = %self.saga.id, "another coordinator owns the saga now");
                return Ok(());
            }
            let has_events = !events.is_empty();
            for event in events.drain(..) {
                self.outbox.append(&mut tx, &self.saga.traced(event)).await?;
            }
            tx.commit().await?;
            if has_events {
                self.outbox.wake();
            }
            if self.saga.progress.status != known {
                known = self.saga.progress.status;
                // Mostly there are no receivers.
                let _ = self.news.send(self.saga.id.clone());
            }
            let (step, undo, attempt, deadline) = match next {
                Next::Act { step, attempt, deadline } => (step, false, attempt, deadline),
                Next::Undo { step, attempt, deadline } => (step, true, attempt, deadline),
                Next::Wait => return Ok(()),
                Next::End => {
                    self.ended();
                    return Ok(());
                }
            };
            let name = names.get(step).copied().unwrap_or_default();
            let limit = deadline.since(now());
            let meta = Meta {
                id: self.saga.id.clone(),
                key: format!("{}:{name}", self.saga.key),
                attempt,
                generation: self.saga.generation,
                // By the clock of this process, with which the participant's client compares it.
                deadline: self.db.now().plus(limit),
                trace: self.saga.trace.clone(),
                failure: self.saga.progress.failure.clone(),
            };
            let called = if flow.is_local(step, undo) {
                let mut tx = self.db.begin().await?;
                let called = in_time(limit, flow.call(step, undo, meta, &self.saga.data, Some(&mut tx))).await;
                // A failure drops the transaction, so that the step's writes are undone before the
                // failure is recorded.
                open = called.is_ok().then_some(Open { tx, time });
                called
            } else {
                tokio::select! {
                    called = in_time(limit, flow.call(step, undo, meta, &self.saga.data, None)) => called,
                    () = self.renew_until_lost() => return Ok(()),
                }
            };
            self.not_before = now();
            self.record(name, undo, called, &mut events);
        }
    }

    /// Makes the saga stuck if the definition's steps differ from the stored ones, or if it was
    /// recovered too often.
    fn check(&mut self, names: &[&str]) {
        let at = names.get(self.saga.progress.step).copied().unwrap_or_default();
        let begun = self.saga.names.iter().map(String::as_str);
        if self.saga.names.len() > names.len() || !begun.eq(names.iter().copied().take(self.saga.names.len())) {
            let message = "the definition's steps have changed, but not its version".to_owned();
            self.saga.progress.stick(at, message);
        } else if self.saga.recoveries > self.recoveries {
            let message = format!("stopped after {} recoveries without progress", self.recoveries);
            self.saga.progress.stick(at, message);
        }
    }

    fn record(&mut self, name: &str, undo: bool, called: Result<Called, CallError>, events: &mut Vec<DomainEvent>) {
        let (rules, now, mut rng) = (self.flow.rules(), self.not_before, Rng::new());
        let progress = &mut self.saga.progress;
        let result = match called {
            Ok(called) => {
                self.saga.data = called.data;
                events.extend(called.events);
                Ok(())
            }
            Err(CallError::Step(error)) => Err(error),
            Err(CallError::Misfit(message)) => return progress.stick(name, message),
        };
        // Any answer is progress, including a failure.
        self.saga.recoveries = 0;
        if let Err(error) = &result {
            log_failure(&self.saga.id, traceparent(&self.saga.trace), name, undo, error);
        }
        let result = result.as_ref().map(drop);
        if undo { progress.undone(rules, result, now, &mut rng) } else { progress.acted(rules, result, now, &mut rng) }
    }

    /// Renews the lease until another coordinator has it. A failed renewal is retried; the next
    /// write decides whether the lease was lost.
    async fn renew_until_lost(&self) {
        let mut beat = interval(self.lease / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick fires at once, and the lease was just written.
        beat.tick().await;
        loop {
            beat.tick().await;
            match store::renew(&self.db, &self.saga, self.lease).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(saga = %self.saga.id, "another coordinator owns the saga now");
                    return;
                }
                Err(error) => tracing::debug!(saga = %self.saga.id, %error, "cannot renew the lease"),
            }
        }
    }

    fn ended(&self) {
        let (id, status, traceparent) = (&self.saga.id, self.saga.progress.status, traceparent(&self.saga.trace));
        match &self.saga.progress.stuck {
            Some(stuck) if status == Status::Stuck => {
                tracing::error!(saga = %id, step = stuck.step, reason = stuck.message, traceparent, "saga is stuck");
            }
            _ => tracing::info!(saga = %id, %status, traceparent, "saga ended"),
        }
    }
}

/// A rejected action is an answer, such as a declined card: the saga turns back.
fn log_failure(saga: &SagaId, traceparent: Option<&str>, step: &str, undo: bool, error: &StepError) {
    let kind = error.kind;
    if kind == ErrorKind::Terminal && !undo {
        tracing::info!(%saga, step, %error, traceparent, "step rejected");
    } else {
        tracing::warn!(%saga, step, undo, ?kind, %error, traceparent, "step failed");
    }
}

fn traceparent(trace: &Option<TraceContext>) -> Option<&str> {
    trace.as_ref().map(TraceContext::traceparent)
}

/// Whether the database failed, and not the writes of this saga.
fn is_outage(error: &OutboxError) -> bool {
    let kind = match error {
        OutboxError::Db(error) => Some(error.kind()),
        other => DbError::kind_in(other),
    };
    matches!(kind, Some(DbErrorKind::Unavailable | DbErrorKind::Timeout | DbErrorKind::Conflict))
}

async fn in_time(limit: Duration, call: impl Future<Output = Result<Called, CallError>>) -> Result<Called, CallError> {
    let late = |_| Err(CallError::Step(StepError::unknown(format!("no answer within {limit:?}"))));
    timeout(limit, call).await.unwrap_or_else(late)
}
