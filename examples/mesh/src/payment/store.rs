//! Money, in SQL.
//!
//! A caller may never get the outcome of a payment: a response is lost, a call times out, a process
//! crashes. It then repeats the charge or calls the refund, and these messages may arrive in any
//! order. Three rules make that safe:
//!
//! 1. **The key is the decision.** `charges.key` is unique. The first transaction that inserts it
//!    decides, and moves the money in the same transaction. Later ones read the decision.
//! 2. **The refund of an unknown charge is recorded.** It inserts the key as `revoked`. A charge
//!    that arrives later finds the key and moves nothing.
//! 3. **A refund moves money only on the change from `charged` to `refunded`**, which happens once.
//!
//! Events are published through the outbox in the same transaction, so money never moves without an
//! event, and no event is published without a movement.

use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, Db, DbError, Outbox, Tx, args};
use uuid::Uuid;

use super::domain::{Charge, ChargeOutcome, Payment};
use crate::bus;
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::events::{PaymentCompleted, PaymentDeclined, PaymentRefunded, publish};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/payment/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
    outbox: Outbox<D>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("key {key} was used for another charge")]
    KeyReused { key: String },
    #[error(transparent)]
    Write(#[from] OutboxError),
}

impl From<DbError> for StoreError {
    fn from(error: DbError) -> Self {
        Self::Write(error.into())
    }
}

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        let db = db::open(home, "payment", MIGRATIONS).await?;
        Ok(Self { outbox: bus::outbox(&db), db })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub fn outbox(&self) -> &Outbox<D> {
        &self.outbox
    }

    /// Charges the customer, once per key.
    pub async fn charge(&self, charge: &Charge) -> Result<ChargeOutcome, StoreError> {
        let mut tx = self.db.begin().await?;
        if !claim(&mut tx, charge, "charged").await? {
            return decided(tx, charge).await;
        }
        let sql = "UPDATE accounts SET balance_cents = balance_cents - $1
                   WHERE id = $2 AND balance_cents >= $1 RETURNING balance_cents";
        let paid: Option<(i64,)> = tx.row(sql, args![charge.amount_cents, &charge.customer]).await?;
        let Charge { order_id, customer, amount_cents, .. } = charge.clone();
        let outcome = if paid.is_some() {
            record(&mut tx, charge, charge.amount_cents).await?;
            publish(&self.outbox, &mut tx, &PaymentCompleted { order_id, customer, amount_cents }).await?;
            ChargeOutcome::Charged
        } else {
            // Stored as well: a retry must get the same answer even if the balance has grown since.
            tx.execute("UPDATE charges SET state = 'declined' WHERE key = $1", args![&charge.key]).await?;
            publish(&self.outbox, &mut tx, &PaymentDeclined { order_id, customer, amount_cents }).await?;
            ChargeOutcome::Declined
        };
        tx.commit().await?;
        self.outbox.wake();
        Ok(outcome)
    }

    /// Refunds a charge, once per key, and returns the amount that was charged. A key that does not
    /// exist yet is recorded as revoked.
    pub async fn refund(&self, key: &str, order_id: &str) -> Result<i64, StoreError> {
        let mut tx = self.db.begin().await?;
        let (key, order_id) = (key.to_owned(), order_id.to_owned());
        let unknown = Charge { key, order_id, customer: String::new(), amount_cents: 0 };
        let refunded =
            if claim(&mut tx, &unknown, "revoked").await? { 0 } else { self.give_back(&mut tx, unknown).await? };
        tx.commit().await?;
        self.outbox.wake();
        Ok(refunded)
    }

    async fn give_back(&self, tx: &mut Tx<D>, unknown: Charge) -> Result<i64, StoreError> {
        let sql = "UPDATE charges SET state = 'refunded', updated_ms = $1
                   WHERE key = $2 AND state = 'charged' RETURNING customer, amount_cents";
        let Some((customer, amount_cents)) = tx.row::<(String, i64)>(sql, args![now_ms(), &unknown.key]).await? else {
            // Already refunded, declined or revoked, so nothing moves. Returns the refunded amount,
            // so that a repeated call gets the same answer.
            let sql = "SELECT amount_cents FROM charges WHERE key = $1 AND state = 'refunded'";
            return Ok(tx.row::<(i64,)>(sql, args![&unknown.key]).await?.map_or(0, |(amount,)| amount));
        };
        let sql = "UPDATE accounts SET balance_cents = balance_cents + $1 WHERE id = $2";
        tx.execute(sql, args![amount_cents, &customer]).await?;
        let charge = Charge { customer, ..unknown };
        record(tx, &charge, -amount_cents).await?;
        let Charge { order_id, customer, .. } = charge;
        publish(&self.outbox, tx, &PaymentRefunded { order_id, customer, amount_cents }).await?;
        Ok(amount_cents)
    }

    pub async fn payment(&self, order_id: &str) -> Result<Option<Payment>, DbError> {
        let sql =
            "SELECT state, amount_cents, customer FROM charges WHERE order_id = $1 ORDER BY created_ms DESC LIMIT 1";
        let row: Option<(String, i64, String)> = self.db.row(sql, args![order_id]).await?;
        Ok(row.map(|(state, amount_cents, customer)| Payment { state, amount_cents, customer }))
    }
}

