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

#[cfg(test)]
mod tests {
    use super::*;

    fn state(signal: &StopSignal) -> (bool, bool, bool) {
        (signal.is_set(), signal.is_graceful(), signal.is_abort())
    }

    #[test]
    fn a_stop_is_graceful_and_a_drop_is_not() {
        let signal = StopSignal::new();
        assert_eq!(state(&signal), (false, false, false));
        signal.stop();
        assert_eq!(state(&signal), (true, true, false));
        drop(AbortOnDrop(signal.clone()));
        assert_eq!(state(&signal), (true, false, true));
        signal.stop();
        assert_eq!(state(&signal), (true, false, true), "an abort stays one");
    }
}
