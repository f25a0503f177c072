//! The due time of each order.

use std::time::Duration;

/// How orders are distributed over time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Arrivals {
    /// At equal intervals.
    #[default]
    Even,
    /// At random intervals, like independent customers (a Poisson process). Bursts make queues form
    /// at lower rates.
    Poisson,
}

/// The due times of orders, relative to the start. They do not depend on answers.
#[derive(Debug)]
pub(super) struct Schedule {
    arrivals: Arrivals,
    rate: f64,
    duration: Duration,
    left: u64,
    sent: u64,
    /// Due time of the last order in seconds, for random arrivals.
    last: f64,
    rng: fastrand::Rng,
}

impl Schedule {
    pub(super) fn new(rate: f64, arrivals: Arrivals, duration: Duration, orders: Option<u64>, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { arrivals, rate, duration, left: orders.unwrap_or(u64::MAX), sent: 0, last: 0.0, rng }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let due = match self.arrivals {
            // Multiplied, not summed: rounding errors would add up to seconds in an hour.
            Arrivals::Even => self.sent as f64 / self.rate,
            Arrivals::Poisson => self.last - (1.0 - self.rng.f64()).ln() / self.rate,
        };
        (self.sent, self.last) = (self.sent + 1, due);
        let due = Duration::try_from_secs_f64(due).ok().filter(|due| *due < self.duration);
        if due.is_none() {
            self.left = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn even_arrivals_fill_the_duration_at_the_rate() {
        let due: Vec<_> = Schedule::new(4.0, Arrivals::Even, Duration::from_secs(2), None, 1).collect();
        assert_eq!(due.len(), 8);
        assert_eq!((due[0], due[1], due[7]), (Duration::ZERO, Duration::from_millis(250), Duration::from_millis(1750)));
    }

    #[test]
    fn a_number_of_orders_ends_it_early() {
        let mut schedule = Schedule::new(4.0, Arrivals::Even, MINUTE, Some(3), 1);
        assert_eq!(schedule.by_ref().count(), 3);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn random_arrivals_keep_the_rate_and_follow_the_seed() {
        let due = |seed| Schedule::new(500.0, Arrivals::Poisson, MINUTE, None, seed).collect::<Vec<_>>();
        let (one, count) = (due(7), due(7).len() as f64);
        // 30,000 are expected, with a standard deviation of 173.
        assert!((29_000.0..31_000.0).contains(&count), "{count}");
        assert!(one.is_sorted());
        assert_eq!(one, due(7));
        assert_ne!(one, due(8));
    }

    #[test]
    fn an_hour_of_even_arrivals_does_not_drift() {
        let hour = Duration::from_secs(3600);
        let last = Schedule::new(30.0, Arrivals::Even, hour, None, 1).last().unwrap();
        assert!(hour - last < Duration::from_millis(34), "{last:?}");
    }
}
