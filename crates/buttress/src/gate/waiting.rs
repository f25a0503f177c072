use crate::TokioClock;
use buttress_core::Policy;
use std::{fmt, task::Context};

/// The place of a service among those that a policy wakes when its answer changes.
pub(super) struct Waiting<A: Policy> {
    policy: A,
    key: u64,
}

impl<A: Policy + Clone> Waiting<A> {
    /// Whether the policy would refuse a call now. If not, the task wakes when that may have changed.
    #[cold]
    pub(super) fn would_refuse(waiting: &mut Option<Self>, policy: &A, cx: &mut Context<'_>) -> bool {
        let refuses = |policy: &A| policy.peek(&TokioClock).is_err();
        if let Some(waiters) = policy.waiters()
            && !refuses(policy)
        {
            let place = waiting.get_or_insert_with(|| Self { policy: policy.clone(), key: waiters.key() });
            waiters.register(place.key, cx.waker());
        }
        // Asked after registering: what changed in between woke no task.
        refuses(policy)
    }
}

impl<A: Policy> Drop for Waiting<A> {
    fn drop(&mut self) {
        if let Some(waiters) = self.policy.waiters() {
            waiters.deregister(self.key);
        }
    }
}

impl<A: Policy> fmt::Debug for Waiting<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("key", &self.key).finish()
    }
}
