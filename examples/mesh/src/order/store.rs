//! Orders, in SQL.
//!
//! An order ends once: every state change names the state it starts from. The saga's local steps
//! run in the transaction that records their end, so that an order and its saga cannot disagree.

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::{Database, Db, DbError, Tx, args};

use super::domain::{Failure, NewOrder, Order, State, Unknown};
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::input::{Customer, Key};

const MIGRATIONS: &[MigrationFile] = &[
    (1, "init", include_str!("../../migrations/order/0001_init.sql")),
    (2, "keys_of_customers", include_str!("../../migrations/order/0002_keys_of_customers.sql")),
];

/// How long an idempotency key is remembered. Longer than any client repeats a request; after that
/// the same key makes a new order.
pub(super) const KEY_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How often expired keys are removed, and how many in one statement.
const PURGE_EVERY: Duration = Duration::from_secs(10 * 60);
const PURGE_BITE: u32 = 500;

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

    /// Returns the id of the order that its customer placed with this key, and its fingerprint. A
    /// key that has expired is removed, and then there is none.
    pub(super) async fn order_by_key(&self, key: &ScopedKey) -> Result<Option<(String, String)>, StoreError> {
        let sql = "SELECT id, fingerprint, created_ms FROM orders
                   WHERE idempotency_key = $1 OR (idempotency_key = $2 AND customer = $3)
                   ORDER BY created_ms DESC LIMIT 1";
        let key = args![&key.scoped, key.plain.as_deref(), &key.customer];
        let found: Option<(String, String, i64)> = self.db.row(sql, key).await?;
        let Some((id, fingerprint, created_ms)) = found else { return Ok(None) };
        if created_ms >= oldest_key() {
            return Ok(Some((id, fingerprint)));
        }
        let sql = "UPDATE orders SET idempotency_key = NULL WHERE id = $1";
        let mut tx = self.db.begin().await?;
        tx.execute(sql, args![&id]).await?;
        tx.commit().await?;
        Ok(None)
    }

    /// Whether `limit` orders are stored and neither confirmed nor cancelled.
    pub(super) async fn is_full(&self, limit: u32) -> Result<bool, DbError> {
        let sql = "SELECT COUNT(*) FROM orders WHERE state = 'pending'";
        let under_way: Option<(i64,)> = self.db.row(sql, args![]).await?;
        Ok(under_way.is_some_and(|(count,)| count >= i64::from(limit)))
    }

    /// Removes some of the expired keys, and returns how many.
    async fn purge(&self) -> Result<u64, DbError> {
        let sql = "UPDATE orders SET idempotency_key = NULL WHERE id IN
                   (SELECT id FROM orders WHERE idempotency_key IS NOT NULL AND created_ms < $1
                    ORDER BY created_ms LIMIT $2)";
        let mut tx = self.db.begin().await?;
        let purged = tx.execute(sql, args![oldest_key(), i64::from(PURGE_BITE)]).await?;
        tx.commit().await?;
        Ok(purged)
    }
}

/// Removes expired keys, in bites that hold the database for a few milliseconds each, until the
/// future is dropped.
pub(super) async fn purge_keys<D: Database>(store: Arc<Store<D>>) {
    loop {
        match store.purge().await {
            Ok(purged) if purged == u64::from(PURGE_BITE) => tokio::task::yield_now().await,
            Ok(_) => tokio::time::sleep(PURGE_EVERY).await,
            Err(error) => {
                tracing::warn!(%error, "cannot remove expired idempotency keys");
                tokio::time::sleep(PURGE_EVERY).await;
            }
        }
    }
}

fn oldest_key() -> i64 {
    now_ms().saturating_sub(i64::try_from(KEY_LIFETIME.as_millis()).unwrap_or(i64::MAX))
}

/// An idempotency key together with the customer to whom it belongs.
#[derive(Clone, Debug)]
pub(super) struct ScopedKey {
    /// As it is stored.
    scoped: String,
    /// As the version before the migration stores it, which runs beside this one during a rolling
    /// update: the key alone. `None` for a key that looks like a scoped one of the customer.
    plain: Option<String>,
    customer: String,
}

impl ScopedKey {
    pub(super) fn new(customer: &Customer, key: &Key) -> Self {
        let plain = key.to_string();
        let plain = (!plain.starts_with(&format!("{customer}:"))).then_some(plain);
        Self { scoped: format!("{customer}:{key}"), plain, customer: customer.to_string() }
    }
}

