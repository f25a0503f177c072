use buttress_core::Policy;
use std::{fmt, task::Context};

/// The place of a service among those that a policy wakes when it begins to refuse.
pub(super) struct Waiting<A: Policy> {
    policy: A,
    key: u64,
}

impl<A: Policy + Clone> Waiting<A> {
    /// A place, with a policy that wakes.
    pub(super) fn for_policy(policy: &A) -> Option<Self> {
        let key = policy.watchers()?.key();
        Some(Self { policy: policy.clone(), key })
    }
}

impl<A: Policy> Waiting<A> {
    /// Wakes the task when the policy's answer may have changed.
    pub(super) fn register(&self, cx: &Context<'_>) {
        if let Some(waiters) = self.policy.watchers() {
            waiters.register(self.key, cx.waker());
        }
    }
}

impl<A: Policy> Drop for Waiting<A> {
    fn drop(&mut self) {
        if let Some(waiters) = self.policy.watchers() {
            waiters.deregister(self.key);
        }
    }
}

impl<A: Policy> fmt::Debug for Waiting<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("key", &self.key).finish()
    }
}
