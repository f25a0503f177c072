//! Request rates and latencies of a server over the last 10 s.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// One slot per second for 10 s, and one that is being filled and not shown.
const SLOTS: usize = 11;

#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    origin: Option<Instant>,
    /// Each slot with its second since `origin`.
    slots: [Option<(u64, Slot)>; SLOTS],
}

#[derive(Debug)]
struct Slot {
    failed: u64,
    /// Request durations in microseconds.
    times: Histogram<u64>,
}

/// Rates and latencies of the last 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Recent {
    pub(super) requests_per_second: f64,
    pub(super) failures_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Maximum recorded duration, in microseconds: 1 min, more than any request takes here.
const MOST: u64 = 60_000_000;

impl Slot {
    fn new() -> Self {
        Self { failed: 0, times: Histogram::new_with_bounds(1, MOST, 2).expect("1 to 60,000,000 are valid bounds") }
    }
}

impl Meter {
    pub(super) fn note(&self, now: Instant, elapsed: Duration, failed: bool) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = slots.second(now);
        let slot = &mut slots.slots[second as usize % SLOTS];
        let (_, slot) = match slot {
            Some(current) if current.0 == second => current,
            old => old.insert((second, Slot::new())),
        };
        slot.failed += u64::from(failed);
        slot.times.saturating_record(u64::try_from(elapsed.as_micros()).unwrap_or(MOST).max(1));
    }

    pub(super) fn recent(&self, now: Instant) -> Recent {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = slots.second(now);
        let mut all = Slot::new();
        for (of, slot) in slots.slots.iter().flatten() {
            if *of < second && second - of < SLOTS as u64 {
                all.failed += slot.failed;
                let _ = all.times.add(&slot.times);
            }
        }
        let seconds = second.min(SLOTS as u64 - 1).max(1) as f64;
        let quantile = |q| if all.times.is_empty() { 0.0 } else { all.times.value_at_quantile(q) as f64 / 1000.0 };
        Recent {
            requests_per_second: all.times.len() as f64 / seconds,
            failures_per_second: all.failed as f64 / seconds,
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        }
    }
}

impl Slots {
    fn second(&mut self, now: Instant) -> u64 {
        now.saturating_duration_since(*self.origin.get_or_insert(now)).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use buttress::policy::{Clock, TokioClock};

    use super::*;

    #[test]
    fn it_shows_ten_whole_seconds_and_forgets_the_rest() {
        let (meter, start) = (Meter::default(), TokioClock.now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(meter.recent(start), Recent::default());
        for n in 0..100 {
            meter.note(at(f64::from(n) / 100.0), Duration::from_millis(10), n % 10 == 0);
        }
        let recent = meter.recent(at(1.0));
        assert_eq!((recent.requests_per_second, recent.failures_per_second), (100.0, 10.0));
        assert!((9.9..10.1).contains(&recent.p50_ms) && (9.9..10.1).contains(&recent.p99_ms), "{recent:?}");
        assert_eq!(meter.recent(at(10.5)).requests_per_second, 10.0);
        assert_eq!(meter.recent(at(11.0)).requests_per_second, 0.0);
        meter.note(at(11.5), Duration::from_secs(3600), false);
        assert!(meter.recent(at(12.0)).p99_ms >= 60_000.0, "clamped to a minute");
    }

    #[test]
    fn failures_and_quantiles_are_those_of_the_last_ten_seconds() {
        let (meter, start) = (Meter::default(), TokioClock.now());
        meter.note(start, Duration::from_secs(9), true);
        for second in 1..=10 {
            for n in 0..100_u64 {
                let took = Duration::from_millis(if n < 98 { 10 } else { 200 });
                meter.note(start + Duration::from_secs(second), took, n == 0);
            }
        }
        let Recent { requests_per_second, failures_per_second, p50_ms, p99_ms } =
            meter.recent(start + Duration::from_secs(11));
        assert_eq!((requests_per_second, failures_per_second), (100.0, 1.0));
        assert!((9.9..10.1).contains(&p50_ms) && (198.0..202.0).contains(&p99_ms), "{p50_ms} {p99_ms}");
    }
}
