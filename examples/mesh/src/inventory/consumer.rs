//! Inventory's reaction to the end of an order, which arrives as an event and not as a call.

use buttress_durable::bus::HandlerError;
use buttress_durable::{Database, DomainEvent, Tx};

use super::domain::Shipped;
use super::store::Store;
use crate::bus::Consumer;
use crate::events::{Event, OrderCancelled, OrderConfirmed};

impl<D: Database> Consumer<D> for Store<D> {
    async fn handle(&self, tx: &mut Tx<D>, event: &DomainEvent) -> Result<(), HandlerError> {
        match event.event_type() {
            OrderConfirmed::TYPE => {
                let order_id = OrderConfirmed::from_domain(event)?.order_id;
                // Stock is reserved before an order is confirmed, and never released after that. If
                // nothing is reserved, an operator must look at it.
                if self.ship(tx, &order_id).await? == Shipped::NothingReserved {
                    return Err(HandlerError::reject(format!(
                        "order {order_id} is confirmed, and nothing is reserved for it"
                    )));
                }
            }
            // Usually a no-op, because the saga's compensation was faster.
            OrderCancelled::TYPE => self.put_back(tx, &OrderCancelled::from_domain(event)?.order_id).await?,
            _ => {}
        }
        Ok(())
    }
}
