//! What the payment service decides, in its own words: no protobuf, no SQL.

/// A request to take money.
#[derive(Clone, Debug)]
pub struct Charge {
    /// Idempotency key: the same on every attempt of the same charge.
    pub key: String,
    pub order_id: String,
    pub customer: String,
    pub amount_cents: i64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChargeOutcome {
    /// The money was taken, now or by an earlier attempt.
    Charged,
    /// No such account, or not enough in it.
    Declined,
    /// The refund came before the charge. Nothing was taken and nothing ever will be.
    Revoked,
}

/// What became of an order's payment: for people to read.
#[derive(Clone, Debug)]
pub struct Payment {
    pub state: String,
    pub amount_cents: i64,
}
