use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Tells a member's thread whether to stop, and whether handlers may finish the events at hand.
///
/// It only escalates: an abort overrides a graceful stop, and not vice versa.
#[derive(Clone, Debug)]
pub(super) struct StopSignal(Arc<AtomicU8>);

/// Aborts the member when its subscription is dropped.
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
