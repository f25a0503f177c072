use buttress_core::Waiters;
use std::task::Context;

/// An entry of a service in a policy's list of waiters. Dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: Waiters,
    /// `None` after `served`.
    key: Option<u64>,
}

impl Waiting {
    pub(super) fn new(waiters: Waiters) -> Self {
        let key = Some(waiters.key());
        Self { waiters, key }
    }

    /// Registers the task to be woken when the policy's decision may have changed.
    pub(super) fn register(&self, cx: &Context<'_>) {
        if let Some(key) = self.key {
            self.waiters.register(key, cx.waker());
        }
    }

    /// Removes the entry after the service got its permit.
    pub(super) fn served(mut self) {
        if let Some(key) = self.key.take() {
            self.waiters.served(key);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.waiters.deregister(key);
        }
    }
}
