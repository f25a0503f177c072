//! A parcel when the order is confirmed *and* paid for. The two events come from two services, on two topics: nobody promises
//! which is heard first.

use std::sync::Arc;

use buttress_durable::bus::{Handler, HandlerError};
use buttress_durable::{Database, DomainEvent, Inbox, Tx};
use futures_util::FutureExt;

use super::store::{Half, Store};
use crate::events::{Event, OrderConfirmed, PaymentCompleted};

pub(super) fn handler<D: Database>(store: Arc<Store<D>>) -> impl Handler {
    let inbox = Inbox::new(store.db().clone(), "shipping");
    inbox.handler(move |tx, event| {
        let store = store.clone();
        async move { handle(&store, tx, event).await }.boxed()
    })
}

async fn handle<D: Database>(store: &Store<D>, tx: &mut Tx<D>, event: &DomainEvent) -> Result<(), HandlerError> {
    match event.event_type() {
        OrderConfirmed::TYPE => {
            let OrderConfirmed { order_id, customer, .. } = OrderConfirmed::from_domain(event)?;
            store.heard(tx, Half::Confirmed, &order_id, &customer).await?;
        }
        PaymentCompleted::TYPE => {
            let PaymentCompleted { order_id, customer, .. } = PaymentCompleted::from_domain(event)?;
            store.heard(tx, Half::Paid, &order_id, &customer).await?;
        }
        _ => {}
    }
    Ok(())
}
