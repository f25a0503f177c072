use std::{
    collections::{BTreeMap, BTreeSet},
    task::Waker,
};

/// The queue. All decisions about it, and changes of the limit, happen under its lock. A release
/// that sees an empty queue in the state word takes no lock.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) next: u64,
    /// Waiters by number. The state word contains how many there are.
    pub(super) waiting: BTreeMap<u64, Waker>,
    /// Waiters that were granted a place, which is counted in the state word, and have not been
    /// polled since.
    pub(super) granted: BTreeSet<u64>,
}
