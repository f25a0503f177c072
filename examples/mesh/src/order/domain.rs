//! Orders, their states and failures, independent of HTTP, gRPC and SQL.

use std::fmt;

use buttress_durable::saga;
use serde::{Deserialize, Serialize};

use crate::input::{Customer, Errors, FieldError, Sku};

/// An order that has passed all local checks. [`parse`](Self::parse) is the only constructor.
#[derive(Clone, Debug, Serialize)]
pub struct NewOrder {
    pub customer: Customer,
    pub lines: Vec<NewLine>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewLine {
    pub sku: Sku,
    pub quantity: i64,
}

/// An order as received from a client, before validation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    pub customer: String,
    pub items: Vec<DraftLine>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DraftLine {
    pub sku: String,
    pub quantity: i64,
}

impl NewOrder {
    /// Limits high enough for real orders, and low enough that no sum of prices overflows.
    const MAX_LINES: usize = 50;
    const MAX_QUANTITY: i64 = 1000;

    /// Validates all fields, so that the customer gets all errors at once.
    pub fn parse(draft: Draft) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let customer = errors.parse("customer", &draft.customer);
        if draft.items.is_empty() || draft.items.len() > Self::MAX_LINES {
            errors.add("items", format!("must have between 1 and {} lines", Self::MAX_LINES));
        }
        let mut lines: Vec<NewLine> = Vec::new();
        // A draft may have as many lines as fit into a request, and each is compared with all
        // before it.
        for (index, DraftLine { sku, quantity }) in draft.items.iter().enumerate().take(Self::MAX_LINES) {
            if !(1..=Self::MAX_QUANTITY).contains(quantity) {
                let detail = format!("must be between 1 and {}, not {quantity}", Self::MAX_QUANTITY);
                errors.add(format!("items[{index}].quantity"), detail);
            }
            let Some(sku) = errors.parse::<Sku>(format!("items[{index}].sku"), sku) else { continue };
            if lines.iter().any(|earlier| earlier.sku == sku) {
                errors.add(format!("items[{index}].sku"), format!("{sku} is ordered twice"));
            }
            lines.push(NewLine { sku, quantity: *quantity });
        }
        match customer {
            Some(customer) if errors.is_empty() => Ok(Self { customer, lines }),
            _ => Err(errors.into_vec()),
        }
    }

    /// The total at these prices, one per line.
    pub fn total_cents(&self, prices: &[i64]) -> i64 {
        self.lines.iter().zip(prices).map(|(line, price)| line.quantity.saturating_mul(*price)).sum()
    }

    /// The content of the request, to recognise the same request again.
    pub fn fingerprint(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A stored order.
#[derive(Clone, Debug)]
pub struct Order {
    pub id: String,
    pub customer: String,
    pub total_cents: i64,
    pub state: State,
    pub failure: Option<Failure>,
}

/// State of an order.
///
/// ```text
/// pending -> confirmed
///    |
///    +-----> cancelled
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Stored. Its saga is running or compensating.
    Pending,
    /// Stock is reserved and the customer was charged.
    Confirmed,
    /// Failed. Everything that was done, or may have been done, is undone.
    Cancelled,
}

/// Why an order was cancelled. Stored, so that every retry of the customer gets the same answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    OutOfStock,
    Declined,
    PaymentUnavailable,
    PaymentTimedOut,
    InventoryUnavailable,
    InventoryTimedOut,
    /// The order service could not finish it in time, because of a crash or a failing database.
    Interrupted,
}

impl Failure {
    /// Reads the failure of a saga. A step's error begins with the name of its failure; any other
    /// error comes from the coordinator, such as a deadline or a panic.
    pub fn of(saga: &saga::Failure) -> Self {
        let name = saga.message.split(':').next().unwrap_or_default();
        name.parse().unwrap_or(Self::Interrupted)
    }

    /// The service that caused the failure, if another one did.
    pub fn dependency(self) -> Option<&'static str> {
        match self {
            Self::PaymentUnavailable | Self::PaymentTimedOut => Some("payment"),
            Self::InventoryUnavailable | Self::InventoryTimedOut => Some("inventory"),
            Self::OutOfStock | Self::Declined | Self::Interrupted => None,
        }
    }
}

/// A database value that no version of this code has written.
#[derive(Debug, thiserror::Error)]
#[error("unknown {what} {value:?} in the database")]
pub struct Unknown {
    what: &'static str,
    value: String,
}

