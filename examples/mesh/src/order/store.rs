//! Orders, in SQL.
//!
//! Every change of state names the state it starts from and happens only from there. So the task that works on an
//! order and the worker that undoes it cannot both have their way: whoever comes second changes nothing and is told.

use std::path::Path;
use std::time::Duration;

use super::domain::{Failure, NewOrder, Order, State, Unknown};
use crate::clock::now_ms;
use crate::db::{self, MigrationFile, Pool};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/order/0001_init.sql"))];

#[derive(Clone, Debug)]
pub struct Store {
    db: Pool,
}

/// The price of one piece, per line, in the order of the lines.
pub(super) type Prices = Vec<i64>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Db(#[from] sqlx::Error),
    #[error(transparent)]
    Unknown(#[from] Unknown),
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

    /// Stores a pending order. `None` if the idempotency key is taken: then nothing was stored.
    pub(super) async fn insert(
        &self,
        id: &str,
        new: &NewOrder,
        prices: &Prices,
        idempotency_key: Option<&str>,
    ) -> Result<Option<Order>, StoreError> {
        let total_cents = new.lines.iter().zip(prices).map(|(line, price)| line.quantity.saturating_mul(*price)).sum();
        let mut tx = self.db.begin().await?;
        let inserted: Option<(String,)> = sqlx::query_as(
            "INSERT INTO orders (id, customer, total_cents, state, idempotency_key, fingerprint, created_ms, updated_ms)
             VALUES ($1, $2, $3, 'pending', $4, $5, $6, $6) ON CONFLICT (idempotency_key) DO NOTHING RETURNING id",
        )
        .bind(id)
        .bind(&new.customer)
        .bind(total_cents)
        .bind(idempotency_key)
        .bind(new.fingerprint())
        .bind(now_ms())
        .fetch_optional(&mut *tx)
        .await?;
        if inserted.is_none() {
            return Ok(None);
        }
        for (line, price) in new.lines.iter().zip(prices) {
            sqlx::query("INSERT INTO order_lines (order_id, sku, quantity, price_cents) VALUES ($1, $2, $3, $4)")
                .bind(id)
                .bind(&line.sku)
                .bind(line.quantity)
                .bind(price)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        let customer = new.customer.clone();
        Ok(Some(Order { id: id.to_owned(), customer, total_cents, state: State::Pending, failure: None }))
    }

    pub async fn order(&self, id: &str) -> Result<Option<Order>, StoreError> {
        let row = sqlx::query_as("SELECT id, customer, total_cents, state, failure FROM orders WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.db)
            .await?;
        row.map(order).transpose()
    }

    /// The order that was placed with this idempotency key, and what was asked then.
    pub async fn order_by_key(&self, key: &str) -> Result<Option<(Order, String)>, StoreError> {
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT id, fingerprint FROM orders WHERE idempotency_key = $1")
                .bind(key)
                .fetch_optional(&self.db)
                .await?;
        let Some((id, fingerprint)) = row else { return Ok(None) };
        Ok(self.order(&id).await?.map(|order| (order, fingerprint)))
    }

    /// Takes an order one step on. False if it is no longer in `from`: somebody else is undoing it.
    pub async fn advance(&self, id: &str, from: State, to: State) -> Result<bool, StoreError> {
        let changed = sqlx::query("UPDATE orders SET state = $1, updated_ms = $2 WHERE id = $3 AND state = $4")
            .bind(to.as_str())
            .bind(now_ms())
            .bind(id)
            .bind(from.as_str())
            .execute(&self.db)
            .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// Gives an order over to be undone, unless it is finished or given over already.
    pub async fn cancel(&self, id: &str, failure: Failure) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE orders SET state = 'cancelling', failure = $1, updated_ms = $2
             WHERE id = $3 AND state IN ('pending', 'reserved', 'charged')",
        )
        .bind(failure.as_str())
        .bind(now_ms())
        .bind(id)
        .execute(&self.db)
        .await?;
        Ok(())
    }

    /// Gives over every order that has not moved for so long: nobody works on it any more.
    pub async fn interrupt_older_than(&self, age: Duration) -> Result<u64, sqlx::Error> {
        let now = now_ms();
        let interrupted = sqlx::query(
            "UPDATE orders SET state = 'cancelling', failure = 'interrupted', updated_ms = $1
             WHERE state IN ('pending', 'reserved', 'charged') AND updated_ms <= $2",
        )
        .bind(now)
        .bind(now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
        .execute(&self.db)
        .await?;
        Ok(interrupted.rows_affected())
    }

    /// Orders to undo that are due, with the number of failed attempts so far.
    pub async fn due(&self, limit: i64) -> Result<Vec<(String, i64)>, sqlx::Error> {
        sqlx::query_as(
            "SELECT id, attempts FROM orders WHERE state = 'cancelling' AND retry_at_ms <= $1
             ORDER BY retry_at_ms LIMIT $2",
        )
        .bind(now_ms())
        .bind(limit)
        .fetch_all(&self.db)
        .await
    }

    /// Notes that undoing failed, and when to try again.
    pub async fn postpone(&self, id: &str, pause: Duration) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE orders SET attempts = attempts + 1, retry_at_ms = $1 WHERE id = $2")
            .bind(now_ms().saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX)))
            .bind(id)
            .execute(&self.db)
            .await
            .map(drop)
    }
}

fn order(row: (String, String, i64, String, Option<String>)) -> Result<Order, StoreError> {
    let (id, customer, total_cents, state, failure) = row;
    let failure = failure.as_deref().map(str::parse).transpose()?;
    Ok(Order { id, customer, total_cents, state: state.parse()?, failure })
}
