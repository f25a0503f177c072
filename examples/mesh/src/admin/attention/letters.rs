//! The events that a service, as a consumer group, could not handle.

use std::sync::Arc;

use buttress_durable::EventBus;
use buttress_durable::bus::DeadLettered;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Action, Item, Kind, Queue, QueueError};

#[derive(Debug)]
pub(crate) struct Letters {
    pub(crate) bus: Arc<dyn EventBus>,
    pub(crate) group: &'static str,
    pub(crate) topics: &'static [&'static str],
}

impl Queue for Letters {
    fn kind(&self) -> Kind {
        Kind::DeadLetters
    }

    fn list(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Item>, QueueError>> {
        async move {
            let mut items = Vec::new();
            for topic in self.topics {
                let letters = self.bus.dead_letters(self.group, topic, limit).await?;
                items.extend(letters.into_iter().map(item));
            }
            items.sort_by_key(|item| item.since_ms);
            items.truncate(limit as usize);
            Ok(items)
        }
        .boxed()
    }

    fn act<'a>(&'a self, id: &'a str, action: Action, _: &'a str) -> BoxFuture<'a, Result<(), QueueError>> {
        async move {
            let (topic, partition, offset) =
                parse(id).ok_or_else(|| format!("{id:?} is not the id of a dead letter"))?;
            match action {
                Action::Discard => self.bus.discard(self.group, topic, partition, offset).await?,
                _ => self.bus.redrive(self.group, topic, partition, offset).await?,
            }
            Ok(())
        }
        .boxed()
    }
}

fn item(letter: DeadLettered) -> Item {
    let DeadLettered { event, partition, offset, cause, .. } = letter;
    Item {
        id: format!("{}:{partition}:{offset}", cause.topic),
        name: cause.topic,
        at: cause.group,
        order: event.map_or_else(String::new, |event| event.key().to_owned()),
        error: cause.error,
        since_ms: cause.failed_at.as_millis(),
    }
}

fn parse(id: &str) -> Option<(&str, i64, i64)> {
    let (rest, offset) = id.rsplit_once(':')?;
    let (topic, partition) = rest.rsplit_once(':')?;
    Some((topic, partition.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_dead_letter_is_where_it_is() {
        assert_eq!(parse("OrderConfirmed:3:17"), Some(("OrderConfirmed", 3, 17)));
        for wrong in ["", "OrderConfirmed", "OrderConfirmed:3", "OrderConfirmed:x:1", "OrderConfirmed:1:x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
