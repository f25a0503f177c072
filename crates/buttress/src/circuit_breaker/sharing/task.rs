use super::{Announcement, Config, Mode, ProbeLease, SharedState, Stamp, StoreHealth, View, Written};
use crate::{
    CircuitBreaker,
    circuit_breaker::{Cause, State, Transition},
    clock::TokioClock,
    error::BoxError,
};
use buttress_core::Clock;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::timeout,
};

/// Capacity of the queue of changes that the task has not processed. When it is full, changes are
/// dropped: only the last change of a batch is announced.
const QUEUE: usize = 128;

pub(super) fn start(
    breaker: CircuitBreaker,
    store: Arc<dyn SharedState>,
    config: Config,
) -> (AbortHandle, watch::Receiver<StoreHealth>) {
    let (sender, changes) = mpsc::channel(QUEUE);
    breaker.on_transition_while(move |transition| match sender.try_send(transition.clone()) {
        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    });
    let (health, watch) = watch::channel(StoreHealth::Unknown);
    let sharer = Sharer { breaker, store, config, health, last_stamp: None, pending: None, lease_ends: None };
    (tokio::spawn(sharer.run(changes)).abort_handle(), watch)
}

struct Sharer {
    breaker: CircuitBreaker,
    store: Arc<dyn SharedState>,
    config: Config,
    health: watch::Sender<StoreHealth>,
    /// Stamp of the last announcement that was read or written here.
    last_stamp: Option<Stamp>,
    /// An announcement that was not written yet.
    pending: Option<Pending>,
    /// Expiry of the probe lease that this instance holds.
    lease_ends: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Pending {
    /// `None`: closed. `Some(None)`: the end of the open time is beyond the range of `Instant`.
    open: Option<Option<Instant>>,
    failures: u64,
    total: u64,
}

impl Sharer {
    async fn run(mut self, mut changes: mpsc::Receiver<Transition>) {
        loop {
            let pause = match timeout(self.config.patience, self.sync()).await {
                Ok(Ok(pause)) => {
                    self.set_health(StoreHealth::Connected, None);
                    pause
                }
                Ok(Err(error)) => self.degraded(Some(error)),
                Err(_) => self.degraded(None),
            };
            match timeout(pause, changes.recv()).await {
                Ok(Some(change)) => self.record(&change),
                Ok(None) => return,
                Err(_) => {}
            }
            while let Ok(change) = changes.try_recv() {
                self.record(&change);
            }
        }
    }

    /// Records a change of state that the local rules caused. Changes that a peer announced are
    /// already in the store, and what an operator does affects only this instance.
    fn record(&mut self, change: &Transition) {
        let open = match (change.to, change.cause) {
            (_, Cause::Peer | Cause::Operator | Cause::Reloaded) => return,
            (State::Open, _) => Some(change.open_for.and_then(|time| TokioClock.now().checked_add(time))),
            (State::Closed, _) => None,
            _ => return,
        };
        let (failures, total) = match change.cause {
            Cause::ConsecutiveFailures(n) | Cause::ProbesFailed(n) => (n.into(), n.into()),
            Cause::FailureStreak { failures, others } => {
                (u64::from(failures) + others.failures(), u64::from(failures) + others.total())
            }
            Cause::FailureRate(counts) | Cause::SlowRate(counts) | Cause::Custom(counts) => {
                (counts.failures(), counts.total())
            }
            _ => (0, 0),
        };
        self.pending = Some(Pending { open, failures, total });
    }

