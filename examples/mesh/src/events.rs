//! The events of the shop: the contract between services that do not call each other.
//!
//! An event's type is its topic. Its key is the order id, so that the events of one order are
//! handled in the order in which they happened. A field may be added at any time: readers ignore
//! unknown fields. Any other change is a new version, and a reader postpones an event whose version
//! it does not know.

use buttress_durable::bus::HandlerError;
use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, DomainEvent, EventError, Outbox, Timestamp, Tx};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::now_ms;
use crate::telemetry::current_trace;

/// An event about an order.
pub trait Event: DeserializeOwned + Serialize {
    /// The event's type, and the topic.
    const TYPE: &'static str;
    /// The version of the fields below.
    const VERSION: u32;

    /// The order it is about, which is the key.
    fn order_id(&self) -> &str;

    /// Converts it to the form that the outbox and the bus use.
    fn to_domain(&self) -> Result<DomainEvent, EventError> {
        let event = DomainEvent::new(Self::TYPE, self.order_id(), Timestamp::from_millis(now_ms()), self)?;
        let event = event.with_schema_version(Self::VERSION);
        Ok(match current_trace() {
            Some(trace) => event.with_trace(trace),
            None => event,
        })
    }

    /// Decodes an event of this type. Postpones a newer version: during a rolling update it waits
    /// for a consumer that knows it.
    fn from_domain(event: &DomainEvent) -> Result<Self, HandlerError> {
        if event.schema_version() > Self::VERSION {
            let (known, theirs) = (Self::VERSION, event.schema_version());
            return Err(HandlerError::postpone(format!("{} of version {theirs}; known is {known}", Self::TYPE)));
        }
        event.decode().map_err(HandlerError::reject)
    }
}

/// Publishes an event when the transaction commits, and not if it is rolled back. Must be the last
/// statement of the transaction: see [`Outbox::append`].
pub async fn publish<D: Database>(outbox: &Outbox<D>, tx: &mut Tx<D>, event: &impl Event) -> Result<(), OutboxError> {
    outbox.append(tx, &event.to_domain()?).await
}

/// A quantity of one product.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Line {
    pub sku: String,
    pub quantity: i64,
}

/// Defines the event types with their versions, and the list of all types.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident v $version:literal { $($field:ident: $type:ty),* $(,)? })+) => {
        /// Every event type.
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
    /// Sent by order: the order is stored, and its saga has started.
    OrderCreated v 1 { customer: String, total_cents: i64, lines: Vec<Line> }
    /// Sent by order: paid and confirmed.
    OrderConfirmed v 1 { customer: String, total_cents: i64 }
    /// Sent by order: failed and fully compensated.
    OrderCancelled v 1 { customer: String, failure: String }
    /// Sent by inventory: the stock is reserved.
    InventoryReserved v 1 { lines: Vec<Line> }
    /// Sent by inventory: at least one line is out of stock.
    InventoryRejected v 1 {}
    /// Sent by inventory: the reservation is released.
    InventoryReleased v 1 {}
    /// Sent by inventory: the reserved stock is sold.
    InventoryShipped v 1 {}
    /// Sent by payment: the customer was charged.
    PaymentCompleted v 1 { customer: String, amount_cents: i64 }
    /// Sent by payment: the balance is too low.
    PaymentDeclined v 1 { customer: String, amount_cents: i64 }
    /// Sent by payment: the charge was refunded.
    PaymentRefunded v 1 { customer: String, amount_cents: i64 }
    /// Sent by shipping: a parcel was created.
    ShipmentCreated v 1 { shipment_id: String }
    /// Sent by notification: the customer was notified.
    NotificationSent v 1 { kind: String }
}

/// The topics of each listening service. The services subscribe by this table, and the audit uses
/// it to check that every event was handled by every listener.
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

/// The topics that a service listens to.
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
    fn a_version_from_the_future_waits_and_a_new_field_does_not() {
        let future = refunded().to_domain().unwrap().with_schema_version(2);
        assert!(PaymentRefunded::from_domain(&future).unwrap_err().is_postponed());
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