/// Defines the database names of an enum's values, in both directions.
macro_rules! names {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl std::str::FromStr for $type {
            type Err = Unknown;
            fn from_str(value: &str) -> Result<Self, Unknown> {
                match value {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Unknown { what: $what, value: value.to_owned() }),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names!(State, "state", Pending = "pending", Confirmed = "confirmed", Cancelled = "cancelled");

names!(
    Failure,
    "failure",
    OutOfStock = "out_of_stock",
    Declined = "declined",
    PaymentUnavailable = "payment_unavailable",
    PaymentTimedOut = "payment_timed_out",
    InventoryUnavailable = "inventory_unavailable",
    InventoryTimedOut = "inventory_timed_out",
    Interrupted = "interrupted"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(customer: &str, items: &[(&str, i64)]) -> Draft {
        let items = items.iter().map(|&(sku, quantity)| DraftLine { sku: sku.into(), quantity }).collect();
        Draft { customer: customer.into(), items }
    }

    fn fields(draft: Draft) -> Vec<String> {
        NewOrder::parse(draft).unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let wrong = draft(" ", &[("tea", 0), ("mug", -1), ("tea", 1), ("honey", 1001)]);
        let expected = ["customer", "items[0].quantity", "items[1].quantity", "items[2].sku", "items[3].quantity"];
        assert_eq!(fields(wrong), expected);
    }

    #[test]
    fn a_name_with_a_control_character_is_named_by_its_field() {
        assert_eq!(fields(draft("a\0", &[("tea", 1), ("b\0", 1)])), ["customer", "items[1].sku"]);
        let refused = NewOrder::parse(draft("alice", &[("tea\0", 1)])).unwrap_err();
        assert_eq!(refused[0].detail, "must be 1 to 64 letters, digits or any of . _ -");
    }

    #[test]
    fn an_order_has_lines() {
        assert_eq!(fields(draft("alice", &[])), ["items"]);
        assert!(NewOrder::parse(draft("alice", &[("tea", 1000)])).is_ok());
    }

    #[test]
    fn names_go_both_ways() {
        assert_eq!("cancelled".parse::<State>().unwrap(), State::Cancelled);
        assert_eq!(Failure::OutOfStock.to_string().parse::<Failure>().unwrap(), Failure::OutOfStock);
        assert!("lost".parse::<State>().is_err());
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let lines = |count: usize| {
            let items = (0..count).map(|n| DraftLine { sku: n.to_string(), quantity: 1 }).collect();
            Draft { customer: "alice".into(), items }
        };
        assert_eq!(NewOrder::parse(lines(50)).unwrap().lines.len(), 50);
        assert_eq!(fields(lines(51)), ["items"]);
        let order = NewOrder::parse(draft("alice", &[("tea", 1), ("mug", 1000)])).unwrap();
        let parsed: Vec<_> = order.lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect();
        assert_eq!((order.customer.as_str(), parsed), ("alice", vec![("tea", 1), ("mug", 1000)]));
    }

    #[test]
    fn the_total_is_the_sum_of_the_lines() {
        let order = NewOrder::parse(draft("alice", &[("tea", 2), ("mug", 3)])).unwrap();
        assert_eq!(order.total_cents(&[790, 1450]), 2 * 790 + 3 * 1450);
    }

    #[test]
    fn a_fingerprint_tells_orders_apart() {
        let of = |customer, items: &[(&str, i64)]| NewOrder::parse(draft(customer, items)).unwrap().fingerprint();
        let prints = [
            of("alice", &[("tea", 1)]),
            of("bob", &[("tea", 1)]),
            of("alice", &[("mug", 1)]),
            of("alice", &[("tea", 2)]),
            of("alice", &[("tea", 1), ("mug", 1)]),
        ];
        assert_eq!(prints[0], of("alice", &[("tea", 1)]));
        assert_eq!(prints.iter().collect::<std::collections::BTreeSet<_>>().len(), prints.len());
    }

    #[test]
    fn only_a_failure_of_another_service_names_one() {
        let cases = [
            (Failure::OutOfStock, "out_of_stock", None),
            (Failure::Declined, "declined", None),
            (Failure::PaymentUnavailable, "payment_unavailable", Some("payment")),
            (Failure::PaymentTimedOut, "payment_timed_out", Some("payment")),
            (Failure::InventoryUnavailable, "inventory_unavailable", Some("inventory")),
            (Failure::InventoryTimedOut, "inventory_timed_out", Some("inventory")),
            (Failure::Interrupted, "interrupted", None),
        ];
        for (failure, name, dependency) in cases {
            assert_eq!((failure.as_str(), name.parse().ok()), (name, Some(failure)));
            assert_eq!(failure.dependency(), dependency, "{name}");
        }
    }
}
