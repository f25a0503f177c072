use super::{Announcement, BoxFuture, ProbeLease, SharedState, Stamp, View, Written};
use crate::{clock::TokioClock, error::BoxError};
use buttress_core::Clock;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A store in memory: for several circuits in one process, for tests, and as a model for other
/// implementations of [`SharedState`].
///
/// ```
/// use buttress::circuit_breaker::{CircuitBreaker, State, sharing::{MemoryStore, Mode, Sharing}};
/// use std::{sync::Arc, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), buttress::InvalidConfig> {
/// let store = Arc::new(MemoryStore::default());
/// let a = CircuitBreaker::builder("payments").consecutive_failures(1).build()?;
/// let b = CircuitBreaker::new("payments");
/// let _sharing = [
///     Sharing::builder(a.clone(), store.clone()).mode(Mode::Shared).start()?,
///     Sharing::builder(b.clone(), store).mode(Mode::Shared).start()?,
/// ];
/// # use buttress::{outcome::{Failure, FailureKind}, policy::{Permit, Policy}};
/// # a.admit(&()).unwrap().settle(&Failure::new(FailureKind::Transport).into());
/// // After a failed call of `a`:
/// assert_eq!(a.state(), State::Open);
/// tokio::time::sleep(Duration::from_millis(300)).await;
/// assert_eq!(b.state(), State::Open);
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<HashMap<String, Record>>);

#[derive(Debug)]
struct Record {
    stamp: Stamp,
    /// `None`: closed. `Some(None)`: the end of the open time is beyond the range of `Instant`.
    open: Option<Option<Instant>>,
    failures: u64,
    total: u64,
    leases: HashMap<u64, Option<Instant>>,
}

impl MemoryStore {
    fn records(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, name: &str) -> Option<View> {
        self.records().get(name).map(|record| record.view(TokioClock.now()))
    }

    pub(super) fn announce(&self, name: &str, expected: Option<Stamp>, announcement: Announcement) -> Written {
        let (mut records, now) = (self.records(), TokioClock.now());
        let last = records.get(name);
        if last.map(|record| record.stamp) != expected
            && let Some(last) = last
        {
            return Written::Outdated(last.view(now));
        }
        let version = expected.map_or(0, |stamp| stamp.version).saturating_add(1);
        let stamp = Stamp { version, node: announcement.node };
        records.insert(name.to_owned(), Record::new(stamp, announcement, now));
        Written::Accepted(stamp)
    }

    /// Stores an announcement of a peer if it is newer than the stored one.
    #[cfg(feature = "gossip")]
    pub(super) fn merge(&self, name: &str, view: View, max_circuits: usize) {
        let (mut records, now) = (self.records(), TokioClock.now());
        let newer = match records.get(name) {
            Some(known) => known.stamp < view.stamp,
            None => records.len() < max_circuits,
        };
        if newer {
            let View { stamp, open, failures, total } = view;
            let announcement = Announcement { node: stamp.node, open, failures, total };
            records.insert(name.to_owned(), Record::new(stamp, announcement, now));
        }
    }

    #[cfg(feature = "gossip")]
    pub(super) fn all(&self) -> Vec<(String, View)> {
        let now = TokioClock.now();
        self.records().iter().map(|(name, record)| (name.clone(), record.view(now))).collect()
    }
}

impl Record {
    fn new(stamp: Stamp, announcement: Announcement, now: Instant) -> Self {
        let Announcement { open, failures, total, .. } = announcement;
        Self { stamp, open: open.map(|time| now.checked_add(time)), failures, total, leases: HashMap::new() }
    }

    fn view(&self, now: Instant) -> View {
        let left = |until: Option<Instant>| until.map_or(Duration::MAX, |until| until.saturating_duration_since(now));
        View { stamp: self.stamp, open: self.open.map(left), failures: self.failures, total: self.total }
    }
}

impl SharedState for MemoryStore {
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>> {
        Box::pin(async move { Ok(self.view(name)) })
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>> {
        Box::pin(async move { Ok(self.announce(name, expected, announcement)) })
    }

    fn lease_probe<'a>(
        &'a self,
        name: &'a str,
        expected: Stamp,
        ProbeLease { node, time, of }: ProbeLease,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async move {
            let (mut records, now) = (self.records(), TokioClock.now());
            let Some(record) = records.get_mut(name).filter(|record| record.stamp == expected) else {
                return Ok(false);
            };
            record.leases.retain(|holder, ends| *holder != node && ends.is_none_or(|ends| ends > now));
            let granted = record.leases.len() < of as usize;
            if granted {
                record.leases.insert(node, now.checked_add(time));
            }
            Ok(granted)
        })
    }
}
