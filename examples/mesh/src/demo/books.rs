//! The audit: do stock, money and events add up?
//!
//! It reads the services' databases directly and relies on no service, answer or counter. It
//! compares the orders with payment's ledger, inventory's stock, shipping's parcels and the
//! customers' notifications, and checks the delivery of every event.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use buttress_durable::DbError;
use buttress_durable::bus::BusError;
use serde::Serialize;

use super::facts::{Facts, Records};
use crate::bus::Bus;
use crate::db::{Databases, Home};

#[derive(Clone, Debug, Serialize)]
pub struct Books {
    /// Whether all checks passed.
    pub right: bool,
    /// Work that was still in progress. Until it has ended, a check may fail without a fault.
    pub under_way: Option<String>,
    pub confirmed: usize,
    pub cancelled: usize,
    pub revenue_cents: i64,
    /// Number of sagas by final status.
    pub sagas: BTreeMap<String, usize>,
    /// Number of events by type, over all services.
    pub events: BTreeMap<String, usize>,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub what: &'static str,
    pub right: bool,
    /// The first violation, and the number of others.
    pub detail: String,
}

/// Ids of the orders for which customers got a final answer.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    pub confirmed: Vec<String>,
    pub cancelled: Vec<String>,
}

/// What the audit has found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Right,
    Wrong,
    /// Checks have failed, and work is in progress that may be the reason. Audit again later.
    NotSettled,
}

/// The audit could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    #[error("cannot read the databases")]
    Db(#[from] DbError),
    #[error("cannot read the event bus")]
    Bus(#[from] BusError),
}

/// Audits the databases of a mesh, and the dead letters on its bus.
pub async fn audit(databases: &Databases, bus: &Bus, acknowledged: &Acknowledged) -> Result<Books, AuditError> {
    match databases {
        Databases::Files(home) => audit_at(home, bus, acknowledged).await,
        Databases::Server(home) => audit_at(home, bus, acknowledged).await,
    }
}

/// Waits until no order, saga or event is in progress. Returns what is still in progress after
/// `limit`, if anything.
pub async fn settled(databases: &Databases, limit: Duration) -> Result<Option<String>, DbError> {
    match databases {
        Databases::Files(home) => settled_at(home, limit).await,
        Databases::Server(home) => settled_at(home, limit).await,
    }
}

async fn audit_at<H: Home>(home: &H, bus: &Bus, acknowledged: &Acknowledged) -> Result<Books, AuditError> {
    let records = Records::open(home).await?;
    let read = async {
        // Counted first: what has ended meanwhile is in the facts.
        let under_way = records.under_way().await?;
        Ok::<_, DbError>((under_way, Facts::read(&records).await?))
    };
    let read = read.await;
    records.close().await;
    let (under_way, mut facts) = read?;
    facts.dead.extend(bus.dead_letters().await?);
    // What waits for an operator does not end by itself.
    let under_way = if facts.waits_for_operator() { None } else { under_way.or_else(|| facts.on_the_way()) };
    Ok(judge(&facts, under_way, acknowledged))
}

async fn settled_at<H: Home>(home: &H, limit: Duration) -> Result<Option<String>, DbError> {
    let records = Records::open(home).await?;
    let mut waiting = None;
    let settling = async {
        loop {
            // The cheap counts first.
            waiting = match records.under_way().await? {
                Some(what) => Some(what),
                None => Facts::read(&records).await?.on_the_way(),
            };
            if waiting.is_none() {
                return Ok::<_, DbError>(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let result = tokio::time::timeout(limit, settling).await;
    records.close().await;
    result.unwrap_or(Ok(())).map(|()| waiting)
}

fn judge(facts: &Facts, under_way: Option<String>, acknowledged: &Acknowledged) -> Books {
    let checks = vec![
        check("every order is confirmed or cancelled", facts.unfinished()),
        check("every saga has ended, and none is stuck", facts.open_sagas()),
        check("customers have what they were told", facts.promises(acknowledged)),
        check("every piece is on hand, reserved or sold", facts.pieces()),
        check("what was sold is what was confirmed", facts.sales()),
        check("every account adds up", facts.accounts()),
        check("every order's payments are its total, or nothing", facts.payments()),
        check("no customer was charged twice", facts.double_charges()),
        check("the shop has earned what it has sold", facts.revenue()),
        check("every confirmed order has one parcel, and no other", facts.parcels()),
        check("customers were told everything, once", facts.news()),
        check("every event has left its outbox", facts.unsent()),
        check("every event has reached all its consumers", facts.undelivered()),
        check("no event is a dead letter", facts.dead_letters()),
    ];
    Books {
        right: checks.iter().all(|check| check.right),
        under_way,
        confirmed: facts.orders.values().filter(|order| order.state == "confirmed").count(),
        cancelled: facts.orders.values().filter(|order| order.state == "cancelled").count(),
        revenue_cents: facts.ledger.iter().map(|entry| entry.cents).sum(),
        sagas: count(facts.sagas.iter().map(|(_, status)| status)),
        events: count(facts.events.iter().map(|event| &event.kind)),
        checks,
    }
}

fn count<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.clone()).or_default() += 1;
    }
    counts
}

fn check(what: &'static str, mut wrong: Vec<String>) -> Check {
    wrong.sort();
    let detail = match wrong.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first}; and {} more", more.len()),
    };
    Check { what, right: wrong.is_empty(), detail }
}

