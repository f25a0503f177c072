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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{OrderCreated, PaymentDeclined};

    fn told(event: &impl Event) -> Option<(&'static str, String)> {
        message(&event.to_domain().unwrap()).unwrap()
    }

    #[test]
    fn every_event_has_words_of_its_own() {
        let (order_id, customer) = (|| "o1".to_owned(), || "alice".to_owned());
        let confirmed = OrderConfirmed { order_id: order_id(), customer: customer(), total_cents: 1580 };
        let cancelled = OrderCancelled { order_id: order_id(), customer: customer(), failure: "declined".into() };
        let paid = PaymentCompleted { order_id: order_id(), customer: customer(), amount_cents: 5 };
        let refunded = PaymentRefunded { order_id: order_id(), customer: customer(), amount_cents: 100 };
        let shipped = ShipmentCreated { order_id: order_id(), shipment_id: "s1".into() };
        let message = |kind, text: &str| Some((kind, text.to_owned()));
        let thanks = "Thank you, alice: your order over 15.80 is confirmed.";
        assert_eq!(told(&confirmed), message("order_confirmed", thanks));
        let sorry = "We are sorry, alice: your order was cancelled (declined).";
        assert_eq!(told(&cancelled), message("order_cancelled", sorry));
        assert_eq!(told(&paid), message("payment_completed", "We have received 0.05."));
        assert_eq!(told(&refunded), message("payment_refunded", "You have 1.00 back."));
        assert_eq!(told(&shipped), message("shipment_created", "Your parcel s1 is on its way."));
        let declined = PaymentDeclined { order_id: order_id(), customer: customer(), amount_cents: 5 };
        let created = OrderCreated { order_id: order_id(), customer: customer(), total_cents: 5, lines: vec![] };
        assert_eq!((told(&declined), told(&created)), (None, None));
    }
}
