//! The saga of an order: four steps, and how to undo them.
//!
//! ```text
//! create_order       local    undone by: cancelling the order
//! reserve_inventory  a call   undone by: releasing the pieces
//! process_payment    a call   the pivot; undone only while nobody knows whether it happened: refunding
//! confirm_order      local    cannot fail, only be late
//! ```
//!
//! Until the payment is known to have happened, every failure turns the saga back. After it, there is only forward: whoever
//! has paid gets an order. The rows of the saga survive every crash, and a coordinator goes on where the last one was.

use std::num::NonZeroU32;
use std::time::Duration;

use buttress::{Backoff, InvalidConfig};
use buttress_durable::saga::{Call, Definition, Done, Step, StepError};
use buttress_durable::{Database, Tx};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tracing::{Instrument, Span};

use super::clients::{Answer, Inventory, Payment};
use super::domain::{Failure, NewLine};
use super::store;
use crate::events::{self, Event, OrderCancelled, OrderConfirmed, OrderCreated};
use crate::telemetry::step_span;
use crate::upstream::{Kind, Upstream};

/// What the steps need to know. Stored with the saga, so: another shape is another version of the definition.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Data {
    pub(super) customer: String,
    pub(super) total_cents: i64,
    pub(super) lines: Vec<NewLine>,
}

/// Until the pivot is called. Longer than the attempts below take together, so that it is for those that were interrupted:
/// an order that was down with its service for longer is nothing the customer still waits for.
const DEADLINE: Duration = Duration::from_secs(30);
/// Few, because every attempt is one through all the layers, which have retried already.
const ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
/// Longer than the client stacks take at most, so that their answer, which knows more, comes first.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// Undoing is tried for many minutes. Then somebody has to look: the saga is stuck, and listed under /admin/sagas.
const UNDO_ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
const UNDO_BACKOFF: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));

pub(super) fn definition<D: Database>(
    inventory: &Inventory,
    payment: &Payment,
) -> Result<Definition<D, Data>, InvalidConfig> {
    let create = Step::local("create_order", |_, call| async move { created(call) }.boxed())
        .local_compensation(|tx, call| cancel(tx, call).boxed());
    let confirm = Step::local("confirm_order", |tx, call| confirm(tx, call).boxed())
        .attempts(UNDO_ATTEMPTS)
        .backoff(UNDO_BACKOFF)
        .retriable();
    let steps = [create, reserve_inventory(inventory), process_payment(payment).pivot(), confirm];
    Ok(Definition::new("order", 1, steps)?.deadline(DEADLINE))
}

fn reserve_inventory<D: Database>(inventory: &Inventory) -> Step<D, Data> {
    let (reserve, release) = (inventory.clone(), inventory.clone());
    let action = move |call: Call<Data>| {
        let (inventory, span) = (reserve.clone(), span("reserve_inventory", &call));
        async move {
            let answer = inventory.reserve(call.key(), call.saga_id(), &call.data.lines).await?;
            done_or(answer, Failure::OutOfStock, call)
        }
        .instrument(span)
    };
    let compensation = move |call: Call<Data>| {
        let (inventory, span) = (release.clone(), span("undo reserve_inventory", &call));
        async move {
            inventory.release(call.key(), call.saga_id()).await?;
            Ok(call.done())
        }
        .instrument(span)
    };
    patient(Step::new("reserve_inventory", action).compensation(compensation))
}

fn process_payment<D: Database>(payment: &Payment) -> Step<D, Data> {
    let (charge, refund) = (payment.clone(), payment.clone());
    let action = move |call: Call<Data>| {
        let (payment, span) = (charge.clone(), span("process_payment", &call));
        async move {
            let Data { customer, total_cents, .. } = &call.data;
            let answer = payment.charge(call.key(), call.saga_id(), customer, *total_cents).await?;
            done_or(answer, Failure::Declined, call)
        }
        .instrument(span)
    };
    // The pivot has one nevertheless, for when nobody knows whether it happened. A refund of a charge that never came is
    // remembered by the payment service, which is what makes a *late* charge harmless.
    let compensation = move |call: Call<Data>| {
        let (payment, span) = (refund.clone(), span("undo process_payment", &call));
        async move {
            payment.refund(call.key(), call.saga_id()).await?;
            Ok(call.done())
        }
        .instrument(span)
    };
    patient(Step::new("process_payment", action).compensation(compensation))
}

