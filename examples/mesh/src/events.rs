//! The events of the shop: the contract between services that do not call each other.
//!
//! An event's type is its topic. Its key is always the order's id, so that what happened to one order is handled in the order
//! in which it happened. A field may be added at any time: readers ignore what they do not know. Anything else is a new
//! version, and a reader that does not know it refuses the event, visibly, rather than guess.

use buttress_durable::bus::HandlerError;
use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, DomainEvent, EventError, Outbox, Timestamp, Tx};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::now_ms;
use crate::telemetry::current_trace;

/// What can be told of an order.
pub trait Event: DeserializeOwned + Serialize {
    /// The event's type, and the topic.
    const TYPE: &'static str;
    /// The version of the fields below.
    const VERSION: u32;

    /// Whom it happened to, and the key.
    fn order_id(&self) -> &str;

    /// As the outbox and the bus know it.
    fn to_domain(&self) -> Result<DomainEvent, EventError> {
        let event = DomainEvent::new(Self::TYPE, self.order_id(), Timestamp::from_millis(now_ms()), self)?;
        let event = event.with_schema_version(Self::VERSION);
        Ok(match current_trace() {
            Some(trace) => event.with_trace(trace),
            None => event,
        })
    }

    /// Reads an event of this type.
    fn from_domain(event: &DomainEvent) -> Result<Self, HandlerError> {
        if event.schema_version() > Self::VERSION {
            let (known, theirs) = (Self::VERSION, event.schema_version());
            return Err(HandlerError::reject(format!("{} of version {theirs}; known is {known}", Self::TYPE)));
        }
        event.decode().map_err(HandlerError::reject)
    }
}

/// Publishes an event with the transaction, or not at all. Last in the transaction: see [`Outbox::append`].
pub async fn publish<D: Database>(outbox: &Outbox<D>, tx: &mut Tx<D>, event: &impl Event) -> Result<(), OutboxError> {
    outbox.append(tx, &event.to_domain()?).await
}

/// So many pieces of one product.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Line {
    pub sku: String,
    pub quantity: i64,
}

/// Events with their version, and the list of all of them.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident v $version:literal { $($field:ident: $type:ty),* $(,)? })+) => {
        /// Every type of event there is.
        pub const ALL: &[&str] = &[$(stringify!($name)),+];

        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Deserialize, Serialize)]
            pub struct $name {
                pub order_id: String,
                $(pub $field: $type),*
            }

            impl Event for $name {
                const TYPE: &'static str = stringify!($name);
                const VERSION: u32 = $version;

                fn order_id(&self) -> &str {
                    &self.order_id
                }
            }
        )+
    };
}

events! {
    /// order: stored, and its saga has begun.
    OrderCreated v 1 { customer: String, total_cents: i64, lines: Vec<Line> }
    /// order: paid for and promised.
    OrderConfirmed v 1 { customer: String, total_cents: i64 }
    /// order: failed, and whatever was done is undone.
    OrderCancelled v 1 { customer: String, failure: String }
    /// inventory: the pieces are set aside.
    InventoryReserved v 1 { lines: Vec<Line> }
    /// inventory: at least one line cannot be met.
    InventoryRejected v 1 {}
    /// inventory: the pieces are back on the shelf.
    InventoryReleased v 1 {}
    /// inventory: the pieces have left the shelf for good.
    InventoryShipped v 1 {}
    /// payment: the money is taken.
    PaymentCompleted v 1 { customer: String, amount_cents: i64 }
    /// payment: the account does not cover it.
    PaymentDeclined v 1 { customer: String, amount_cents: i64 }
    /// payment: the money is given back.
    PaymentRefunded v 1 { customer: String, amount_cents: i64 }
    /// shipping: a parcel is on its way.
    ShipmentCreated v 1 { shipment_id: String }
    /// notification: the customer has been told.
    NotificationSent v 1 { kind: String }
}

/// Who listens to what. The services subscribe by it, and the audit checks by it that every event has reached everyone.
pub const LISTENERS: &[(&str, &[&str])] = &[
    ("inventory", &[OrderConfirmed::TYPE, OrderCancelled::TYPE]),
    ("shipping", &[OrderConfirmed::TYPE, PaymentCompleted::TYPE]),
    (
        "notification",
        &[
            OrderConfirmed::TYPE,
            OrderCancelled::TYPE,
            PaymentCompleted::TYPE,
            PaymentRefunded::TYPE,
            ShipmentCreated::TYPE,
        ],
    ),
];

/// What a service listens to.
pub fn topics(service: &str) -> &'static [&'static str] {
    LISTENERS.iter().find(|(name, _)| *name == service).map_or(&[], |(_, topics)| topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refunded() -> PaymentRefunded {
        PaymentRefunded { order_id: "o1".into(), customer: "alice".into(), amount_cents: 5 }
    }

    #[test]
    fn the_order_is_the_key_and_the_type_is_the_topic() {
        let event = refunded().to_domain().unwrap();
        assert_eq!((event.topic(), event.key(), event.schema_version()), ("PaymentRefunded", "o1", 1));
        assert_eq!(PaymentRefunded::from_domain(&event).unwrap().amount_cents, 5);
    }

    #[test]
    fn a_version_from_the_future_is_refused_and_a_new_field_is_not() {
        let future = refunded().to_domain().unwrap().with_schema_version(2);
        assert!(PaymentRefunded::from_domain(&future).unwrap_err().is_reject());
        let mut json = serde_json::to_value(refunded().to_domain().unwrap()).unwrap();
        json["data"]["added_later"] = true.into();
        let event: DomainEvent = serde_json::from_value(json).unwrap();
        assert!(PaymentRefunded::from_domain(&event).is_ok());
    }

    #[test]
    fn everybody_listens_to_what_somebody_tells() {
        for (service, topics) in LISTENERS {
            assert!(topics.iter().all(|topic| ALL.contains(topic)), "{service}");
        }
    }
}
