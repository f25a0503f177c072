//! The events of a service that the bus rejects.

use buttress_durable::outbox::Parked;
use buttress_durable::{Database, Outbox};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{Action, Item, Kind, Queue, QueueError};

#[derive(Debug)]
pub(crate) struct ParkedEvents<D: Database>(pub(crate) Outbox<D>);

impl<D: Database> Queue for ParkedEvents<D> {
    fn kind(&self) -> Kind {
        Kind::Parked
    }

    fn list(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Item>, QueueError>> {
        async move { Ok(self.0.parked(limit).await?.into_iter().map(item).collect()) }.boxed()
    }

    fn act<'a>(&'a self, id: &'a str, action: Action, _: &'a str) -> BoxFuture<'a, Result<(), QueueError>> {
        async move {
            let id: Uuid = id.parse().map_err(|_| format!("{id:?} is not the id of an event"))?;
            let found = match action {
                Action::Discard => self.0.discard(id).await?,
                _ => self.0.unpark(id).await?,
            };
            if found { Ok(()) } else { Err(format!("no event {id} is parked").into()) }
        }
        .boxed()
    }
}

fn item(parked: Parked) -> Item {
    let event = parked.event.as_ref();
    let text =
        |read: fn(&buttress_durable::DomainEvent) -> &str| event.map_or_else(String::new, |event| read(event).into());
    Item {
        id: parked.event_id.to_string(),
        name: text(|event| event.event_type()),
        at: String::new(),
        order: text(|event| event.key()),
        since_ms: event.map_or(0, |event| event.occurred_at().as_millis()),
        error: parked.reason,
    }
}