/// The outcome that the first attempt with this key had.
async fn decided<D: Database>(mut tx: Tx<D>, charge: &Charge) -> Result<ChargeOutcome, StoreError> {
    let sql = "SELECT state, order_id, customer, amount_cents FROM charges WHERE key = $1";
    let row: Option<(String, String, String, i64)> = tx.row(sql, args![&charge.key]).await?;
    tx.rollback().await?;
    let reused = || StoreError::KeyReused { key: charge.key.clone() };
    let (state, order_id, customer, amount) = row.ok_or_else(reused)?;
    if state == "revoked" {
        return Ok(ChargeOutcome::Revoked);
    }
    if (&order_id, &customer, amount) != (&charge.order_id, &charge.customer, charge.amount_cents) {
        return Err(reused());
    }
    Ok(match state.as_str() {
        "charged" => ChargeOutcome::Charged,
        "declined" => ChargeOutcome::Declined,
        _ => ChargeOutcome::Revoked,
    })
}

/// Inserts the key with a first decision. Returns false if the key was decided before.
async fn claim<D: Database>(tx: &mut Tx<D>, charge: &Charge, state: &str) -> Result<bool, DbError> {
    let sql = "INSERT INTO charges (key, order_id, customer, amount_cents, state, created_ms, updated_ms)
               VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (key) DO NOTHING";
    let Charge { key, order_id, customer, amount_cents } = charge;
    Ok(tx.execute(sql, args![key, order_id, customer, *amount_cents, state, now_ms()]).await? == 1)
}

/// Appends one movement to the ledger.
async fn record<D: Database>(tx: &mut Tx<D>, charge: &Charge, amount_cents: i64) -> Result<(), DbError> {
    let sql = "INSERT INTO ledger (id, key, order_id, customer, amount_cents, at_ms) VALUES ($1, $2, $3, $4, $5, $6)";
    let id = Uuid::now_v7().to_string();
    let Charge { key, order_id, customer, .. } = charge;
    tx.execute(sql, args![&id, key, order_id, customer, amount_cents, now_ms()]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use sqlx::Sqlite;

    use super::*;
    use crate::db::Files;

    async fn store() -> (Store<Sqlite>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(&Files(dir.path().to_owned())).await.unwrap(), dir)
    }

    async fn balance(store: &Store<Sqlite>, customer: &str) -> i64 {
        let sql = "SELECT balance_cents FROM accounts WHERE id = $1";
        store.db.row::<(i64,)>(sql, args![customer]).await.unwrap().unwrap().0
    }

    async fn unsent(store: &Store<Sqlite>) -> u64 {
        store.outbox.backlog().await.unwrap().unsent
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
        assert_eq!(unsent(&store).await, 1, "publishes one event");
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

    #[tokio::test]
    async fn the_last_cent_can_be_spent() {
        let (store, _dir) = store().await;
        assert_eq!(store.charge(&charge_of("pip", 100)).await.unwrap(), ChargeOutcome::Charged);
        assert_eq!(balance(&store, "pip").await, 0);
        let more = Charge { key: "o2:charge".into(), ..charge_of("pip", 1) };
        assert_eq!(store.charge(&more).await.unwrap(), ChargeOutcome::Declined);
        // There would be enough now, but the decision stands.
        assert_eq!(store.refund("o1:charge", "o1").await.unwrap(), 100);
        assert_eq!(store.charge(&more).await.unwrap(), ChargeOutcome::Declined);
        assert_eq!(balance(&store, "pip").await, 100);
    }

    #[tokio::test]
    async fn a_key_belongs_to_one_order_and_one_customer() {
        let (store, _dir) = store().await;
        store.charge(&charge_of("alice", 500)).await.unwrap();
        let others = [Charge { order_id: "o2".into(), ..charge_of("alice", 500) }, charge_of("bob", 500)];
        for other in others {
            let answer = store.charge(&other).await;
            assert!(matches!(answer, Err(StoreError::KeyReused { key }) if key == "o1:charge"), "{other:?}");
        }
    }

    #[tokio::test]
    async fn every_movement_is_in_the_ledger_and_published() {
        let (store, _dir) = store().await;
        for _ in 0..2 {
            store.charge(&charge_of("alice", 500)).await.unwrap();
            store.refund("o1:charge", "o1").await.unwrap();
            let poor = Charge { key: "o2:charge".into(), order_id: "o2".into(), ..charge_of("pip", 101) };
            store.charge(&poor).await.unwrap();
        }
        let sql = "SELECT key, order_id, customer, amount_cents FROM ledger ORDER BY id";
        let ledger: Vec<(String, String, String, i64)> = store.db.rows(sql, args![]).await.unwrap();
        let entry = |cents| ("o1:charge".to_owned(), "o1".to_owned(), "alice".to_owned(), cents);
        assert_eq!(ledger, [entry(500), entry(-500)]);
        let rows: Vec<(Vec<u8>,)> =
            store.db.rows("SELECT payload FROM buttress_outbox ORDER BY seq", args![]).await.unwrap();
        let told = rows.iter().map(|(json,)| {
            let event: buttress_durable::DomainEvent = serde_json::from_slice(json).unwrap();
            (event.topic().to_owned(), event.key().to_owned(), event.data()["amount_cents"].as_i64().unwrap())
        });
        let expected =
            [("PaymentCompleted", "o1", 500), ("PaymentRefunded", "o1", 500), ("PaymentDeclined", "o2", 101)];
        let expected = expected.map(|(kind, order, cents)| (kind.to_owned(), order.to_owned(), cents));
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let payment = async |order| store.payment(order).await.unwrap().map(|found| (found.state, found.amount_cents));
        assert_eq!(payment("o1").await, Some(("refunded".to_owned(), 500)));
        assert_eq!(payment("o2").await, Some(("declined".to_owned(), 101)));
        assert_eq!(payment("o3").await, None);
    }
}
