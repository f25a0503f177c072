//! The domain types of the inventory service, independent of protobuf and SQL.

#[derive(Clone, Debug)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    /// Quantity that can be sold now: neither reserved nor sold.
    pub on_hand: i64,
}

/// A quantity of one product. Greater than zero: the API rejects the rest.
#[derive(Clone, Debug)]
pub struct Line {
    pub sku: String,
    pub quantity: i64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReserveOutcome {
    /// Every line is reserved, now or by an earlier attempt.
    Reserved,
    /// At least one line is out of stock, so none is reserved.
    OutOfStock,
    /// The release came before the reservation. Nothing is reserved, and nothing will be.
    Revoked,
}

/// What happened to the stock of a confirmed order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shipped {
    Now,
    /// An earlier event was already handled.
    Before,
    /// There is no reservation to sell.
    NothingReserved,
}
