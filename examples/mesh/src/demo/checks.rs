//! The checks of the audit. Each returns its violations.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::books::Acknowledged;
use super::facts::Facts;
use crate::events::LISTENERS;

impl Facts {
    fn confirmed(&self, id: &str) -> bool {
        self.orders.get(id).is_some_and(|order| order.state == "confirmed")
    }

    pub(super) fn unfinished(&self) -> Vec<String> {
        let open = self.orders.iter().filter(|(_, order)| !matches!(order.state.as_str(), "confirmed" | "cancelled"));
        open.map(|(id, order)| format!("order {id} is {}", order.state)).collect()
    }

    pub(super) fn promises(&self, acknowledged: &Acknowledged) -> Vec<String> {
        let is = |id: &String, state: &str| self.orders.get(id).is_some_and(|order| order.state == state);
        let broken = acknowledged.confirmed.iter().filter(|id| !is(id, "confirmed"));
        let mut broken: Vec<_> =
            broken.map(|id| format!("order {id} was acknowledged as confirmed and is not")).collect();
        let revived = acknowledged.cancelled.iter().filter(|id| !is(id, "cancelled"));
        broken.extend(revived.map(|id| format!("order {id} was acknowledged as cancelled and is not")));
        broken
    }

    pub(super) fn pieces(&self) -> Vec<String> {
        let all_settled = self.unfinished().is_empty();
        let wrong = self.products.iter().filter(|(_, initial, on_hand, reserved, sold)| {
            *initial != on_hand + reserved + sold || (all_settled && *reserved != 0)
        });
        wrong
            .map(|(sku, initial, on_hand, reserved, sold)| {
                format!("{sku}: {initial} at first, {on_hand} on hand, {reserved} reserved, {sold} sold")
            })
            .collect()
    }

    pub(super) fn sales(&self) -> Vec<String> {
        let ordered = |sku: &String| self.ordered.get(sku).copied().unwrap_or(0);
        let wrong = self.products.iter().filter(|(sku, .., sold)| *sold != ordered(sku));
        wrong.map(|(sku, .., sold)| format!("{sku}: {sold} sold, {} on confirmed orders", ordered(sku))).collect()
    }

    pub(super) fn accounts(&self) -> Vec<String> {
        let mut spent: HashMap<&str, i64> = HashMap::new();
        for entry in &self.ledger {
            *spent.entry(&entry.customer).or_default() += entry.cents;
        }
        let spent = |id: &str| spent.get(id).copied().unwrap_or(0);
        let wrong = self.accounts.iter().filter(|(id, opening, balance)| *opening != balance + spent(id));
        wrong
            .map(|(id, opening, balance)| format!("{id}: {opening} at first, {balance} now, {} spent", spent(id)))
            .collect()
    }

    pub(super) fn payments(&self) -> Vec<String> {
        let mut paid: HashMap<&str, i64> = self.orders.keys().map(|id| (id.as_str(), 0)).collect();
        for entry in &self.ledger {
            *paid.entry(&entry.order).or_default() += entry.cents;
        }
        let due =
            |id: &str| self.orders.get(id).filter(|order| order.state == "confirmed").map_or(0, |order| order.total);
        let wrong = paid.into_iter().filter(|(id, cents)| *cents != due(id));
        wrong.map(|(id, cents)| format!("order {id}: {cents} paid, {} due", due(id))).collect()
    }

    pub(super) fn double_charges(&self) -> Vec<String> {
        let mut charges: HashMap<&str, usize> = HashMap::new();
        for entry in self.ledger.iter().filter(|entry| entry.cents > 0) {
            *charges.entry(&entry.order).or_default() += 1;
        }
        let twice = charges.into_iter().filter(|(_, count)| *count > 1);
        twice.map(|(id, count)| format!("order {id} was charged {count} times")).collect()
    }

    pub(super) fn revenue(&self) -> Vec<String> {
        let earned: i64 = self.ledger.iter().map(|entry| entry.cents).sum();
        let sold: i64 = self.orders.values().filter(|order| order.state == "confirmed").map(|order| order.total).sum();
        if earned == sold { Vec::new() } else { vec![format!("{earned} earned, {sold} sold")] }
    }

    pub(super) fn open_sagas(&self) -> Vec<String> {
        let ended = |status: &str| matches!(status, "completed" | "compensated" | "resolved");
        let mut wrong: Vec<_> = self
            .sagas
            .iter()
            .filter(|(_, status)| !ended(status))
            .map(|(id, status)| format!("the saga of order {id} is {status}"))
            .collect();
        let sagas: BTreeSet<_> = self.sagas.iter().map(|(id, _)| id).collect();
        wrong.extend(self.orders.keys().filter(|id| !sagas.contains(id)).map(|id| format!("order {id} has no saga")));
        wrong
    }

    pub(super) fn parcels(&self) -> Vec<String> {
        let mut parcels: BTreeMap<&str, usize> = self.orders.keys().map(|id| (id.as_str(), 0)).collect();
        for order in &self.shipments {
            *parcels.entry(order).or_default() += 1;
        }
        let wrong = parcels.into_iter().filter(|(id, count)| *count != usize::from(self.confirmed(id)));
        wrong.map(|(id, count)| format!("order {id}: {count} parcels")).collect()
    }

    /// Every notification that is due exists once, and no other does.
    pub(super) fn news(&self) -> Vec<String> {
        let mut due: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for (id, order) in &self.orders {
            let kinds: &[&str] = match order.state.as_str() {
                "confirmed" => &["order_confirmed", "shipment_created"],
                "cancelled" => &["order_cancelled"],
                _ => &[],
            };
            due.extend(kinds.iter().map(|kind| ((id.as_str(), *kind), 1)));
        }
        for entry in &self.ledger {
            let kind = if entry.cents > 0 { "payment_completed" } else { "payment_refunded" };
            due.insert((&entry.order, kind), 1);
        }
        for (order, kind) in &self.notifications {
            *due.entry((order, kind)).or_default() -= 1;
        }
        let wrong = due.into_iter().filter(|(_, missing)| *missing != 0);
        wrong.map(|((id, kind), missing)| format!("order {id}: {kind}, {missing} missing")).collect()
    }

    pub(super) fn unsent(&self) -> Vec<String> {
        let unsent = self.events.iter().filter(|event| !event.sent);
        unsent.map(|event| format!("{} of order {}", event.kind, event.order)).collect()
    }

    pub(super) fn undelivered(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (service, topics) in LISTENERS {
            let handled = self.handled.get(*service);
            for event in self.events.iter().filter(|event| topics.contains(&event.kind.as_str())) {
                if !handled.is_some_and(|handled| handled.contains(&event.id)) {
                    missing.push(format!("{service} has not handled {} of order {}", event.kind, event.order));
                }
            }
        }
        missing
    }

    /// An event that is not yet published or not yet handled by every listener.
    pub(super) fn on_the_way(&self) -> Option<String> {
        self.unsent().into_iter().chain(self.undelivered()).next()
    }

    /// Whether there are stuck sagas or dead letters.
    pub(super) fn waits_for_operator(&self) -> bool {
        !self.dead.is_empty() || self.sagas.iter().any(|(_, status)| status == "stuck")
    }

    pub(super) fn dead_letters(&self) -> Vec<String> {
        self.dead.iter().map(|(topic, count)| format!("{count} on {topic}")).collect()
    }
}
