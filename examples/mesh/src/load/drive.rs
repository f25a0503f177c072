//! Sends orders on schedule: the fate of one order does not delay the next.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::schedule::Schedule;
use super::tally::Tally;
use crate::clock::now;
use crate::customers::{Answer, Order};

/// An order, and its answer if it came in time.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) order: Order,
    pub(super) answer: Option<Answer>,
}

#[derive(Debug)]
pub(super) struct Drive {
    schedule: Schedule,
    in_flight: usize,
    start: Instant,
    end: Instant,
}

/// Interval between updates of the live table.
pub(super) const TICK: Duration = Duration::from_secs(1);

impl Drive {
    /// `in_flight` is the maximum number of orders in flight.
    pub(super) fn new(schedule: Schedule, in_flight: usize, start: Instant) -> Self {
        Self { schedule, in_flight, start, end: start }
    }

    /// Runs until the last order has an answer or timed out. `place` makes an order and the future
    /// that places it; `show` is called every second with the number of orders in flight.
    pub(super) async fn run<Fut>(
        &mut self,
        mut place: impl FnMut() -> Fut,
        tally: &mut Tally,
        mut show: impl FnMut(&mut Tally, Duration, usize),
    ) where
        Fut: Future<Output = Seen> + Send + 'static,
    {
        let mut out = JoinSet::new();
        let mut next = self.schedule.next();
        let mut tick = self.start + TICK;
        while next.is_some() || !out.is_empty() {
            let due = self.start + next.unwrap_or_default();
            tokio::select! {
                // Completions first, because they free places for the next order. Handling one
                // takes microseconds, and each order completes once.
                biased;
                Some(done) = out.join_next() => {
                    // A task that panicked has no answer to record. No code in it panics.
                    if let Ok((seen, took)) = done {
                        tally.seen(seen, took);
                    }
                }
                () = tokio::time::sleep_until(due), if next.is_some() => {
                    if out.len() < self.in_flight {
                        tally.sent(due.elapsed());
                        let placing = place();
                        out.spawn(async move {
                            let seen = placing.await;
                            // Measured when the answer arrives, not when it is joined; and from the
                            // due time, not from sending.
                            (seen, due.elapsed())
                        });
                    } else {
                        tally.unsent += 1;
                    }
                    next = self.schedule.next();
                }
                () = tokio::time::sleep_until(tick) => {
                    show(tally, tick - self.start, out.len());
                    tick += TICK;
                }
            }
        }
        self.end = now();
    }

    /// Time from the first order to the last answer.
    pub(super) fn elapsed(&self) -> Duration {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::customers::Customers;
    use crate::load::schedule::Arrivals;

    const STALL: Duration = Duration::from_secs(2);

    /// Ten orders per second for 5 s, against a server that hangs for 2 s from second 0.95.
    async fn stalled(in_flight: usize) -> (Tally, Vec<usize>) {
        let mut customers = Customers::new("http://gateway", 1, crate::token::Tokens::ephemeral());
        let (start, mut tally, mut out) = (now(), Tally::new(1), Vec::new());
        let schedule = Schedule::new(10.0, Arrivals::Even, Duration::from_secs(5), None, 1);
        let (from, to) = (start + Duration::from_millis(950), start + Duration::from_millis(950) + STALL);
        let place = || {
            let order = customers.order();
            async move {
                if (from..to).contains(&now()) {
                    tokio::time::sleep_until(to).await;
                }
                Seen { order, answer: Some(Answer::Confirmed("id".into())) }
            }
        };
        let mut drive = Drive::new(schedule, in_flight, start);
        drive.run(place, &mut tally, |_, _, in_flight| out.push(in_flight)).await;
        assert_eq!(tally.sent + tally.unsent, 50);
        (tally, out)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_in_the_latency_of_every_order_that_was_due_meanwhile() {
        let (tally, out) = stalled(100).await;
        let buckets = tally.served().buckets(10);
        let slow: u64 = buckets.iter().filter(|bucket| bucket.from_ms > 20.0).map(|bucket| bucket.count).sum();
        assert_eq!(slow, 20, "a closed loop would have seen one");
        assert!(tally.served().quantiles().max_ms > 1900.0);
        assert_eq!((tally.sent, tally.unsent), (50, 0), "sent on schedule, stall or not");
        assert_eq!(out[1], 11, "all that were due in the first second of the stall, both ends included");
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_room_for_is_counted() {
        let (tally, _) = stalled(5).await;
        assert_eq!((tally.sent, tally.unsent), (35, 15));
        assert_eq!(tally.completed(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_is_sent_late_has_waited_all_the_same() {
        let mut customers = Customers::new("http://gateway", 1, crate::token::Tokens::ephemeral());
        let start = now();
        // As if this process had been suspended for 3 s.
        tokio::time::advance(Duration::from_secs(3)).await;
        let schedule = Schedule::new(10.0, Arrivals::Even, Duration::from_secs(1), None, 1);
        let mut tally = Tally::new(1);
        let place = || {
            let order = customers.order();
            async move { Seen { order, answer: Some(Answer::Confirmed("id".into())) } }
        };
        Drive::new(schedule, 100, start).run(place, &mut tally, |_, _, _| {}).await;
        assert!(tally.served().quantile_ms(0.0) > 2000.0);
        assert!(tally.lag.quantile_ms(0.0) > 2000.0, "the report shows the delay as lag");
    }
}
