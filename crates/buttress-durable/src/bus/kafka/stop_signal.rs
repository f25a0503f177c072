use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Tells a member's thread whether to stop, and whether the events at hand may be finished.
///
/// It only ever gets stricter: an abort after a graceful stop counts, a graceful stop after an
/// abort does not.
#[derive(Clone, Debug)]
pub(super) struct StopSignal(Arc<AtomicU8>);

/// Aborts the member when it is dropped: its subscription has been dropped.
pub(super) struct AbortOnDrop(pub(super) StopSignal);

const RUNNING: u8 = 0;
/// Handlers may finish the events at hand.
const GRACEFUL: u8 = 1;
/// Handlers are dropped.
const ABORT: u8 = 2;

impl StopSignal {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(RUNNING)))
    }

    pub(super) fn stop(&self) {
        self.0.fetch_max(GRACEFUL, Ordering::SeqCst);
    }

    pub(super) fn is_set(&self) -> bool {
        self.get() != RUNNING
    }

    pub(super) fn is_graceful(&self) -> bool {
        self.get() == GRACEFUL
    }

    pub(super) fn is_abort(&self) -> bool {
        self.get() == ABORT
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.0.fetch_max(ABORT, Ordering::SeqCst);
    }
}
