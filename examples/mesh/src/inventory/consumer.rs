//! What inventory does when an order has ended: nobody has to call it.

use std::sync::Arc;

use buttress_durable::bus::{Handler, HandlerError};
use buttress_durable::{Database, DomainEvent, Inbox, Tx};
use futures_util::FutureExt;

use super::domain::Shipped;
use super::store::Store;
use crate::events::{Event, OrderCancelled, OrderConfirmed};

pub(super) fn handler<D: Database>(store: Arc<Store<D>>) -> impl Handler {
    let inbox = Inbox::new(store.db().clone(), "inventory");
    inbox.handler(move |tx, event| {
        let store = store.clone();
        async move { handle(&store, tx, event).await }.boxed()
    })
}

async fn handle<D: Database>(store: &Store<D>, tx: &mut Tx<D>, event: &DomainEvent) -> Result<(), HandlerError> {
    match event.event_type() {
        OrderConfirmed::TYPE => {
            let order_id = OrderConfirmed::from_domain(event)?.order_id;
            // An order is confirmed after its stock was reserved, and never undone after that. If not, somebody should look.
            if store.ship(tx, &order_id).await? == Shipped::NothingReserved {
                return Err(HandlerError::reject(format!(
                    "order {order_id} is confirmed, and nothing is reserved for it"
                )));
            }
        }
        // Mostly the saga's compensation was faster, and nothing is left to do.
        OrderCancelled::TYPE => store.put_back(tx, &OrderCancelled::from_domain(event)?.order_id).await?,
        _ => {}
    }
    Ok(())
}
