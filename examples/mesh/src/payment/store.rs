//! Money, in SQL.
//!
//! The whole difficulty of a payment is that the caller may not learn what happened: an answer is lost, a call times
//! out, a process dies. So it will call again, or call the refund instead, and those messages may arrive in any order.
//! Three rules make that safe:
//!
//! 1. **The key is the decision.** `charges.key` is unique. The first transaction to insert it decides, with the
//!    movement of money in the same transaction; everyone after it reads the decision.
//! 2. **A refund of something unknown is remembered.** It inserts the key itself, as `revoked`. A charge that comes
//!    later finds the key taken and moves nothing.
//! 3. **A refund moves money only on the change from `charged` to `refunded`**, which happens once.

use std::path::Path;

use uuid::Uuid;

use super::domain::{Charge, ChargeOutcome, Payment};
use crate::clock::now_ms;
use crate::db::{self, MigrationFile, Pool, Transaction};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/payment/0001_init.sql"))];

#[derive(Clone, Debug)]
pub struct Store {
    db: Pool,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("key {key} was used for another charge")]
    KeyReused { key: String },
    #[error("the database failed")]
    Db(#[from] sqlx::Error),
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

    /// Takes the money, once per key.
    pub async fn charge(&self, charge: &Charge) -> Result<ChargeOutcome, StoreError> {
        let mut tx = self.db.begin().await?;
        // The write comes first, so that SQLite takes its lock here and not by an upgrade that may fail half way.
        if !claim(&mut tx, charge, "charged").await? {
            return self.decided(tx, charge).await;
        }
        let paid: Option<(i64,)> = sqlx::query_as(
            "UPDATE accounts SET balance_cents = balance_cents - $1
             WHERE id = $2 AND balance_cents >= $1 RETURNING balance_cents",
        )
        .bind(charge.amount_cents)
        .bind(&charge.customer)
        .fetch_optional(&mut *tx)
        .await?;
        let outcome = if paid.is_some() {
            record(&mut tx, charge, charge.amount_cents).await?;
            ChargeOutcome::Charged
        } else {
            // Kept, too: a retry must get the same answer even if the customer has found some money meanwhile.
            sqlx::query("UPDATE charges SET state = 'declined' WHERE key = $1")
                .bind(&charge.key)
                .execute(&mut *tx)
                .await?;
            ChargeOutcome::Declined
        };
        tx.commit().await?;
        Ok(outcome)
    }

    /// Gives the money back, once per key, and returns what the key had taken. A key that is not there yet is revoked.
    pub async fn refund(&self, key: &str, order_id: &str) -> Result<i64, StoreError> {
        let mut tx = self.db.begin().await?;
        let unknown =
            Charge { key: key.to_owned(), order_id: order_id.to_owned(), customer: String::new(), amount_cents: 0 };
        let refunded = if claim(&mut tx, &unknown, "revoked").await? {
            0
        } else {
            let taken: Option<(String, i64)> = sqlx::query_as(
                "UPDATE charges SET state = 'refunded', updated_ms = $1
                 WHERE key = $2 AND state = 'charged' RETURNING customer, amount_cents",
            )
            .bind(now_ms())
            .bind(key)
            .fetch_optional(&mut *tx)
            .await?;
            match taken {
                Some((customer, amount_cents)) => {
                    sqlx::query("UPDATE accounts SET balance_cents = balance_cents + $1 WHERE id = $2")
                        .bind(amount_cents)
                        .bind(&customer)
                        .execute(&mut *tx)
                        .await?;
                    record(&mut tx, &Charge { customer, ..unknown }, -amount_cents).await?;
                    amount_cents
                }
                // Refunded before, declined or revoked: nothing moves now. Say what it had taken, for the same answer.
                None => sqlx::query_as("SELECT amount_cents FROM charges WHERE key = $1 AND state = 'refunded'")
                    .bind(key)
                    .fetch_optional(&mut *tx)
                    .await?
                    .map_or(0, |(amount,): (i64,)| amount),
            }
        };
        tx.commit().await?;
        Ok(refunded)
    }

    pub async fn payment(&self, order_id: &str) -> Result<Option<Payment>, StoreError> {
        let row: Option<(String, i64)> = sqlx::query_as(
            "SELECT state, amount_cents FROM charges WHERE order_id = $1 ORDER BY created_ms DESC LIMIT 1",
        )
        .bind(order_id)
        .fetch_optional(&self.db)
        .await?;
        Ok(row.map(|(state, amount_cents)| Payment { state, amount_cents }))
    }

    /// The answer that the first attempt with this key got.
    async fn decided(&self, mut tx: Transaction, charge: &Charge) -> Result<ChargeOutcome, StoreError> {
        let (state, order_id, customer, amount): (String, String, String, i64) =
            sqlx::query_as("SELECT state, order_id, customer, amount_cents FROM charges WHERE key = $1")
                .bind(&charge.key)
                .fetch_one(&mut *tx)
                .await?;
        tx.rollback().await?;
        if state == "revoked" {
            return Ok(ChargeOutcome::Revoked);
        }
        if (order_id, customer, amount) != (charge.order_id.clone(), charge.customer.clone(), charge.amount_cents) {
            return Err(StoreError::KeyReused { key: charge.key.clone() });
        }
        Ok(match state.as_str() {
            "charged" => ChargeOutcome::Charged,
            "declined" => ChargeOutcome::Declined,
            _ => ChargeOutcome::Revoked,
        })
    }
}

