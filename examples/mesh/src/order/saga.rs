//! The saga of an order: four steps and their compensations.
//!
//! ```text
//! create_order       local    compensation: cancel the order
//! reserve_inventory  a call   compensation: release the stock
//! process_payment    a call   the pivot; refunded only if its outcome is unknown
//! confirm_order      local    retriable: it may be late, but never turns the saga back
//! ```
//!
//! Until the payment is known to have succeeded, every failure compensates the saga. After it, the
//! saga can only go forward: a customer who has paid gets an order. The saga's rows survive every
//! crash, and a coordinator resumes where the last one stopped.
//!
//! An action fails fast, because the customer waits for its outcome. A compensation waits: it goes
//! on for as long as the participant is down, also for hours, and ends without an operator.
//! Failures of the order service's own database are no attempts either.

use std::num::NonZeroU32;
use std::time::Duration;

use buttress::context::{self, Scoped};
use buttress::policy::{CallContext, Criticality};
use buttress::{Backoff, InvalidConfig};
use buttress_durable::saga::{Call, Decision, Definition, Done, Step, StepError};
use buttress_durable::{Database, Tx};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing::instrument::{Instrument, Instrumented};

use super::clients::{Answer, Failed, Inventory, Payment};
use super::domain::{Failure, NewLine};
use super::store;
use crate::events::{self, Event, OrderCancelled, OrderConfirmed, OrderCreated};
use crate::telemetry::step_span;
use crate::upstream::Kind;

/// Input of the steps. It is stored with the saga, so a change of its fields needs a new version of
/// the definition.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Data {
    pub(super) customer: String,
    pub(super) total_cents: i64,
    pub(super) lines: Vec<NewLine>,
}

/// The definition's name, stored with each saga.
pub(super) const NAME: &str = "order";

/// Deadline for the steps before the pivot. Longer than all attempts below together, so that it
/// only affects interrupted sagas: after a longer outage the customer is no longer waiting.
const DEADLINE: Duration = Duration::from_secs(30);
/// Few, because each attempt goes through the client stack, which retries itself.
const ATTEMPTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
/// Longer than the client stacks' total timeout, so that their more specific error comes first.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// For wrong answers only, since an outage costs no attempt. After these the saga is stuck and
/// listed under /admin/sagas, for an operator to resolve.
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
    let definition = Definition::new(NAME, 1, steps)?.deadline(DEADLINE);
    // The order's row follows what an operator decides.
    Ok(definition
        .on_skip(|tx, skipped| skipped_by_hand(tx, skipped).boxed())
        .on_resolve(|tx, resolved| resolved_by_hand(tx, resolved).boxed()))
}

fn reserve_inventory<D: Database>(inventory: &Inventory) -> Step<D, Data> {
    let (reserve, release) = (inventory.clone(), inventory.clone());
    let action = move |call: Call<Data>| {
        let (inventory, at) = (reserve.clone(), Surroundings::new("reserve_inventory", FORWARD, &call));
        at.of(async move {
            let answer = inventory.reserve(call.key(), call.saga_id(), &call.data.lines).await.map_err(failed)?;
            done_or(answer, Failure::OutOfStock, call)
        })
    };
    let compensation = move |call: Call<Data>| {
        let (inventory, at) = (release.clone(), Surroundings::new("undo reserve_inventory", BACKWARD, &call));
        at.of(async move {
            inventory.release(call.key(), call.saga_id()).await.map_err(not_undone)?;
            Ok(call.done())
        })
    };
    patient(Step::new("reserve_inventory", action).compensation(compensation))
}

fn process_payment<D: Database>(payment: &Payment) -> Step<D, Data> {
    let (charge, refund) = (payment.clone(), payment.clone());
    let action = move |call: Call<Data>| {
        let (payment, at) = (charge.clone(), Surroundings::new("process_payment", FORWARD, &call));
        at.of(async move {
            let Data { customer, total_cents, .. } = &call.data;
            let answer = payment.charge(call.key(), call.saga_id(), customer, *total_cents).await.map_err(failed)?;
            done_or(answer, Failure::Declined, call)
        })
    };
    // The pivot needs a compensation for an unknown outcome. The payment service records the refund
    // of an unknown charge, which makes a *late* charge harmless.
    let compensation = move |call: Call<Data>| {
        let (payment, at) = (refund.clone(), Surroundings::new("undo process_payment", BACKWARD, &call));
        at.of(async move {
            payment.refund(call.key(), call.saga_id()).await.map_err(not_undone)?;
            Ok(call.done())
        })
    };
    patient(Step::new("process_payment", action).compensation(compensation))
}

