//! What inventory does when an order has ended: nobody has to call it.

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
                // An order is confirmed after its stock was reserved, and never undone after that. If not, somebody should look.
                if self.ship(tx, &order_id).await? == Shipped::NothingReserved {
                    return Err(HandlerError::reject(format!(
                        "order {order_id} is confirmed, and nothing is reserved for it"
                    )));
                }
            }
            // Mostly the saga's compensation was faster, and nothing is left to do.
            OrderCancelled::TYPE => self.put_back(tx, &OrderCancelled::from_domain(event)?.order_id).await?,
            _ => {}
        }
        Ok(())
    }
}
