//! Creates a parcel when an order is confirmed *and* paid. The two events come from two services on
//! two topics, in no guaranteed order.

use buttress_durable::bus::HandlerError;
use buttress_durable::{Database, DomainEvent, Tx};

use super::store::{Half, Store};
use crate::bus::Consumer;
use crate::events::{Event, OrderConfirmed, PaymentCompleted};

impl<D: Database> Consumer<D> for Store<D> {
    async fn handle(&self, tx: &mut Tx<D>, event: &DomainEvent) -> Result<(), HandlerError> {
        match event.event_type() {
            OrderConfirmed::TYPE => {
                let OrderConfirmed { order_id, customer, .. } = OrderConfirmed::from_domain(event)?;
                self.record(tx, Half::Confirmed, &order_id, &customer).await?;
            }
            PaymentCompleted::TYPE => {
                let PaymentCompleted { order_id, customer, .. } = PaymentCompleted::from_domain(event)?;
                self.record(tx, Half::Paid, &order_id, &customer).await?;
            }
            _ => {}
        }
        Ok(())
    }
}
