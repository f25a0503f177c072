//! Reads the databases for the audit.

use std::collections::{HashMap, HashSet};

use buttress_durable::{Database, Db, DbError, args};
use serde::Deserialize;

use crate::db::{EVENTS, Home};
use crate::launch::Name;

pub(super) struct Order {
    pub(super) state: String,
    pub(super) total: i64,
}

pub(super) struct Entry {
    pub(super) order: String,
    pub(super) customer: String,
    pub(super) cents: i64,
}

/// An event as its outbox stores it.
#[derive(Deserialize)]
pub(super) struct OutboxEvent {
    #[serde(rename = "event_id")]
    pub(super) id: String,
    #[serde(rename = "event_type")]
    pub(super) kind: String,
    #[serde(rename = "aggregate_id")]
    pub(super) order: String,
    #[serde(skip)]
    pub(super) sent: bool,
}

/// Sku, initial, on hand, reserved, sold.
pub(super) type Product = (String, i64, i64, i64, i64);

pub(super) struct Facts {
    pub(super) orders: HashMap<String, Order>,
    /// Quantity of each product on confirmed orders.
    pub(super) ordered: HashMap<String, i64>,
    /// Id, status.
    pub(super) sagas: Vec<(String, String)>,
    pub(super) products: Vec<Product>,
    /// Id, opening, balance.
    pub(super) accounts: Vec<(String, i64, i64)>,
    pub(super) ledger: Vec<Entry>,
    /// The order id of each parcel.
    pub(super) shipments: Vec<String>,
    /// Order id, kind.
    pub(super) notifications: Vec<(String, String)>,
    pub(super) events: Vec<OutboxEvent>,
    /// Ids of the events that each listener has handled.
    pub(super) handled: HashMap<String, HashSet<String>>,
    /// Topic and number of dead letters.
    pub(super) dead: Vec<(String, usize)>,
}

/// Connections to the databases of all services, used for reading only.
pub(super) struct Records<D: Database> {
    order: Db<D>,
    payment: Db<D>,
    inventory: Db<D>,
    shipping: Db<D>,
    notification: Db<D>,
    /// The embedded log, if it is the bus.
    events: Option<Db<D>>,
}

impl<D: Database> Records<D> {
    pub(super) async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        Ok(Self {
            order: home.look(Name::Order.as_str()).await?,
            payment: home.look(Name::Payment.as_str()).await?,
            inventory: home.look(Name::Inventory.as_str()).await?,
            shipping: home.look(Name::Shipping.as_str()).await?,
            notification: home.look(Name::Notification.as_str()).await?,
            events: home.look(EVENTS).await.ok(),
        })
    }

    pub(super) async fn close(self) {
        for db in self.publishers() {
            db.pool().close().await;
        }
        if let Some(events) = &self.events {
            events.pool().close().await;
        }
    }

    /// Something still in progress, by cheap counts.
    pub(super) async fn under_way(&self) -> Result<Option<String>, DbError> {
        let pending = "SELECT COUNT(*) FROM orders WHERE state = 'pending'";
        let running = "SELECT COUNT(*) FROM buttress_saga WHERE status IN ('running', 'compensating')";
        let unsent = "SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NULL";
        let questions = [(&self.order, pending, "pending orders"), (&self.order, running, "sagas running")];
        let outboxes = self.publishers().map(|db| (db, unsent, "events in an outbox"));
        for (db, sql, what) in questions.into_iter().chain(outboxes) {
            match db.row::<(i64,)>(sql, args![]).await? {
                Some((0,)) | None => {}
                Some((count,)) => return Ok(Some(format!("{count} {what}"))),
            }
        }
        Ok(None)
    }

    fn publishers(&self) -> [&Db<D>; 5] {
        [&self.order, &self.payment, &self.inventory, &self.shipping, &self.notification]
    }
}

impl Facts {
    pub(super) async fn read<D: Database>(records: &Records<D>) -> Result<Self, DbError> {
        let Records { order, payment, inventory, shipping, notification, events } = records;
        let orders: Vec<(String, String, i64)> =
            order.rows("SELECT id, state, total_cents FROM orders", args![]).await?;
        let sql = "SELECT sku, CAST(SUM(quantity) AS BIGINT) FROM order_lines JOIN orders ON orders.id = order_id
                   WHERE state = 'confirmed' GROUP BY sku";
        let ordered: Vec<(String, i64)> = order.rows(sql, args![]).await?;
        let sql = "SELECT sku, initial, on_hand, reserved, sold FROM products";
        let products = inventory.rows(sql, args![]).await?;
        let accounts = payment.rows("SELECT id, opening_cents, balance_cents FROM accounts", args![]).await?;
        let ledger: Vec<(String, String, i64)> =
            payment.rows("SELECT order_id, customer, amount_cents FROM ledger", args![]).await?;
        let shipments: Vec<(String,)> = shipping.rows("SELECT order_id FROM shipments", args![]).await?;
        let mut published = Vec::new();
        let mut handled: HashMap<String, HashSet<String>> = HashMap::new();
        for db in records.publishers() {
            // Read the inbox before the outbox. A handler writes both in one transaction, so the
            // events that followed from a handled event are visible in the outbox.
            for (consumer, id) in db.rows("SELECT consumer, event_id FROM buttress_inbox", args![]).await? {
                handled.entry(consumer).or_default().insert(id);
            }
            let rows: Vec<(Vec<u8>, Option<i64>)> =
                db.rows("SELECT payload, sent_at FROM buttress_outbox", args![]).await?;
            published.extend(rows.iter().filter_map(|(payload, sent)| {
                let event: OutboxEvent = serde_json::from_slice(payload).ok()?;
                Some(OutboxEvent { sent: sent.is_some(), ..event })
            }));
        }
        let dead = "SELECT topic, COUNT(*) FROM buttress_log WHERE topic LIKE 'dead.%' GROUP BY topic";
        let dead = match events {
            Some(log) => log.rows::<(String, i64)>(dead, args![]).await?,
            None => Vec::new(),
        };
        let dead = dead.into_iter().map(|(topic, count)| (topic, usize::try_from(count).unwrap_or(0))).collect();
        Ok(Self {
            orders: orders.into_iter().map(|(id, state, total)| (id, Order { state, total })).collect(),
            ordered: ordered.into_iter().collect(),
            sagas: order.rows("SELECT COALESCE(own_id, id), status FROM buttress_saga", args![]).await?,
            products,
            accounts,
            ledger: ledger.into_iter().map(|(order, customer, cents)| Entry { order, customer, cents }).collect(),
            shipments: shipments.into_iter().map(|(order,)| order).collect(),
            notifications: notification.rows("SELECT order_id, kind FROM notifications", args![]).await?,
            events: published,
            handled,
            dead,
        })
    }
}
