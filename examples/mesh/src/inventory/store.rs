//! Stock, in SQL.
//!
//! Every piece is in exactly one place: `on_hand`, `reserved` or `sold`, and their sum never changes. The three rules
//! of the payment store hold here too: the key is the decision, the release of something unknown is remembered, and
//! pieces move only on a change of state.

use std::path::Path;

use sqlx::QueryBuilder;

use super::domain::{Line, Product, ReserveOutcome};
use crate::clock::now_ms;
use crate::db::{self, Db, MigrationFile, Pool, Transaction};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/inventory/0001_init.sql"))];

#[derive(Clone, Debug)]
pub struct Store {
    db: Pool,
}

impl Store {
    pub async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        Ok(Self { db: db::open(path, MIGRATIONS).await? })
    }

    pub async fn close(&self) {
        self.db.close().await;
    }

    pub fn db(&self) -> &Pool {
        &self.db
    }

    /// The products with these SKUs, or all.
    pub async fn products(&self, skus: &[String]) -> Result<Vec<Product>, sqlx::Error> {
        let mut query = QueryBuilder::<Db>::new("SELECT sku, name, price_cents, on_hand FROM products");
        if !skus.is_empty() {
            query.push(" WHERE sku IN (");
            let mut list = query.separated(", ");
            for sku in skus {
                list.push_bind(sku);
            }
            query.push(")");
        }
        query.push(" ORDER BY sku");
        let rows: Vec<(String, String, i64, i64)> = query.build_query_as().fetch_all(&self.db).await?;
        Ok(rows
            .into_iter()
            .map(|(sku, name, price_cents, on_hand)| Product { sku, name, price_cents, on_hand })
            .collect())
    }

    /// Sets the lines aside, all or none, once per key.
    pub async fn reserve(&self, key: &str, order_id: &str, lines: &[Line]) -> Result<ReserveOutcome, sqlx::Error> {
        let mut tx = self.db.begin().await?;
        if !claim(&mut tx, key, order_id, "reserved").await? {
            return decided(tx, key).await;
        }
        for line in lines {
            let taken: Option<(i64,)> = sqlx::query_as(
                "UPDATE products SET on_hand = on_hand - $1, reserved = reserved + $1
                 WHERE sku = $2 AND on_hand >= $1 RETURNING on_hand",
            )
            .bind(line.quantity)
            .bind(&line.sku)
            .fetch_optional(&mut *tx)
            .await?;
            if taken.is_none() {
                // Undo the lines before this one, and keep the refusal: a retry must get the same answer.
                tx.rollback().await?;
                return self.refuse(key, order_id).await;
            }
            sqlx::query("INSERT INTO reservation_lines (key, sku, quantity) VALUES ($1, $2, $3)")
                .bind(key)
                .bind(&line.sku)
                .bind(line.quantity)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(ReserveOutcome::Reserved)
    }

    /// Turns a reservation into a sale. False if there is no reservation to sell.
    pub async fn confirm(&self, key: &str) -> Result<bool, sqlx::Error> {
        let mut tx = self.db.begin().await?;
        let sold = if change(&mut tx, key, "reserved", "sold").await? {
            shift(&mut tx, key, "reserved = reserved - lines.quantity, sold = sold + lines.quantity").await?;
            true
        } else {
            state(&mut tx, key).await?.as_deref() == Some("sold")
        };
        tx.commit().await?;
        Ok(sold)
    }

    /// Puts the pieces back, wherever they are, once per key. A key that is not there yet is revoked.
    pub async fn release(&self, key: &str, order_id: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.db.begin().await?;
        if claim(&mut tx, key, order_id, "revoked").await? {
            // Nothing to put back: the tombstone is the effect.
        } else if change(&mut tx, key, "reserved", "released").await? {
            shift(&mut tx, key, "reserved = reserved - lines.quantity, on_hand = on_hand + lines.quantity").await?;
        } else if change(&mut tx, key, "sold", "released").await? {
            shift(&mut tx, key, "sold = sold - lines.quantity, on_hand = on_hand + lines.quantity").await?;
        }
        tx.commit().await
    }

    /// What became of an order's reservation.
    pub async fn reservation(&self, order_id: &str) -> Result<Option<String>, sqlx::Error> {
        let row: Option<(String,)> =
            sqlx::query_as("SELECT state FROM reservations WHERE order_id = $1 ORDER BY created_ms DESC LIMIT 1")
                .bind(order_id)
                .fetch_optional(&self.db)
                .await?;
        Ok(row.map(|(state,)| state))
    }

    /// Records that a reservation was refused, unless someone has decided meanwhile.
    async fn refuse(&self, key: &str, order_id: &str) -> Result<ReserveOutcome, sqlx::Error> {
        let mut tx = self.db.begin().await?;
        if !claim(&mut tx, key, order_id, "out_of_stock").await? {
            return decided(tx, key).await;
        }
        tx.commit().await?;
        Ok(ReserveOutcome::OutOfStock)
    }
}