/// Few attempts for the action, because the customer waits; many for the compensation.
fn patient<D: Database>(step: Step<D, Data>) -> Step<D, Data> {
    step.attempts(ATTEMPTS)
        .backoff(Backoff::equal_jitter(Duration::from_millis(50), Duration::from_millis(200)))
        .timeout(TIMEOUT)
        .compensation_attempts(UNDO_ATTEMPTS)
        .compensation_backoff(UNDO_BACKOFF)
}

/// The priority of a step: that of new orders, for which the customer waits, also if the saga was
/// interrupted and resumes without its request.
const FORWARD: Criticality = Criticality::CriticalPlus;

/// The priority of a compensation, for which nobody waits, and which is repeated until it succeeds.
/// Not sheddable: stock that stays reserved cannot be sold.
const BACKWARD: Criticality = Criticality::Critical;

/// How a step runs: with a priority of its own, since no request is being served, and in a span in
/// the trace of the request that placed the order.
struct Surroundings {
    priority: Criticality,
    span: Span,
}

impl Surroundings {
    fn new(step: &'static str, priority: Criticality, call: &Call<Data>) -> Self {
        Self { priority, span: step_span(step, call.saga_id(), call.trace()) }
    }

    fn of<F: Future>(self, step: F) -> Instrumented<Scoped<F>> {
        context::with(CallContext::default().with_priority(self.priority.into()), step).instrument(self.span)
    }
}

/// The row was inserted together with the saga. This step publishes the event.
fn created(call: Call<Data>) -> Result<Done<Data>, StepError> {
    let Data { customer, total_cents, lines } = call.data.clone();
    let lines = lines.into_iter().map(|NewLine { sku, quantity }| events::Line { sku: sku.into(), quantity }).collect();
    let order_id = call.saga_id().to_owned();
    with_event(call, &OrderCreated { order_id, customer, total_cents, lines })
}

async fn confirm<D: Database>(tx: &mut Tx<D>, call: Call<Data>) -> Result<Done<Data>, StepError> {
    let Data { customer, total_cents, .. } = call.data.clone();
    let order_id = call.saga_id().to_owned();
    if !store::confirm(tx, &order_id).await? {
        return Err(StepError::terminal(format!("order {order_id} has ended already")));
    }
    with_event(call, &OrderConfirmed { order_id, customer, total_cents })
}

async fn cancel<D: Database>(tx: &mut Tx<D>, call: Call<Data>) -> Result<Done<Data>, StepError> {
    let failure = call.failure().map_or(Failure::Interrupted, Failure::of);
    let (order_id, customer) = (call.saga_id().to_owned(), call.data.customer.clone());
    if !store::cancel(tx, &order_id, failure).await? {
        return Err(StepError::terminal(format!("order {order_id} has ended already")));
    }
    with_event(call, &OrderCancelled { order_id, customer, failure: failure.to_string() })
}

/// Skipping the last step confirms the order, and skipping its cancelling cancels it: the row
/// belongs to this service, so that no operator changes it by hand.
async fn skipped_by_hand<D: Database>(tx: &mut Tx<D>, skipped: Decision<Data>) -> Result<Done<Data>, StepError> {
    match skipped.step() {
        "confirm_order" => confirmed_by_hand(tx, skipped).await,
        "create_order" if skipped.is_compensating() => cancelled_by_hand(tx, skipped).await,
        _ => Ok(skipped.done()),
    }
}

/// Resolving a saga confirms its order after the payment, and cancels it before.
async fn resolved_by_hand<D: Database>(tx: &mut Tx<D>, resolved: Decision<Data>) -> Result<Done<Data>, StepError> {
    match resolved.step() {
        "confirm_order" => confirmed_by_hand(tx, resolved).await,
        _ => cancelled_by_hand(tx, resolved).await,
    }
}

async fn confirmed_by_hand<D: Database>(tx: &mut Tx<D>, decision: Decision<Data>) -> Result<Done<Data>, StepError> {
    let Data { customer, total_cents, .. } = decision.data.clone();
    let order_id = decision.saga_id().to_owned();
    // An order that has ended already stays as it is.
    if !store::confirm(tx, &order_id).await? {
        return Ok(decision.done());
    }
    publish(decision.done(), &OrderConfirmed { order_id, customer, total_cents })
}

async fn cancelled_by_hand<D: Database>(tx: &mut Tx<D>, decision: Decision<Data>) -> Result<Done<Data>, StepError> {
    let failure = decision.failure().map_or(Failure::Interrupted, Failure::of);
    let (order_id, customer) = (decision.saga_id().to_owned(), decision.data.customer.clone());
    if !store::cancel(tx, &order_id, failure).await? {
        return Ok(decision.done());
    }
    publish(decision.done(), &OrderCancelled { order_id, customer, failure: failure.to_string() })
}

