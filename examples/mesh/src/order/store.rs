//! Orders, in SQL.
//!
//! An order ends once: every state change names the state it starts from. The saga's local steps
//! run in the transaction that records their end, so that an order and its saga cannot disagree.

use buttress_durable::{Database, Db, DbError, Tx, args};

use super::domain::{Failure, NewOrder, Order, State, Unknown};
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/order/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
}

/// Unit price of each line, in the order of the lines.
pub(super) type Prices = Vec<i64>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        Ok(Self { db: db::open(home, "order", MIGRATIONS).await? })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub async fn order(&self, id: &str) -> Result<Option<Order>, StoreError> {
        let sql = "SELECT id, customer, total_cents, state, failure FROM orders WHERE id = $1";
        self.db.row(sql, args![id]).await?.map(order).transpose()
    }

    /// Returns the order that was placed with this idempotency key, and its fingerprint.
    pub async fn order_by_key(&self, key: &str) -> Result<Option<(Order, String)>, StoreError> {
        let sql = "SELECT id, fingerprint FROM orders WHERE idempotency_key = $1";
        let Some((id, fingerprint)) = self.db.row::<(String, String)>(sql, args![key]).await? else { return Ok(None) };
        Ok(self.order(&id).await?.map(|order| (order, fingerprint)))
    }
}

/// Stores a pending order. Returns false and stores nothing if the idempotency key exists.
pub(super) async fn insert<D: Database>(
    tx: &mut Tx<D>,
    id: &str,
    new: &NewOrder,
    prices: &Prices,
    idempotency_key: Option<&str>,
) -> Result<bool, DbError> {
    let sql =
        "INSERT INTO orders (id, customer, total_cents, state, idempotency_key, fingerprint, created_ms, updated_ms)
               VALUES ($1, $2, $3, 'pending', $4, $5, $6, $6) ON CONFLICT (idempotency_key) DO NOTHING";
    let (total, fingerprint) = (new.total_cents(prices), new.fingerprint());
    if tx.execute(sql, args![id, &new.customer, total, idempotency_key, &fingerprint, now_ms()]).await? == 0 {
        return Ok(false);
    }
    for (line, price) in new.lines.iter().zip(prices) {
        let sql = "INSERT INTO order_lines (order_id, sku, quantity, price_cents) VALUES ($1, $2, $3, $4)";
        tx.execute(sql, args![id, &line.sku, line.quantity, *price]).await?;
    }
    Ok(true)
}

/// Confirms a pending order. Returns false if it has already ended.
pub(super) async fn confirm<D: Database>(tx: &mut Tx<D>, id: &str) -> Result<bool, DbError> {
    let sql = "UPDATE orders SET state = 'confirmed', updated_ms = $1 WHERE id = $2 AND state = 'pending'";
    Ok(tx.execute(sql, args![now_ms(), id]).await? == 1)
}

/// Cancels a pending order. Returns false if it has already ended.
pub(super) async fn cancel<D: Database>(tx: &mut Tx<D>, id: &str, failure: Failure) -> Result<bool, DbError> {
    let sql = "UPDATE orders SET state = 'cancelled', failure = $1, updated_ms = $2
               WHERE id = $3 AND state = 'pending'";
    Ok(tx.execute(sql, args![failure.as_str(), now_ms(), id]).await? == 1)
}

fn order(row: (String, String, i64, String, Option<String>)) -> Result<Order, StoreError> {
    let (id, customer, total_cents, state, failure) = row;
    let failure = failure.as_deref().map(str::parse).transpose()?;
    let state: State = state.parse()?;
    Ok(Order { id, customer, total_cents, state, failure })
}

#[cfg(test)]
mod tests {
    use sqlx::Sqlite;

    use super::*;
    use crate::db::Files;
    use crate::order::domain::NewLine;

    async fn open() -> (Store<Sqlite>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(&Files(dir.path().to_owned())).await.unwrap(), dir)
    }

    fn new(customer: &str) -> NewOrder {
        let lines = [("tea", 2), ("mug", 3)].map(|(sku, quantity)| NewLine { sku: sku.into(), quantity });
        NewOrder { customer: customer.into(), lines: lines.into() }
    }

    async fn place(store: &Store<Sqlite>, id: &str, customer: &str, key: Option<&str>) -> bool {
        let mut tx = store.db().begin().await.unwrap();
        let stored = insert(&mut tx, id, &new(customer), &vec![790, 1450], key).await.unwrap();
        tx.commit().await.unwrap();
        stored
    }

    #[tokio::test]
    async fn an_order_is_stored_with_its_lines_and_found_by_its_key() {
        let (store, _dir) = open().await;
        assert!(place(&store, "o1", "alice", Some("k1")).await);
        let sql = "SELECT sku, quantity, price_cents FROM order_lines WHERE order_id = 'o1' ORDER BY sku";
        let lines: Vec<(String, i64, i64)> = store.db().rows(sql, args![]).await.unwrap();
        assert_eq!(lines, [("mug".to_owned(), 3, 1450), ("tea".to_owned(), 2, 790)]);
        let (order, fingerprint) = store.order_by_key("k1").await.unwrap().unwrap();
        assert_eq!((order.id.as_str(), order.customer.as_str(), order.total_cents), ("o1", "alice", 5930));
        assert_eq!((order.state, order.failure), (State::Pending, None));
        assert_eq!(fingerprint, new("alice").fingerprint());
        assert!(store.order_by_key("k2").await.unwrap().is_none() && store.order("o2").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_key_is_one_order_and_no_key_is_always_a_new_one() {
        let (store, _dir) = open().await;
        assert!(place(&store, "o1", "alice", Some("k1")).await);
        assert!(!place(&store, "o2", "bob", Some("k1")).await);
        assert!(store.order("o2").await.unwrap().is_none(), "and nothing of it is stored");
        assert!(place(&store, "o3", "alice", None).await && place(&store, "o4", "alice", None).await);
    }

    #[tokio::test]
    async fn an_order_ends_once() {
        let (store, _dir) = open().await;
        for id in ["o1", "o2", "o3"] {
            place(&store, id, "alice", None).await;
        }
        let mut tx = store.db().begin().await.unwrap();
        assert!(confirm(&mut tx, "o1").await.unwrap());
        assert!(!confirm(&mut tx, "o1").await.unwrap() && !cancel(&mut tx, "o1", Failure::Declined).await.unwrap());
        assert!(cancel(&mut tx, "o2", Failure::Declined).await.unwrap());
        assert!(!cancel(&mut tx, "o2", Failure::OutOfStock).await.unwrap() && !confirm(&mut tx, "o2").await.unwrap());
        tx.commit().await.unwrap();
        let end = async |id| store.order(id).await.unwrap().map(|order| (order.state, order.failure));
        assert_eq!(end("o1").await, Some((State::Confirmed, None)));
        assert_eq!(end("o2").await, Some((State::Cancelled, Some(Failure::Declined))));
        assert_eq!(end("o3").await, Some((State::Pending, None)), "no other order is touched");
    }
}