/// Inserts the key with a first decision. False if someone has decided before.
async fn claim(tx: &mut Transaction, key: &str, order_id: &str, state: &str) -> Result<bool, sqlx::Error> {
    let claimed: Option<(String,)> = sqlx::query_as(
        "INSERT INTO reservations (key, order_id, state, created_ms, updated_ms)
         VALUES ($1, $2, $3, $4, $4) ON CONFLICT (key) DO NOTHING RETURNING key",
    )
    .bind(key)
    .bind(order_id)
    .bind(state)
    .bind(now_ms())
    .fetch_optional(&mut **tx)
    .await?;
    Ok(claimed.is_some())
}

/// Moves a reservation from one state to another. False if it was not in the first.
async fn change(tx: &mut Transaction, key: &str, from: &str, to: &str) -> Result<bool, sqlx::Error> {
    let changed: Option<(String,)> = sqlx::query_as(
        "UPDATE reservations SET state = $1, updated_ms = $2 WHERE key = $3 AND state = $4 RETURNING key",
    )
    .bind(to)
    .bind(now_ms())
    .bind(key)
    .bind(from)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(changed.is_some())
}

/// Moves the pieces of every line of a reservation. `assignments` is one of the literals above, never input.
async fn shift(tx: &mut Transaction, key: &str, assignments: &'static str) -> Result<(), sqlx::Error> {
    QueryBuilder::<Db>::new("UPDATE products SET ")
        .push(assignments)
        .push(" FROM reservation_lines AS lines WHERE lines.sku = products.sku AND lines.key = ")
        .push_bind(key)
        .build()
        .execute(&mut **tx)
        .await
        .map(drop)
}

async fn state(tx: &mut Transaction, key: &str) -> Result<Option<String>, sqlx::Error> {
    let row: Option<(String,)> =
        sqlx::query_as("SELECT state FROM reservations WHERE key = $1").bind(key).fetch_optional(&mut **tx).await?;
    Ok(row.map(|(state,)| state))
}

/// The answer that the first attempt with this key got.
async fn decided(mut tx: Transaction, key: &str) -> Result<ReserveOutcome, sqlx::Error> {
    let state = state(&mut tx, key).await?;
    tx.rollback().await?;
    Ok(match state.as_deref() {
        Some("reserved" | "sold") => ReserveOutcome::Reserved,
        Some("out_of_stock") => ReserveOutcome::OutOfStock,
        _ => ReserveOutcome::Revoked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(&dir.path().join("inventory.db")).await.unwrap(), dir)
    }

    fn line(sku: &str, quantity: i64) -> Line {
        Line { sku: sku.into(), quantity }
    }

    /// on hand, reserved, sold
    async fn shelf(store: &Store, sku: &str) -> (i64, i64, i64) {
        sqlx::query_as("SELECT on_hand, reserved, sold FROM products WHERE sku = $1")
            .bind(sku)
            .fetch_one(&store.db)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_repeated_reservation_takes_the_pieces_once() {
        let (store, _dir) = store().await;
        for _ in 0..3 {
            let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2), line("mug", 1)]).await.unwrap();
            assert_eq!(outcome, ReserveOutcome::Reserved);
        }
        assert_eq!(shelf(&store, "tea").await, (999_998, 2, 0));
        assert_eq!(shelf(&store, "mug").await, (999_999, 1, 0));
    }

    #[tokio::test]
    async fn a_refused_line_leaves_the_other_lines_on_the_shelf() {
        let (store, _dir) = store().await;
        for _ in 0..2 {
            let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2), line("lamp", 1)]).await.unwrap();
            assert_eq!(outcome, ReserveOutcome::OutOfStock);
        }
        assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
    }

    #[tokio::test]
    async fn a_sale_can_still_be_undone_and_only_once() {
        let (store, _dir) = store().await;
        store.reserve("o1:reserve", "o1", &[line("tea", 2)]).await.unwrap();
        assert!(store.confirm("o1:reserve").await.unwrap());
        assert!(store.confirm("o1:reserve").await.unwrap());
        assert_eq!(shelf(&store, "tea").await, (999_998, 0, 2));
        for _ in 0..2 {
            store.release("o1:reserve", "o1").await.unwrap();
            assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
        }
        assert!(!store.confirm("o1:reserve").await.unwrap());
    }

    #[tokio::test]
    async fn a_reservation_that_comes_after_its_release_takes_nothing() {
        let (store, _dir) = store().await;
        store.release("o1:reserve", "o1").await.unwrap();
        let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2)]).await.unwrap();
        assert_eq!(outcome, ReserveOutcome::Revoked);
        assert!(!store.confirm("o1:reserve").await.unwrap());
        assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
    }

    #[tokio::test]
    async fn products_are_found_by_sku() {
        let (store, _dir) = store().await;
        let found = store.products(&["tea".into(), "unobtainium".into()]).await.unwrap();
        assert_eq!(found.iter().map(|product| product.sku.as_str()).collect::<Vec<_>>(), ["tea"]);
        assert_eq!(store.products(&[]).await.unwrap().len(), 5);
    }
}