/// Stores a pending order, unless the idempotency key exists or `limit` orders are under way.
/// Returns false if nothing was stored.
pub(super) async fn insert<D: Database>(
    tx: &mut Tx<D>,
    id: &str,
    new: &NewOrder,
    prices: &Prices,
    key: Option<&ScopedKey>,
    limit: u32,
) -> Result<bool, DbError> {
    // Counted in the statement that inserts. Exact on SQLite, which has one writer; on PostgreSQL
    // concurrent transactions may exceed the limit by one each, of a handful. The casts are for
    // PostgreSQL, which otherwise takes the parameters of a SELECT for texts.
    let sql =
        "INSERT INTO orders (id, customer, total_cents, state, idempotency_key, fingerprint, created_ms, updated_ms)
         SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS BIGINT), 'pending', CAST($4 AS TEXT), CAST($5 AS TEXT),
                CAST($6 AS BIGINT), CAST($6 AS BIGINT)
         WHERE (SELECT COUNT(*) FROM orders WHERE state = 'pending') < CAST($7 AS BIGINT)
             AND NOT EXISTS (SELECT 1 FROM orders
                 WHERE idempotency_key = CAST($8 AS TEXT) AND customer = CAST($2 AS TEXT))
         ON CONFLICT (idempotency_key) DO NOTHING";
    let (total, fingerprint) = (new.total_cents(prices), new.fingerprint());
    let customer = new.customer.as_str();
    let (scoped, plain) = (key.map(|key| key.scoped.as_str()), key.and_then(|key| key.plain.as_deref()));
    let order = args![id, customer, total, scoped, &fingerprint, now_ms(), i64::from(limit), plain];
    if tx.execute(sql, order).await? == 0 {
        return Ok(false);
    }
    for (line, price) in new.lines.iter().zip(prices) {
        let sql = "INSERT INTO order_lines (order_id, sku, quantity, price_cents) VALUES ($1, $2, $3, $4)";
        tx.execute(sql, args![id, line.sku.as_str(), line.quantity, *price]).await?;
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
        let lines = [("tea", 2), ("mug", 3)].map(|(sku, quantity)| NewLine { sku: sku.parse().unwrap(), quantity });
        NewOrder { customer: customer.parse().unwrap(), lines: lines.into() }
    }

    fn key(customer: &str, key: &str) -> ScopedKey {
        ScopedKey::new(&customer.parse().unwrap(), &key.parse().unwrap())
    }

    async fn place_below(store: &Store<Sqlite>, id: &str, key: Option<&ScopedKey>, limit: u32) -> bool {
        let mut tx = store.db().begin().await.unwrap();
        let stored = insert(&mut tx, id, &new("alice"), &vec![790, 1450], key, limit).await.unwrap();
        tx.commit().await.unwrap();
        stored
    }

    async fn place(store: &Store<Sqlite>, id: &str, key: Option<&ScopedKey>) -> bool {
        place_below(store, id, key, 100).await
    }

    #[tokio::test]
    async fn an_order_is_stored_with_its_lines_and_found_by_its_key() {
        let (store, _dir) = open().await;
        assert!(place(&store, "o1", Some(&key("alice", "k1"))).await);
        let sql = "SELECT sku, quantity, price_cents FROM order_lines WHERE order_id = 'o1' ORDER BY sku";
        let lines: Vec<(String, i64, i64)> = store.db().rows(sql, args![]).await.unwrap();
        assert_eq!(lines, [("mug".to_owned(), 3, 1450), ("tea".to_owned(), 2, 790)]);
        let (id, fingerprint) = store.order_by_key(&key("alice", "k1")).await.unwrap().unwrap();
        let order = store.order(&id).await.unwrap().unwrap();
        assert_eq!((order.id.as_str(), order.customer.as_str(), order.total_cents), ("o1", "alice", 5930));
        assert_eq!((order.state, order.failure), (State::Pending, None));
        assert_eq!(fingerprint, new("alice").fingerprint());
        assert!(store.order_by_key(&key("alice", "k2")).await.unwrap().is_none());
        assert!(store.order("o2").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_key_of_a_customer_is_one_order_and_no_key_is_always_a_new_one() {
        let (store, _dir) = open().await;
        assert!(place(&store, "o1", Some(&key("alice", "k1"))).await);
        assert!(!place(&store, "o2", Some(&key("alice", "k1"))).await);
        assert!(store.order("o2").await.unwrap().is_none(), "and nothing of it is stored");
        assert!(place(&store, "o3", None).await && place(&store, "o4", None).await);
        assert!(store.order_by_key(&key("bob", "k1")).await.unwrap().is_none());
        assert!(place(&store, "o5", Some(&key("bob", "k1"))).await, "another customer's key is another key");
    }

    #[tokio::test]
    async fn a_key_is_forgotten_after_a_day_and_its_order_stays() {
        let (store, _dir) = open().await;
        let age = async |id: &str, millis: i64| {
            let mut tx = store.db().begin().await.unwrap();
            let sql = "UPDATE orders SET created_ms = $1 WHERE id = $2";
            tx.execute(sql, args![now_ms() - millis, id]).await.unwrap();
            tx.commit().await.unwrap();
        };
        let day = i64::try_from(KEY_LIFETIME.as_millis()).unwrap();
        for id in ["o1", "o2", "o3"] {
            place(&store, id, Some(&key("alice", id))).await;
        }
        age("o1", day + 1000).await;
        age("o2", day + 1000).await;
        age("o3", day - 60_000).await;
        assert!(store.order_by_key(&key("alice", "o1")).await.unwrap().is_none());
        assert!(place(&store, "o4", Some(&key("alice", "o1"))).await, "the key can be used again");
        assert_eq!((store.purge().await.unwrap(), store.purge().await.unwrap()), (1, 0));
        assert!(store.order_by_key(&key("alice", "o3")).await.unwrap().is_some());
        for id in ["o1", "o2", "o3", "o4"] {
            assert!(store.order(id).await.unwrap().is_some(), "{id}");
        }
    }

    #[tokio::test]
    async fn no_order_is_stored_while_as_many_as_allowed_are_under_way() {
        let (store, _dir) = open().await;
        assert!(place_below(&store, "o1", None, 2).await && !store.is_full(2).await.unwrap());
        assert!(place_below(&store, "o2", None, 2).await && store.is_full(2).await.unwrap());
        assert!(!place_below(&store, "o3", None, 2).await);
        assert!(store.order("o3").await.unwrap().is_none());
        let mut tx = store.db().begin().await.unwrap();
        assert!(confirm(&mut tx, "o1").await.unwrap());
        tx.commit().await.unwrap();
        assert!(!store.is_full(2).await.unwrap() && place_below(&store, "o3", None, 2).await);
    }

    #[tokio::test]
    async fn keys_from_before_the_migration_belong_to_their_customers() {
        let dir = tempfile::tempdir().unwrap();
        let home = Files(dir.path().to_owned());
        let db = db::open(&home, "order", &MIGRATIONS[..1]).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        let sql = "INSERT INTO orders VALUES ('o1', 'alice', 1, 'confirmed', NULL, 'k1', 'f', $1, $1)";
        tx.execute(sql, args![now_ms()]).await.unwrap();
        tx.commit().await.unwrap();
        db.pool().close().await;
        let store = Store::open(&home).await.unwrap();
        let found = store.order_by_key(&key("alice", "k1")).await.unwrap();
        assert_eq!(found, Some(("o1".to_owned(), "f".to_owned())));
        assert!(store.order_by_key(&key("bob", "k1")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_key_that_the_old_version_stores_after_the_migration_is_the_customers_too() {
        let (store, _dir) = open().await;
        let old = async |id: &str, customer: &str, key: &str, created_ms: i64| {
            let mut tx = store.db().begin().await.unwrap();
            let sql = "INSERT INTO orders VALUES ($1, $2, 1, 'confirmed', NULL, $3, 'f', $4, $4)";
            tx.execute(sql, args![id, customer, key, created_ms]).await.unwrap();
            tx.commit().await.unwrap();
        };
        old("o1", "alice", "k1", now_ms()).await;
        let found = store.order_by_key(&key("alice", "k1")).await.unwrap();
        assert_eq!(found, Some(("o1".to_owned(), "f".to_owned())));
        assert!(!place(&store, "o2", Some(&key("alice", "k1"))).await, "the repeat makes no second order");
        assert!(store.order_by_key(&key("bob", "k1")).await.unwrap().is_none());

        let day = i64::try_from(KEY_LIFETIME.as_millis()).unwrap();
        old("o3", "alice", "k3", now_ms() - day - 1_000).await;
        assert!(store.order_by_key(&key("alice", "k3")).await.unwrap().is_none(), "it lives as long as any key");
        assert!(place(&store, "o4", Some(&key("alice", "k3"))).await);
        // A key of this version is not found under another key that looks like it.
        assert!(place(&store, "o5", Some(&key("alice", "k5"))).await);
        assert!(store.order_by_key(&key("alice", "alice:k5")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_order_ends_once() {
        let (store, _dir) = open().await;
        for id in ["o1", "o2", "o3"] {
            place(&store, id, None).await;
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
