//! Prints what happens, with the time since the start.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::now;

#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline(Instant);

impl Timeline {
    pub(super) fn new() -> Self {
        Self(now())
    }

    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    pub(super) fn say(self, what: impl fmt::Display) {
        println!("{}  {what}", clock(self.elapsed()));
    }
}

/// Minutes and seconds, as `12:03.4`.
pub(super) fn clock(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    format!("{:>3}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_as_minutes_seconds_and_tenths() {
        assert_eq!(clock(Duration::from_millis(723_456)), " 12:03.4");
        assert_eq!(clock(Duration::ZERO), "  0:00.0");
    }
}
