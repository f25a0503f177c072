//! Sends one message to the customer for each event.

use buttress_durable::bus::HandlerError;
use buttress_durable::{Database, DomainEvent, Tx};

use super::store::Store;
use crate::bus::Consumer;
use crate::events::{Event, OrderCancelled, OrderConfirmed, PaymentCompleted, PaymentRefunded, ShipmentCreated};

impl<D: Database> Consumer<D> for Store<D> {
    async fn handle(&self, tx: &mut Tx<D>, event: &DomainEvent) -> Result<(), HandlerError> {
        let Some((kind, text)) = message(event)? else { return Ok(()) };
        Ok(self.send(tx, event.key(), kind, &text).await?)
    }
}

/// Returns the kind and text of the message for an event.
fn message(event: &DomainEvent) -> Result<Option<(&'static str, String)>, HandlerError> {
    Ok(Some(match event.event_type() {
        OrderConfirmed::TYPE => {
            let OrderConfirmed { customer, total_cents, .. } = OrderConfirmed::from_domain(event)?;
            ("order_confirmed", format!("Thank you, {customer}: your order over {} is confirmed.", money(total_cents)))
        }
        OrderCancelled::TYPE => {
            let OrderCancelled { customer, failure, .. } = OrderCancelled::from_domain(event)?;
            ("order_cancelled", format!("We are sorry, {customer}: your order was cancelled ({failure})."))
        }
        PaymentCompleted::TYPE => {
            let PaymentCompleted { amount_cents, .. } = PaymentCompleted::from_domain(event)?;
            ("payment_completed", format!("We have received {}.", money(amount_cents)))
        }
        PaymentRefunded::TYPE => {
            let PaymentRefunded { amount_cents, .. } = PaymentRefunded::from_domain(event)?;
            ("payment_refunded", format!("You have {} back.", money(amount_cents)))
        }
        ShipmentCreated::TYPE => {
            let ShipmentCreated { shipment_id, .. } = ShipmentCreated::from_domain(event)?;
            ("shipment_created", format!("Your parcel {shipment_id} is on its way."))
        }
        _ => return Ok(None),
    }))
}

fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
