use buttress_core::Clock;
use std::time::Instant;

/// Tokio's clock. The only clock of the layers, so that `tokio::time::pause` pauses them all.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads a clock")]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
