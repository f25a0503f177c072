//! Parcels, in SQL.

use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, Db, DbError, Outbox, Tx, args};
use uuid::Uuid;

use crate::bus;
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::events::{ShipmentCreated, publish};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/shipping/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
    outbox: Outbox<D>,
}

#[derive(Clone, Debug)]
pub struct Shipment {
    pub id: String,
    pub order_id: String,
    pub customer: String,
    pub created_ms: i64,
}

/// One of the two conditions for a parcel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Half {
    Confirmed,
    Paid,
}

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        let db = db::open(home, "shipping", MIGRATIONS).await?;
        Ok(Self { outbox: bus::outbox(&db), db })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub fn outbox(&self) -> &Outbox<D> {
        &self.outbox
    }

    /// Records one condition, and creates the parcel when both are met: in either order, and once.
    pub async fn record(&self, tx: &mut Tx<D>, half: Half, order_id: &str, customer: &str) -> Result<(), OutboxError> {
        let sql = match half {
            Half::Confirmed => {
                "INSERT INTO orders_heard_of (order_id, confirmed_ms) VALUES ($1, $2)
                 ON CONFLICT (order_id) DO UPDATE SET
                     confirmed_ms = COALESCE(orders_heard_of.confirmed_ms, excluded.confirmed_ms)
                 RETURNING confirmed_ms, paid_ms"
            }
            Half::Paid => {
                "INSERT INTO orders_heard_of (order_id, paid_ms) VALUES ($1, $2)
                 ON CONFLICT (order_id) DO UPDATE SET paid_ms = COALESCE(orders_heard_of.paid_ms, excluded.paid_ms)
                 RETURNING confirmed_ms, paid_ms"
            }
        };
        let halves: Option<(Option<i64>, Option<i64>)> = tx.row(sql, args![order_id, now_ms()]).await?;
        let Some((Some(_), Some(_))) = halves else { return Ok(()) };
        let id = Uuid::now_v7().to_string();
        let sql = "INSERT INTO shipments (id, order_id, customer, created_ms) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (order_id) DO NOTHING";
        if tx.execute(sql, args![&id, order_id, customer, now_ms()]).await? == 1 {
            let order_id = order_id.to_owned();
            publish(&self.outbox, tx, &ShipmentCreated { order_id, shipment_id: id }).await?;
        }
        Ok(())
    }

    pub async fn shipment(&self, order_id: &str) -> Result<Option<Shipment>, DbError> {
        let sql = "SELECT id, order_id, customer, created_ms FROM shipments WHERE order_id = $1";
        let row: Option<(String, String, String, i64)> = self.db.row(sql, args![order_id]).await?;
        Ok(row.map(|(id, order_id, customer, created_ms)| Shipment { id, order_id, customer, created_ms }))
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Sqlite;

    use super::*;
    use crate::db::Files;

    async fn record(store: &Store<Sqlite>, half: Half) {
        let mut tx = store.db.begin().await.unwrap();
        store.record(&mut tx, half, "o1", "alice").await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_parcel_needs_both_halves_in_either_order_and_goes_out_once() {
        for (first, second) in [(Half::Confirmed, Half::Paid), (Half::Paid, Half::Confirmed)] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&Files(dir.path().to_owned())).await.unwrap();
            record(&store, first).await;
            record(&store, first).await;
            assert!(store.shipment("o1").await.unwrap().is_none(), "{first:?} alone");
            record(&store, second).await;
            let parcel = store.shipment("o1").await.unwrap().unwrap();
            record(&store, second).await;
            assert_eq!(store.shipment("o1").await.unwrap().unwrap().id, parcel.id);
            assert_eq!(store.outbox.backlog().await.unwrap().unsent, 1);
        }
    }

    #[tokio::test]
    async fn one_half_of_each_of_two_orders_is_no_parcel() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Files(dir.path().to_owned())).await.unwrap();
        for (half, order) in [(Half::Confirmed, "o1"), (Half::Paid, "o2")] {
            let mut tx = store.db.begin().await.unwrap();
            store.record(&mut tx, half, order, "bob").await.unwrap();
            tx.commit().await.unwrap();
        }
        assert!(store.shipment("o1").await.unwrap().is_none() && store.shipment("o2").await.unwrap().is_none());
        record(&store, Half::Paid).await;
        let Shipment { order_id, customer, .. } = store.shipment("o1").await.unwrap().unwrap();
        assert_eq!((order_id.as_str(), customer.as_str()), ("o1", "alice"));
        assert!(store.shipment("o2").await.unwrap().is_none());
    }
}