/// Publishes the event in the transaction that records the end of the step.
fn with_event(call: Call<Data>, event: &impl Event) -> Result<Done<Data>, StepError> {
    publish(call.done(), event)
}

fn publish(done: Done<Data>, event: &impl Event) -> Result<Done<Data>, StepError> {
    Ok(done.event(event.to_domain().map_err(StepError::terminal)?))
}

/// Continues if the step was done, and compensates if the participant rejected it.
fn done_or(answer: Answer, refusal: Failure, call: Call<Data>) -> Result<Done<Data>, StepError> {
    match answer {
        Answer::Done => Ok(call.done()),
        Answer::TurnedDown => Err(StepError::terminal(refusal)),
        Answer::Revoked => Err(StepError::terminal(Failure::Interrupted)),
    }
}

impl std::error::Error for Failure {}

/// A failed action. The customer waits for the outcome, so that every failure is an attempt.
///
/// Once an attempt was sent, the outcome is unknown. A timeout does not tell whether the call had
/// an effect, and neither does UNAVAILABLE, which may be the answer to the last of several
/// attempts. Compensating a call that had no effect costs one call; assuming that it had none can
/// cost money.
fn failed(Failed { upstream, sent }: Failed) -> StepError {
    let failure = match (upstream.service, upstream.kind) {
        ("payment", Kind::TimedOut) => Failure::PaymentTimedOut,
        ("payment", _) => Failure::PaymentUnavailable,
        (_, Kind::TimedOut) => Failure::InventoryTimedOut,
        _ => Failure::InventoryUnavailable,
    };
    // The failure's name must come first: `Failure::of` reads it.
    let message = format!("{failure}: {upstream}");
    if sent { StepError::unknown(message) } else { StepError::retriable(message) }
}

/// A failed compensation. It must succeed in the end, so that it waits for a participant that is
/// down: neither a rejection by the client stack nor a call without an answer is an attempt.
fn not_undone(Failed { upstream, sent }: Failed) -> StepError {
    let (kind, pause) = (upstream.kind, upstream.retry_after.unwrap_or_default());
    let error = match (sent, kind) {
        (false, _) => StepError::not_sent(upstream),
        (true, Kind::Unavailable | Kind::TimedOut) => StepError::unknown(upstream).uncounted(),
        (true, _) => StepError::unknown(upstream),
    };
    error.after(pause)
}

#[cfg(test)]
mod without_events;

#[cfg(test)]
mod tests {
    use buttress_durable::saga::ErrorKind;

    use super::*;
    use crate::upstream::Upstream;

    fn call(service: &'static str, kind: Kind, sent: bool) -> Failed {
        Failed { upstream: Upstream { service, kind, detail: "so: what".into(), retry_after: None }, sent }
    }

    #[test]
    fn what_a_step_says_is_what_the_customer_is_told() {
        let upstream = |service, kind| failed(call(service, kind, true));
        let cases = [
            (StepError::terminal(Failure::Declined), Failure::Declined),
            (StepError::terminal(Failure::OutOfStock), Failure::OutOfStock),
            (upstream("payment", Kind::TimedOut), Failure::PaymentTimedOut),
            (upstream("payment", Kind::Unavailable), Failure::PaymentUnavailable),
            (upstream("payment", Kind::Broken), Failure::PaymentUnavailable),
            (upstream("inventory", Kind::TimedOut), Failure::InventoryTimedOut),
            (upstream("inventory", Kind::Unavailable), Failure::InventoryUnavailable),
            (upstream("inventory", Kind::Broken), Failure::InventoryUnavailable),
            (failed(call("payment", Kind::Unavailable, false)), Failure::PaymentUnavailable),
            (StepError::unknown("the saga's deadline has passed"), Failure::Interrupted),
        ];
        for (error, expected) in cases {
            let json = serde_json::json!({ "step": "s", "message": error.to_string() });
            assert_eq!(Failure::of(&serde_json::from_value(json).unwrap()), expected);
        }
    }

    const KINDS: [Kind; 4] = [Kind::NotFound, Kind::Unavailable, Kind::TimedOut, Kind::Broken];

    #[test]
    fn a_call_that_was_sent_is_never_certain_to_have_had_no_effect() {
        for kind in KINDS {
            assert_eq!(failed(call("payment", kind, true)).kind(), ErrorKind::Unknown, "{kind}");
            assert_eq!(failed(call("payment", kind, false)).kind(), ErrorKind::Retriable, "{kind}");
        }
    }

    #[test]
    fn a_compensation_that_could_not_be_sent_is_no_attempt() {
        for kind in KINDS {
            assert_eq!(not_undone(call("payment", kind, false)).kind(), ErrorKind::NotSent, "{kind}");
            assert_eq!(not_undone(call("payment", kind, true)).kind(), ErrorKind::Unknown, "{kind}");
        }
    }
}
