use buttress_core::Waiters;
use std::task::Context;

/// The place of a service among those that a policy wakes.
#[derive(Debug)]
pub(super) struct Waiting {
    waiters: Waiters,
    /// `None` once it got its permit.
    key: Option<u64>,
}

impl Waiting {
    pub(super) fn new(waiters: Waiters) -> Self {
        let key = Some(waiters.key());
        Self { waiters, key }
    }

    /// Wakes the task when the policy's answer may have changed.
    pub(super) fn register(&self, cx: &Context<'_>) {
        if let Some(key) = self.key {
            self.waiters.register(key, cx.waker());
        }
    }

    /// Leaves the list with a permit.
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