    /// Reads the store first and writes second, so that newer announcements of others win. Returns
    /// the time until the next call.
    async fn sync(&mut self) -> Result<Duration, BoxError> {
        let mut view = self.store.read(self.breaker.name()).await?;
        if view.map(|view| view.stamp) != self.last_stamp
            && let Some(view) = view
        {
            self.adopt(view);
        } else if let Some(pending) = self.pending {
            let left = |until: Option<Instant>| {
                until.map_or(Duration::MAX, |until| until.saturating_duration_since(TokioClock.now()))
            };
            let Pending { failures, total, open } = pending;
            let announcement = Announcement { node: self.config.node, open: open.map(left), failures, total };
            match self.store.write(self.breaker.name(), self.last_stamp, announcement).await? {
                Written::Accepted(stamp) => {
                    (self.last_stamp, self.pending) = (Some(stamp), None);
                    view = Some(View { stamp, open: announcement.open, failures, total });
                }
                Written::Outdated(newer) => {
                    self.adopt(newer);
                    view = Some(newer);
                }
            }
        }
        match self.config.mode {
            Mode::Advisory => self.set_caution(view),
            Mode::Shared => self.lease(view).await?,
        }
        let open_for = view.and_then(|view| view.open).filter(|left| !left.is_zero());
        let renewal = self.lease_ends.map(|_| self.config.lease / 3);
        Ok([open_for, renewal].into_iter().flatten().fold(self.config.refresh, Duration::min))
    }

    fn adopt(&mut self, view: View) {
        (self.last_stamp, self.pending, self.lease_ends) = (Some(view.stamp), None, None);
        if self.config.mode == Mode::Shared {
            self.breaker.follow(view.open);
        }
    }

    fn set_caution(&self, view: Option<View>) {
        let open_elsewhere = view
            .is_some_and(|view| view.stamp.node != self.config.node && view.open.is_some_and(|left| !left.is_zero()));
        self.breaker.set_cautious(open_elsewhere);
    }

    /// Takes or renews a lease if this instance may probe and has a call to probe with.
    async fn lease(&mut self, view: Option<View>) -> Result<(), BoxError> {
        let state = self.breaker.state();
        let (is_open, probing) = (matches!(state, State::Open | State::HalfOpen), state == State::HalfOpen);
        // An instance without calls cannot probe; a lease would keep the others from probing.
        let wanted = probing || self.breaker.lacks_probe();
        let due = view.filter(|view| wanted && view.open == Some(Duration::ZERO));
        if let Some(View { stamp, .. }) = due {
            let Config { node, lease: time, probes: of, .. } = self.config;
            // Measured from before the request, so that the lease expires here before it does in
            // the store.
            let ends = TokioClock.now().checked_add(time);
            let granted = self.store.lease_probe(self.breaker.name(), stamp, ProbeLease { node, time, of }).await?;
            self.lease_ends = ends.filter(|_| granted);
            if probing && !granted {
                // The lease expired, and another instance probes now.
                self.breaker.follow(Some(Duration::ZERO));
            }
        }
        if self.lease_ends.is_some_and(|ends| ends <= TokioClock.now()) {
            self.lease_ends = None;
        }
        // The circuit is open here but not in the store: the store lost the announcement, or an
        // operator opened it here. No lease can be granted, and without probes the circuit would
        // not close.
        let unknown_to_store = is_open && view.is_none_or(|view| view.open.is_none());
        let allowed = (!unknown_to_store).then_some(self.lease_ends.is_some().into());
        self.breaker.allow_probes(allowed);
        Ok(())
    }

    /// Removes the effects of the other instances from the circuit.
    fn make_local(&self) {
        self.breaker.allow_probes(None);
        self.breaker.set_cautious(false);
    }

    fn degraded(&mut self, error: Option<BoxError>) -> Duration {
        self.lease_ends = None;
        self.make_local();
        self.set_health(StoreHealth::Degraded, error);
        self.config.refresh
    }

    fn set_health(&self, health: StoreHealth, _error: Option<BoxError>) {
        let _changed = self.health.send_if_modified(|known| std::mem::replace(known, health) != health);
        #[cfg(feature = "tracing")]
        if _changed {
            let name = self.breaker.name();
            match (health, _error) {
                (StoreHealth::Degraded, Some(error)) => {
                    tracing::warn!(resilience.policy.name = %name, %error, "circuit is local: the shared state fails");
                }
                (StoreHealth::Degraded, None) => {
                    tracing::warn!(resilience.policy.name = %name, "circuit is local: the shared state does not answer");
                }
                _ => tracing::info!(resilience.policy.name = %name, "circuit is shared"),
            }
        }
    }
}

/// However the task ends, the circuit becomes local.
impl Drop for Sharer {
    fn drop(&mut self) {
        self.make_local();
    }
}
