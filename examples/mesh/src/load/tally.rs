//! The results so far, in constant memory.

use std::collections::BTreeMap;
use std::time::Duration;

use super::drive::Seen;
use super::latency::Latencies;
use super::outcome::Outcome;
use crate::customers::{Answer, Order};
use crate::demo::books::Acknowledged;

/// Maximum number of answers kept for the audit.
const KEPT: usize = 100_000;
/// Maximum number of accepted orders that are followed up.
const FOLLOWED: usize = 10_000;
/// Maximum number of distinct reasons.
const REASONS: usize = 32;

#[derive(Debug)]
pub(super) struct Tally {
    pub(super) sent: u64,
    /// Due, but not sent, because the maximum was in flight.
    pub(super) unsent: u64,
    /// Delay from the due time until sending, caused by this process.
    pub(super) lag: Latencies,
    by_outcome: [Latencies; 6],
    /// Why orders were not confirmed, with counts.
    pub(super) reasons: BTreeMap<(Outcome, String), u64>,
    /// The results since the live table was last updated.
    pub(super) lately: Lately,
    accepted: Vec<Order>,
    /// Accepted orders beyond [`FOLLOWED`].
    pub(super) forgotten: u64,
    /// A uniform sample of the final answers: order id, and whether it was confirmed.
    sample: Vec<(String, bool)>,
    decided: u64,
    rng: fastrand::Rng,
}

#[derive(Debug, Default)]
pub(super) struct Lately {
    pub(super) sent: u64,
    pub(super) completed: u64,
    pub(super) latencies: Latencies,
}

impl Tally {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            sent: 0,
            unsent: 0,
            lag: Latencies::default(),
            by_outcome: Default::default(),
            reasons: BTreeMap::new(),
            lately: Lately::default(),
            accepted: Vec::new(),
            forgotten: 0,
            sample: Vec::new(),
            decided: 0,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    pub(super) fn sent(&mut self, lag: Duration) {
        self.sent += 1;
        self.lately.sent += 1;
        self.lag.record(lag);
    }

    /// `took` counts from the due time.
    pub(super) fn seen(&mut self, seen: Seen, took: Duration) {
        let (outcome, reason) = Outcome::of(seen.answer.as_ref());
        self.by_outcome[outcome as usize].record(took);
        if outcome.is_served() {
            self.lately.latencies.record(took);
        }
        self.lately.completed += u64::from(outcome.is_completed());
        if let Some(reason) = reason {
            let room = self.reasons.len() < REASONS;
            let key = (outcome, reason);
            let key = if room || self.reasons.contains_key(&key) { key } else { (outcome, "other".to_owned()) };
            *self.reasons.entry(key).or_default() += 1;
        }
        match seen.answer {
            Some(Answer::Confirmed(id)) => self.keep(id, true),
            Some(Answer::Cancelled(id, _)) => self.keep(id, false),
            Some(Answer::Pending) if self.accepted.len() < FOLLOWED => self.accepted.push(seen.order),
            Some(Answer::Pending) => self.forgotten += 1,
            _ => {}
        }
    }

    /// Keeps every answer with the same probability (Vitter's algorithm R).
    fn keep(&mut self, id: String, confirmed: bool) {
        self.decided += 1;
        if self.sample.len() < KEPT {
            self.sample.push((id, confirmed));
        } else if let Some(kept) =
            usize::try_from(self.rng.u64(..self.decided)).ok().and_then(|at| self.sample.get_mut(at))
        {
            *kept = (id, confirmed);
        }
    }

    pub(super) fn count(&self, outcome: Outcome) -> u64 {
        self.latencies(outcome).count()
    }

    pub(super) fn completed(&self) -> u64 {
        Outcome::ALL.into_iter().filter(|outcome| outcome.is_completed()).map(|outcome| self.count(outcome)).sum()
    }

    pub(super) fn latencies(&self, outcome: Outcome) -> &Latencies {
        &self.by_outcome[outcome as usize]
    }

    /// Latencies of all orders whose outcome [is served](Outcome::is_served).
    pub(super) fn served(&self) -> Latencies {
        let mut served = Latencies::default();
        Outcome::ALL.into_iter().filter(|outcome| outcome.is_served()).for_each(|o| served.add(self.latencies(o)));
        served
    }

    /// Accepted orders to follow up, at most [`FOLLOWED`].
    pub(super) fn accepted(&self) -> &[Order] {
        &self.accepted
    }