/// Inserts the key with a first decision. False if someone has decided before.
async fn claim(tx: &mut Transaction, charge: &Charge, state: &str) -> Result<bool, sqlx::Error> {
    let now = now_ms();
    let claimed: Option<(String,)> = sqlx::query_as(
        "INSERT INTO charges (key, order_id, customer, amount_cents, state, created_ms, updated_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (key) DO NOTHING RETURNING key",
    )
    .bind(&charge.key)
    .bind(&charge.order_id)
    .bind(&charge.customer)
    .bind(charge.amount_cents)
    .bind(state)
    .bind(now)
    .fetch_optional(&mut **tx)
    .await?;
    Ok(claimed.is_some())
}

/// Appends one movement to the ledger.
async fn record(tx: &mut Transaction, charge: &Charge, amount_cents: i64) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO ledger (id, key, order_id, customer, amount_cents, at_ms) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(Uuid::now_v7().to_string())
        .bind(&charge.key)
        .bind(&charge.order_id)
        .bind(&charge.customer)
        .bind(amount_cents)
        .bind(now_ms())
        .execute(&mut **tx)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(&dir.path().join("payment.db")).await.unwrap(), dir)
    }

    async fn balance(store: &Store, customer: &str) -> i64 {
        let (balance,): (i64,) = sqlx::query_as("SELECT balance_cents FROM accounts WHERE id = $1")
            .bind(customer)
            .fetch_one(&store.db)
            .await
            .unwrap();
        balance
    }

    fn charge_of(customer: &str, amount_cents: i64) -> Charge {
        Charge { key: "o1:charge".into(), order_id: "o1".into(), customer: customer.into(), amount_cents }
    }

    #[tokio::test]
    async fn a_repeated_charge_takes_the_money_once() {
        let (store, _dir) = store().await;
        let before = balance(&store, "alice").await;
        for _ in 0..3 {
            assert_eq!(store.charge(&charge_of("alice", 500)).await.unwrap(), ChargeOutcome::Charged);
        }
        assert_eq!(balance(&store, "alice").await, before - 500);
    }

    #[tokio::test]
    async fn charges_that_race_with_the_same_key_take_the_money_once() {
        let (store, _dir) = store().await;
        let before = balance(&store, "alice").await;
        let charge = charge_of("alice", 500);
        let outcomes = futures_util::future::join_all((0..8).map(|_| store.charge(&charge))).await;
        assert!(outcomes.into_iter().all(|outcome| outcome.unwrap() == ChargeOutcome::Charged));
        assert_eq!(balance(&store, "alice").await, before - 500);
    }

    #[tokio::test]
    async fn a_repeated_refund_gives_the_money_back_once() {
        let (store, _dir) = store().await;
        let before = balance(&store, "alice").await;
        store.charge(&charge_of("alice", 500)).await.unwrap();
        assert_eq!(store.refund("o1:charge", "o1").await.unwrap(), 500);
        assert_eq!(store.refund("o1:charge", "o1").await.unwrap(), 500);
        assert_eq!(balance(&store, "alice").await, before);
    }

    #[tokio::test]
    async fn a_charge_that_comes_after_its_refund_takes_nothing() {
        let (store, _dir) = store().await;
        let before = balance(&store, "alice").await;
        assert_eq!(store.refund("o1:charge", "o1").await.unwrap(), 0);
        assert_eq!(store.charge(&charge_of("alice", 500)).await.unwrap(), ChargeOutcome::Revoked);
        assert_eq!(balance(&store, "alice").await, before);
    }

    #[tokio::test]
    async fn a_retry_of_a_refunded_charge_does_not_charge_again() {
        let (store, _dir) = store().await;
        let before = balance(&store, "alice").await;
        store.charge(&charge_of("alice", 500)).await.unwrap();
        store.refund("o1:charge", "o1").await.unwrap();
        assert_eq!(store.charge(&charge_of("alice", 500)).await.unwrap(), ChargeOutcome::Revoked);
        assert_eq!(balance(&store, "alice").await, before);
    }

    #[tokio::test]
    async fn too_little_money_and_no_account_are_declined() {
        let (store, _dir) = store().await;
        assert_eq!(store.charge(&charge_of("pip", 101)).await.unwrap(), ChargeOutcome::Declined);
        assert_eq!(store.refund("o1:charge", "o1").await.unwrap(), 0);
        let nobody = Charge { key: "o2:charge".into(), ..charge_of("nobody", 1) };
        assert_eq!(store.charge(&nobody).await.unwrap(), ChargeOutcome::Declined);
        assert_eq!(balance(&store, "pip").await, 100);
    }

    #[tokio::test]
    async fn a_key_used_for_another_amount_is_refused() {
        let (store, _dir) = store().await;
        store.charge(&charge_of("alice", 500)).await.unwrap();
        let other = store.charge(&charge_of("alice", 501)).await;
        assert!(matches!(other, Err(StoreError::KeyReused { .. })));
    }
}