/// As impatient as a customer on the way there, and as patient as an accountant on the way back.
fn patient<D: Database>(step: Step<D, Data>) -> Step<D, Data> {
    step.attempts(ATTEMPTS)
        .backoff(Backoff::equal_jitter(Duration::from_millis(50), Duration::from_millis(200)))
        .timeout(TIMEOUT)
        .compensation_attempts(UNDO_ATTEMPTS)
        .compensation_backoff(UNDO_BACKOFF)
}

/// A step in the trace of the request that placed the order, however long ago that was.
fn span(step: &'static str, call: &Call<Data>) -> Span {
    step_span(step, call.saga_id(), call.trace())
}

/// The row was stored together with the saga; this tells the others.
fn created(call: Call<Data>) -> Result<Done<Data>, StepError> {
    let Data { customer, total_cents, lines } = call.data.clone();
    let lines = lines.into_iter().map(|NewLine { sku, quantity }| events::Line { sku, quantity }).collect();
    let order_id = call.saga_id().to_owned();
    told(call, &OrderCreated { order_id, customer, total_cents, lines })
}

async fn confirm<D: Database>(tx: &mut Tx<D>, call: Call<Data>) -> Result<Done<Data>, StepError> {
    let Data { customer, total_cents, .. } = call.data.clone();
    let order_id = call.saga_id().to_owned();
    if !store::confirm(tx, &order_id).await? {
        return Err(StepError::terminal(format!("order {order_id} has ended already")));
    }
    told(call, &OrderConfirmed { order_id, customer, total_cents })
}

async fn cancel<D: Database>(tx: &mut Tx<D>, call: Call<Data>) -> Result<Done<Data>, StepError> {
    let failure = call.failure().map_or(Failure::Interrupted, Failure::of);
    let (order_id, customer) = (call.saga_id().to_owned(), call.data.customer.clone());
    if !store::cancel(tx, &order_id, failure).await? {
        return Err(StepError::terminal(format!("order {order_id} has ended already")));
    }
    told(call, &OrderCancelled { order_id, customer, failure: failure.to_string() })
}

/// The event goes out with the transaction that notes the end of the step.
fn told(call: Call<Data>, event: &impl Event) -> Result<Done<Data>, StepError> {
    let event = event.to_domain().map_err(StepError::terminal)?;
    Ok(call.done().event(event))
}

/// Goes on if the step was done, and turns back if the participant turned it down.
fn done_or(answer: Answer, refusal: Failure, call: Call<Data>) -> Result<Done<Data>, StepError> {
    match answer {
        Answer::Done => Ok(call.done()),
        Answer::TurnedDown => Err(StepError::terminal(refusal)),
        Answer::Revoked => Err(StepError::terminal(Failure::Interrupted)),
    }
}

impl std::error::Error for Failure {}

impl From<Upstream> for StepError {
    /// Unknown, always. A timeout says nothing about what happened; nor does "unavailable", since it may be the answer to
    /// the last of several attempts. Undoing what never happened costs a call; believing that it never happened costs money.
    fn from(upstream: Upstream) -> Self {
        let failure = match (upstream.service, upstream.kind) {
            ("payment", Kind::TimedOut) => Failure::PaymentTimedOut,
            ("payment", _) => Failure::PaymentUnavailable,
            (_, Kind::TimedOut) => Failure::InventoryTimedOut,
            _ => Failure::InventoryUnavailable,
        };
        // The failure's name first: `Failure::of` reads it.
        Self::unknown(format!("{failure}: {upstream}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_says_is_what_the_customer_is_told() {
        let upstream = |service, kind| Upstream { service, kind, detail: "so: what".into(), retry_after: None };
        let cases = [
            (StepError::terminal(Failure::Declined), Failure::Declined),
            (upstream("payment", Kind::TimedOut).into(), Failure::PaymentTimedOut),
            (upstream("inventory", Kind::Broken).into(), Failure::InventoryUnavailable),
            (StepError::unknown("the saga's deadline has passed"), Failure::Interrupted),
        ];
        for (error, told) in cases {
            let json = serde_json::json!({ "step": "s", "message": error.to_string() });
            assert_eq!(Failure::of(&serde_json::from_value(json).unwrap()), told);
        }
    }
}
