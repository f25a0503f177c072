use tokio::task::AbortHandle;

/// Aborts a task when it is dropped.
#[derive(Debug)]
pub(super) struct AbortOnDrop(AbortHandle);

impl AbortOnDrop {
    pub(super) fn new(task: AbortHandle) -> Self {
        Self(task)
    }

    #[cfg(test)]
    pub(super) fn abort(&self) {
        self.0.abort();
    }

    /// Returns whether the task has ended. It does not end by itself, but with its runtime.
    pub(super) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
