//! Orders, their states and why they fail: no HTTP, no gRPC, no SQL.

use std::fmt;

use buttress_durable::saga;
use serde::{Deserialize, Serialize};

/// An order that has passed every check that needs no other service. There is no other way to make one.
#[derive(Clone, Debug, Serialize)]
pub struct NewOrder {
    pub customer: String,
    pub lines: Vec<NewLine>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewLine {
    pub sku: String,
    pub quantity: i64,
}

/// An order as somebody wrote it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    pub customer: String,
    pub items: Vec<DraftLine>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftLine {
    pub sku: String,
    pub quantity: i64,
}

/// What is wrong with one field of a draft.
#[derive(Clone, Debug, Serialize)]
pub struct FieldError {
    pub field: String,
    pub detail: String,
}

impl NewOrder {
    /// Enough for any honest order, and small enough that no sum of prices overflows.
    const MAX_LINES: usize = 50;
    const MAX_QUANTITY: i64 = 1000;

    /// Checks everything at once, so that the customer learns of all mistakes at once.
    pub fn parse(draft: Draft) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut wrong = |field: String, detail: String| errors.push(FieldError { field, detail });
        if draft.customer.trim().is_empty() {
            wrong("customer".into(), "must not be empty".into());
        }
        if draft.items.is_empty() || draft.items.len() > Self::MAX_LINES {
            wrong("items".into(), format!("must have between 1 and {} lines", Self::MAX_LINES));
        }
        for (index, line) in draft.items.iter().enumerate() {
            if !(1..=Self::MAX_QUANTITY).contains(&line.quantity) {
                let detail = format!("must be between 1 and {}, not {}", Self::MAX_QUANTITY, line.quantity);
                wrong(format!("items[{index}].quantity"), detail);
            }
            if draft.items.iter().take(index).any(|earlier| earlier.sku == line.sku) {
                wrong(format!("items[{index}].sku"), format!("{} is ordered twice", line.sku));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let lines = draft.items.into_iter().map(|DraftLine { sku, quantity }| NewLine { sku, quantity }).collect();
        Ok(Self { customer: draft.customer, lines })
    }

    /// At these prices, one for each line.
    pub fn total_cents(&self, prices: &[i64]) -> i64 {
        self.lines.iter().zip(prices).map(|(line, price)| line.quantity.saturating_mul(*price)).sum()
    }

    /// What was asked, to recognise the same request again.
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

/// ```text
/// pending -> confirmed
///    |
///    +-----> cancelled
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Stored, and its saga is at work: forward, or back.
    Pending,
    /// Stock is reserved, money is taken, and the customer has our word.
    Confirmed,
    /// Something failed. What was done, or may have been done, is undone.
    Cancelled,
}

/// Why an order is cancelled. Stored, so that every retry of the customer gets the same answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    OutOfStock,
    Declined,
    PaymentUnavailable,
    PaymentTimedOut,
    InventoryUnavailable,
    InventoryTimedOut,
    /// The order service itself could not see to it in time: a crash, a failing database.
    Interrupted,
}

impl Failure {
    /// Why a saga is undone, as its failing step has said it: a step's errors begin with the name of their failure. What
    /// does not was said by the coordinator, of a deadline or a panic.
    pub fn of(saga: &saga::Failure) -> Self {
        let name = saga.message.split(':').next().unwrap_or_default();
        name.parse().unwrap_or(Self::Interrupted)
    }

    /// The service that let us down, if one did.
    pub fn dependency(self) -> Option<&'static str> {
        match self {
            Self::PaymentUnavailable | Self::PaymentTimedOut => Some("payment"),
            Self::InventoryUnavailable | Self::InventoryTimedOut => Some("inventory"),
            Self::OutOfStock | Self::Declined | Self::Interrupted => None,
        }
    }
}

/// A value in the database that no version of this code has written.
#[derive(Debug, thiserror::Error)]
#[error("unknown {what} {value:?} in the database")]
pub struct Unknown {
    what: &'static str,
    value: String,
}

/// Names for an enum's values in the database, both ways, in one table.
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
}