impl Books {
    pub fn verdict(&self) -> Verdict {
        match (self.right, &self.under_way) {
            (true, _) => Verdict::Right,
            (false, Some(_)) => Verdict::NotSettled,
            (false, None) => Verdict::Wrong,
        }
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, cents) = (self.revenue_cents / 100, (self.revenue_cents % 100).abs());
        let list = |counts: &BTreeMap<String, usize>| {
            let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
            counts.join(", ")
        };
        writeln!(f, "sagas:  {}", list(&self.sagas))?;
        writeln!(f, "events: {}", list(&self.events))?;
        writeln!(f, "books:  {} confirmed, {} cancelled, {whole}.{cents:02} earned", self.confirmed, self.cancelled)?;
        for check in &self.checks {
            let mark = match (check.right, self.verdict()) {
                (true, _) => "right",
                (false, Verdict::NotSettled) => " open",
                (false, _) => "WRONG",
            };
            writeln!(f, "  {mark}  {}{}{}", check.what, if check.right { "" } else { ": " }, check.detail)?;
        }
        match (self.verdict(), &self.under_way) {
            (Verdict::Right, _) => writeln!(f, "the books are right"),
            (Verdict::NotSettled, Some(what)) => writeln!(f, "not settled, audit again later: {what}"),
            _ => writeln!(f, "THE BOOKS ARE WRONG"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(revenue_cents: i64, checks: Vec<Check>) -> Books {
        Books {
            right: checks.iter().all(|check| check.right),
            under_way: None,
            confirmed: 3,
            cancelled: 2,
            revenue_cents,
            sagas: [("completed".to_owned(), 3), ("compensated".to_owned(), 2)].into(),
            events: [("OrderCreated".to_owned(), 5)].into(),
            checks,
        }
    }

    #[test]
    fn the_first_violation_is_shown_and_the_others_are_counted() {
        let check = |wrong: &[&str]| super::check("what", wrong.iter().map(|wrong| (*wrong).to_owned()).collect());
        let seen = |check: Check| (check.what, check.right, check.detail);
        assert_eq!(seen(check(&[])), ("what", true, String::new()));
        assert_eq!(seen(check(&["b"])), ("what", false, "b".to_owned()));
        assert_eq!(seen(check(&["c", "a", "b"])), ("what", false, "a; and 2 more".to_owned()));
    }

    #[test]
    fn the_books_are_printed_with_their_numbers_and_verdict() {
        let right = books(1_505, vec![check("all is well", vec![])]).to_string();
        let expected = "sagas:  2 compensated, 3 completed\nevents: 5 OrderCreated\n\
                        books:  3 confirmed, 2 cancelled, 15.05 earned\n  right  all is well\nthe books are right\n";
        assert_eq!(right, expected);
        let wrong = books(-205, vec![check("all is well", vec![]), check("nothing is lost", vec!["tea".into()])]);
        let printed = wrong.to_string();
        assert!(printed.contains("-2.05 earned") && printed.contains("  WRONG  nothing is lost: tea\n"), "{printed}");
        assert!(printed.ends_with("THE BOOKS ARE WRONG\n"), "{printed}");
    }

    #[test]
    fn a_check_that_fails_while_work_is_under_way_is_open_and_not_wrong() {
        let wrong = || vec![check("nothing is lost", vec!["tea".into()])];
        let busy = Books { under_way: Some("3 sagas running".into()), ..books(0, wrong()) };
        assert_eq!(busy.verdict(), Verdict::NotSettled);
        let printed = busy.to_string();
        assert!(printed.contains("   open  nothing is lost: tea\n"), "{printed}");
        assert!(printed.ends_with("not settled, audit again later: 3 sagas running\n"), "{printed}");
        assert_eq!(books(0, wrong()).verdict(), Verdict::Wrong);
        assert_eq!(Books { under_way: busy.under_way, ..books(0, vec![]) }.verdict(), Verdict::Right);
    }
}
