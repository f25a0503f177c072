//! A steady flow of orders, placed at a fixed rate, independent of the answers. Customers repeat an
//! order with the same key until it is decided.

use std::fmt;
use std::ops::Sub;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::customers::{Answer, Customers, Repeat, Seen};
use crate::demo::books::Acknowledged;

/// Orders by their final answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Counts {
    pub confirmed: usize,
    pub cancelled: usize,
    /// Not decided when the customer gave up.
    pub refused: usize,
    /// Requests that were repeated.
    pub repeats: usize,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            confirmed: self.confirmed - before.confirmed,
            cancelled: self.cancelled - before.cancelled,
            refused: self.refused - before.refused,
            repeats: self.repeats - before.repeats,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { confirmed, cancelled, refused, repeats } = self;
        write!(f, "{confirmed} confirmed, {cancelled} cancelled, {refused} refused, {repeats} requests repeated")
    }
}

#[derive(Debug, Default)]
struct Tally {
    counts: Counts,
    acknowledged: Acknowledged,
    /// When an order was confirmed last.
    last: Option<Instant>,
}

/// The running flow.
#[derive(Debug)]
pub(super) struct Orders {
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    placing: JoinHandle<()>,
}

impl Orders {
    pub(super) fn start(mut customers: Customers, rate: f64) -> Self {
        let (tally, stop) = (Arc::<Mutex<Tally>>::default(), CancellationToken::new());
        let (shared, stopped, interval) = (tally.clone(), stop.clone(), Duration::from_secs_f64(1.0 / rate));
        let placing = tokio::spawn(async move {
            let (mut open, mut ticks) = (JoinSet::new(), tokio::time::interval(interval));
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    _ = ticks.tick() => {
                        let (order, tally) = (customers.order(), shared.clone());
                        open.spawn(async move { record(&tally, &order.place(Repeat::UntilDecided).await) });
                    }
                    Some(_) = open.join_next(), if !open.is_empty() => {}
                }
            }
            open.join_all().await;
        });
        Self { tally, stop, placing }
    }

    pub(super) fn counts(&self) -> Counts {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).counts
    }

    /// Whether an order was confirmed since.
    pub(super) fn confirmed_since(&self, since: Instant) -> bool {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).last.is_some_and(|last| last >= since)
    }

    /// Places no more orders, and waits for the answers to all that were placed.
    pub(super) async fn stop(&mut self) -> (Counts, Acknowledged) {
        self.stop.cancel();
        let _ = (&mut self.placing).await;
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        (tally.counts, tally.acknowledged.clone())
    }
}

fn record(tally: &Mutex<Tally>, seen: &Seen) {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.acknowledged.record(std::slice::from_ref(seen));
    tally.counts.repeats += seen.repeats;
    match seen.answer {
        Answer::Confirmed(_) => {
            tally.counts.confirmed += 1;
            tally.last = Some(now());
        }
        Answer::Cancelled(..) => tally.counts.cancelled += 1,
        Answer::Pending | Answer::Refused(_) | Answer::Lost => tally.counts.refused += 1,
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::customers::Refusal;

    #[test]
    fn answers_are_counted_and_those_that_are_final_are_kept_for_the_audit() {
        let (tally, before) = (Mutex::default(), now());
        let why = || Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason: "down".into() };
        let answers = [
            Answer::Confirmed("a".into()),
            Answer::Cancelled("b".into(), why()),
            Answer::Refused(why()),
            Answer::Lost,
            Answer::Pending,
        ];
        for answer in answers {
            record(&tally, &Seen { answer, took: Duration::ZERO, repeats: 2 });
        }
        let tally = tally.into_inner().unwrap();
        assert_eq!(tally.counts, Counts { confirmed: 1, cancelled: 1, refused: 3, repeats: 10 });
        assert_eq!(tally.acknowledged.confirmed, ["a"]);
        assert_eq!(tally.acknowledged.cancelled, ["b"]);
        assert!(tally.last.is_some_and(|last| last >= before));
    }
}
