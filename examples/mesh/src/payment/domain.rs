//! The domain types of the payment service, independent of protobuf and SQL.

/// A request to charge a customer.
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
    /// The customer was charged, now or by an earlier attempt.
    Charged,
    /// No such account, or its balance is too low.
    Declined,
    /// The refund came before the charge. Nothing was charged, and nothing will be.
    Revoked,
}

/// The state of an order's payment.
#[derive(Clone, Debug)]
pub struct Payment {
    pub state: String,
    pub amount_cents: i64,
    /// Empty if the refund came before the charge.
    pub customer: String,
}
