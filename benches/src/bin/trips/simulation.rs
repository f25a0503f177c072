//! The two scenarios: a backend that fails at random, and one with an outage.

use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

use crate::breaker::Breaker;
use crate::subjects::{SUBJECTS, Subject};

const PER_SECOND: [u32; 3] = [10, 100, 1_000];
const TEN_MINUTES: Duration = Duration::from_secs(600);
/// A circuit that has not closed after this time counts as never closing.
const GIVEN_UP: Duration = Duration::from_secs(1_800);

/// Calls at equal intervals to a backend that fails a share of them.
struct Traffic {
    breaker: Box<dyn Breaker>,
    rng: Rng,
    pause: Duration,
    now: Duration,
}

/// The result of one call.
struct Call {
    admitted: bool,
    failed: bool,
}

impl Traffic {
    fn new(subject: &Subject, per_second: u32, seed: u64) -> Self {
        let pause = Duration::from_secs(1) / per_second;
        Self { breaker: (subject.make)(seed), rng: Rng::with_seed(seed), pause, now: Duration::ZERO }
    }

    fn call(&mut self, percent: u32) -> Call {
        self.now += self.pause;
        let fails = self.rng.u32(..100) < percent;
        let admitted = self.breaker.call(self.now, fails);
        Call { admitted, failed: admitted && fails }
    }
}

/// Ten minutes of random errors.
#[derive(Debug, Serialize)]
pub(crate) struct Errors {
    pub(crate) subject: &'static str,
    pub(crate) percent: u32,
    pub(crate) per_second: u32,
    pub(crate) seed: u64,
    pub(crate) refused: f64,
    pub(crate) openings: u32,
}

impl Errors {
    pub(crate) const PERCENT: [u32; 5] = [1, 5, 10, 20, 40];

    pub(crate) fn all(seeds: u64) -> Vec<Self> {
        let mut all = Vec::new();
        for percent in Self::PERCENT {
            for per_second in PER_SECOND {
                for subject in &SUBJECTS {
                    all.extend((0..seeds).map(|seed| Self::run(subject, percent, per_second, seed)));
                }
            }
        }
        all
    }

    pub(crate) fn run(subject: &Subject, percent: u32, per_second: u32, seed: u64) -> Self {
        let mut traffic = Traffic::new(subject, per_second, seed);
        let (mut calls, mut refused, mut openings, mut was_closed) = (0_u32, 0_u32, 0, true);
        while traffic.now < TEN_MINUTES {
            calls += 1;
            let Call { admitted, failed } = traffic.call(percent);
            refused += u32::from(!admitted);
            // Only a failure opens it, and only the call that closes it shows a recovery.
            if failed || !was_closed {
                let closed = traffic.breaker.is_closed();
                openings += u32::from(was_closed && !closed);
                was_closed = closed;
            }
        }
        let refused = f64::from(refused) / f64::from(calls);
        Self { subject: subject.name, percent, per_second, seed, refused, openings }
    }
}

/// Ten minutes of random errors, a total outage, and the same errors again.
#[derive(Debug, Serialize)]
pub(crate) struct Outage {
    pub(crate) subject: &'static str,
    /// Error rate before and after the outage.
    pub(crate) percent: u32,
    pub(crate) per_second: u32,
    /// Nominal duration of the outage. The real one differs by up to a quarter, so that its end
    /// does not coincide with the end of an open time.
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
    /// Whether random errors had opened it before the outage.
    pub(crate) open_before: bool,
    /// Failures and seconds from the start of the outage until it opened. `None` if it did not
    /// open, or was open before.
    pub(crate) opened: Option<Opened>,
    /// Calls that reached the backend during the outage.
    pub(crate) reached: u32,
    /// Seconds from the end of the outage until it first closed; infinite if it did not close
    /// within half an hour. `None` if it was closed at the end of the outage.
    pub(crate) closed: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Opened {
    pub(crate) failures: u32,
    pub(crate) seconds: f64,
}

impl Outage {
    pub(crate) const PERCENT: [u32; 2] = [1, 20];
    pub(crate) const SECONDS: [u64; 2] = [60, 600];

    pub(crate) fn all(seeds: u64) -> Vec<Self> {
        let mut all = Vec::new();
        for seconds in Self::SECONDS {
            for percent in Self::PERCENT {
                for per_second in PER_SECOND {
                    for subject in &SUBJECTS {
                        all.extend((0..seeds).map(|seed| Self::run(subject, percent, per_second, seconds, seed)));
                    }
                }
            }
        }
        all
    }

    pub(crate) fn run(subject: &Subject, percent: u32, per_second: u32, seconds: u64, seed: u64) -> Self {
        let mut traffic = Traffic::new(subject, per_second, seed);
        while traffic.now < TEN_MINUTES {
            traffic.call(percent);
        }
        let begin = traffic.now;
        let lasts = Duration::from_secs(seconds).mul_f64(0.75 + traffic.rng.f64() / 2.0);
        let (mut reached, mut opened) = (0, None);
        let open_before = !traffic.breaker.is_closed();
        while traffic.now < begin + lasts {
            let admitted = traffic.call(100).admitted;
            reached += u32::from(admitted);
            if admitted && !open_before && opened.is_none() && !traffic.breaker.is_closed() {
                opened = Some(Opened { failures: reached, seconds: (traffic.now - begin).as_secs_f64() });
            }
        }
        let (end, is_open) = (traffic.now, !traffic.breaker.is_closed());
        while !traffic.breaker.is_closed() && traffic.now < end + GIVEN_UP {
            traffic.call(percent);
        }
        let closes = if traffic.breaker.is_closed() { (traffic.now - end).as_secs_f64() } else { f64::INFINITY };
        let closed = is_open.then_some(closes);
        Self { subject: subject.name, percent, per_second, seconds, seed, open_before, opened, reached, closed }
    }
}

pub(crate) fn rates() -> impl Iterator<Item = u32> {
    PER_SECOND.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> &'static Subject {
        &SUBJECTS[0]
    }

    #[test]
    fn ours_refuses_no_call_of_a_backend_of_which_two_in_five_fail() {
        for percent in Errors::PERCENT {
            for per_second in PER_SECOND {
                let run = Errors::run(ours(), percent, per_second, 1);
                assert_eq!((run.refused, run.openings), (0.0, 0), "{percent} % at {per_second}/s");
            }
        }
    }

    #[test]
    fn ours_closes_within_half_a_minute_after_an_outage() {
        for percent in Outage::PERCENT {
            for per_second in PER_SECOND {
                for seconds in Outage::SECONDS {
                    let mut closed: Vec<_> = (0..5)
                        .filter_map(|seed| Outage::run(ours(), percent, per_second, seconds, seed).closed)
                        .collect();
                    closed.sort_by(f64::total_cmp);
                    assert!(closed[2] <= 30.0, "{percent} % at {per_second}/s, {seconds} s: {closed:?}");
                }
            }
        }
    }

    #[test]
    fn ours_opens_within_the_streak_that_the_errors_before_call_for() {
        for (percent, most) in [(1, 6), (20, 18)] {
            for per_second in PER_SECOND {
                let run = Outage::run(ours(), percent, per_second, 60, 1);
                assert!(run.opened.is_some_and(|opened| opened.failures <= most), "{run:?}");
            }
        }
    }
}