    pub(super) fn sampled(&self) -> Acknowledged {
        let ids = |wanted| {
            let matching = self.sample.iter().filter(move |(_, confirmed)| *confirmed == wanted);
            matching.map(|(id, _)| id.clone()).collect()
        };
        Acknowledged { confirmed: ids(true), cancelled: ids(false) }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::customers::{Customers, Refusal};

    fn seen(answer: Option<Answer>) -> Seen {
        Seen { order: Customers::new("http://gateway", 1, crate::token::Tokens::ephemeral()).order(), answer }
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_counted_is_not() {
        let mut tally = Tally::new(1);
        for number in 0..(KEPT + 5000) {
            tally.seen(seen(Some(Answer::Confirmed(number.to_string()))), Duration::from_millis(1));
        }
        assert_eq!(tally.completed(), KEPT as u64 + 5000);
        let sampled = tally.sampled();
        assert_eq!(sampled.confirmed.len(), KEPT);
        assert!(sampled.confirmed.iter().any(|id| id.parse::<usize>().unwrap() >= KEPT), "later answers may be kept");
    }

    #[test]
    fn there_are_only_so_many_reasons() {
        let mut tally = Tally::new(1);
        for number in 0..1000 {
            let refusal = Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason: number.to_string() };
            tally.seen(seen(Some(Answer::Refused(refusal))), Duration::ZERO);
        }
        assert_eq!(tally.reasons.len(), REASONS + 1);
        assert_eq!(tally.reasons.values().sum::<u64>(), 1000);
        assert_eq!(tally.count(Outcome::Rejected), 1000);
    }

    #[test]
    fn a_quick_refusal_makes_nothing_look_fast() {
        let mut tally = Tally::new(1);
        let busy = || Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason: "busy".into() };
        (0..99).for_each(|_| tally.seen(seen(Some(Answer::Refused(busy()))), Duration::from_millis(1)));
        tally.seen(seen(None), Duration::from_secs(10));
        assert!(tally.served().quantiles().p50_ms > 9_000.0);
    }

    #[test]
    fn every_outcome_is_counted_where_it_belongs() {
        let refusal = |status| Refusal { status: StatusCode::from_u16(status).unwrap(), reason: "why".into() };
        let answers = || {
            [
                Some(Answer::Confirmed("c".into())),
                Some(Answer::Cancelled("x".into(), refusal(402))),
                Some(Answer::Pending),
                Some(Answer::Refused(refusal(503))),
                Some(Answer::Lost),
                None,
            ]
        };
        let mut tally = Tally::new(1);
        // The n-th outcome comes n times, and takes n seconds.
        for (at, count) in (0..6).zip(1..=6) {
            for _ in 0..count {
                let [answer] = answers().into_iter().skip(at).take(1).collect::<Vec<_>>().try_into().unwrap();
                tally.sent(Duration::from_millis(3));
                tally.seen(seen(answer), Duration::from_secs(count));
            }
        }
        assert_eq!(Outcome::ALL.map(|outcome| tally.count(outcome)), [1, 2, 3, 4, 5, 6]);
        assert_eq!((tally.sent, tally.unsent, tally.completed(), tally.served().count()), (21, 0, 3, 12));
        assert_eq!((tally.lately.sent, tally.lately.completed, tally.lately.latencies.count()), (21, 3, 12));
        assert_eq!((tally.lag.count(), tally.lag.quantiles().max_ms.round()), (21, 3.0));
        assert_eq!(tally.latencies(Outcome::Accepted).quantiles().p50_ms.round(), 3_000.0);
        assert_eq!((tally.accepted().len(), tally.forgotten), (3, 0));
        let sampled = tally.sampled();
        assert_eq!((sampled.confirmed.len(), sampled.cancelled), (1, vec!["x".to_owned(), "x".to_owned()]));
    }

    #[test]
    fn only_so_many_accepted_orders_are_followed() {
        let mut tally = Tally::new(1);
        let order = Customers::new("http://gateway", 1, crate::token::Tokens::ephemeral()).order();
        for _ in 0..FOLLOWED + 2 {
            tally.seen(Seen { order: order.clone(), answer: Some(Answer::Pending) }, Duration::ZERO);
        }
        assert_eq!((tally.accepted().len(), tally.forgotten), (FOLLOWED, 2));
        assert_eq!(tally.count(Outcome::Accepted), FOLLOWED as u64 + 2);
    }
}
