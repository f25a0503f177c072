//! What the inventory service knows, in its own words: no protobuf, no SQL.

#[derive(Clone, Debug)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    /// Pieces that can be sold now: neither reserved nor sold.
    pub on_hand: i64,
}

/// So many pieces of one product. Always more than none: the API refuses the rest.
#[derive(Clone, Debug)]
pub struct Line {
    pub sku: String,
    pub quantity: i64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReserveOutcome {
    /// Every line was set aside, now or by an earlier attempt.
    Reserved,
    /// At least one line could not be met, so none was.
    OutOfStock,
    /// The release came before the reservation. Nothing was set aside and nothing ever will be.
    Revoked,
}

/// What became of the pieces of a confirmed order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shipped {
    Now,
    /// The same was asked before.
    Before,
    /// There is no reservation that could be sold.
    NothingReserved,
}
