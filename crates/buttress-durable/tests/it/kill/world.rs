//! What outlives the processes: the participants, which record every effect, and the checks at the
//! end.
//!
//! The participants use the service's database over their own connections. They stand in for other
//! services, and no kill falls between their effect and its record.

use buttress_durable::db::Arg;
use buttress_durable::saga::{Admin, Call, Filter, SagaView, Status, StepError};
use buttress_durable::{Db, Outbox, Tx};

use crate::shop::{Order, schema};
use crate::support::{Backend, execute, ints};

/// Inventory, payment and shipping: one effect for each key, however often it is requested.
#[derive(Debug)]
pub(super) struct World<D: Backend>(Db<D>);

/// The last letter of an order's id selects its fate.
const DECLINED: char = 'd';
const LOST: char = 'l';

pub(super) async fn create<D: Backend>(home: &D::Home) -> World<D> {
    let db = D::connect(home).await;
    schema(&db).await;
    let mut tx = db.begin().await.unwrap();
    for table in [
        "CREATE TABLE effects (key TEXT PRIMARY KEY, state TEXT NOT NULL)",
        "CREATE TABLE ledger (seq BIGINT PRIMARY KEY, entry TEXT NOT NULL)",
        "CREATE TABLE calls (seq BIGINT PRIMARY KEY, saga TEXT, generation BIGINT, pid BIGINT, began BIGINT, ended BIGINT)",
        "CREATE TABLE news (seq BIGINT PRIMARY KEY, entry TEXT NOT NULL)",
    ] {
        execute::<D>(&mut tx, table, &[]).await;
    }
    tx.commit().await.unwrap();
    World(db)
}

impl<D: Backend> Clone for World<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Backend> World<D> {
    pub(super) fn open(db: Db<D>) -> Self {
        Self(db)
    }

    pub(super) fn db(&self) -> &Db<D> {
        &self.0
    }

    pub(super) async fn act(&self, call: &Call<Order>, step: &str) -> Result<(), StepError> {
        let order = call.saga_id();
        let mut tx = self.0.begin().await?;
        let state = if step == "pay" && order.ends_with(DECLINED) { "declined" } else { "done" };
        let sql = "INSERT INTO effects (key, state) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
        let new = D::execute(&mut tx, sql, &[Arg::Text(call.key()), Arg::Text(state)]).await? == 1;
        let sql = "SELECT state FROM effects WHERE key = $1";
        let rows = D::fetch(&mut tx, sql, &[Arg::Text(call.key())]).await?;
        let state = D::text(&rows[0], 0)?;
        if new && state == "done" {
            write(&mut tx, &format!("+{}", call.key())).await?;
        }
        tx.commit().await?;
        match state.as_str() {
            "done" if new && order.ends_with(LOST) => Err(StepError::unknown("the answer was lost")),
            "done" => Ok(()),
            _ => Err(StepError::terminal(state)),
        }
    }

    pub(super) async fn undo(&self, call: &Call<Order>) -> Result<(), StepError> {
        let mut tx = self.0.begin().await?;
        let sql = "INSERT INTO effects (key, state) VALUES ($1, 'revoked') ON CONFLICT (key) DO NOTHING";
        let new = D::execute(&mut tx, sql, &[Arg::Text(call.key())]).await? == 1;
        let sql = "UPDATE effects SET state = 'revoked' WHERE key = $1 AND state = 'done'";
        if !new && D::execute(&mut tx, sql, &[Arg::Text(call.key())]).await? == 1 {
            write(&mut tx, &format!("-{}", call.key())).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Records that a call begins, and returns its number.
    pub(super) async fn begins(&self, call: &Call<Order>) -> Result<i64, StepError> {
        let mut tx = self.0.begin().await?;
        lock(&mut tx).await?;
        let sql = "INSERT INTO calls (seq, saga, generation, pid, began)
                   VALUES ((SELECT COUNT(*) FROM calls), $1, $2, $3, $4) RETURNING seq";
        let args = [
            Arg::Text(call.saga_id()),
            Arg::Int(call.generation()),
            Arg::Int(std::process::id().into()),
            Arg::from(self.0.clock().now()),
        ];
        let rows = D::fetch(&mut tx, sql, &args).await?;
        let seq = D::int(&rows[0], 0)?;
        tx.commit().await?;
        Ok(seq)
    }

    pub(super) async fn ends(&self, seq: i64) -> Result<(), StepError> {
        let mut tx = self.0.begin().await?;
        let sql = "UPDATE calls SET ended = $1 WHERE seq = $2";
        D::execute(&mut tx, sql, &[Arg::from(self.0.clock().now()), Arg::Int(seq)]).await?;
        Ok(tx.commit().await?)
    }

    /// Whether no work is left.
    pub(super) async fn is_at_rest(&self) -> bool {
        let counts = Admin::new(self.0.clone()).counts().await.unwrap();
        let unsent = Outbox::new(self.0.clone()).backlog().await.unwrap().unsent;
        let heard = ints(&self.0, "SELECT COUNT(*) FROM news").await[0];
        let told = ints(&self.0, "SELECT COUNT(*) FROM buttress_saga").await[0];
        (counts.running + counts.compensating, unsent) == (0, 0) && heard == told
    }

    /// Checks the number of every effect.
    pub(super) async fn check(&self, orders: usize, story: &str) {
        let sagas = Admin::new(self.0.clone()).list(&Filter { limit: 10_000, ..Filter::default() }).await.unwrap();
        assert_eq!(sagas.len(), orders, "{story}");
        let (ledger, news) = (self.texts("SELECT entry FROM ledger ORDER BY seq").await, self.texts(NEWS).await);
        for saga in &sagas {
            self.check_one(saga, &ledger, &news, story);
        }
        let distinct: std::collections::HashSet<_> = ledger.iter().chain(&news).collect();
        assert_eq!(distinct.len(), ledger.len() + news.len(), "{story}: an effect twice: {ledger:?} {news:?}");
        assert_eq!(
            ints(&self.0, "SELECT COUNT(*) FROM orders WHERE changes <> 1").await,
            [0],
            "{story}: local steps once"
        );
    }

    fn check_one(&self, saga: &SagaView, ledger: &[String], news: &[String], story: &str) {
        let (id, key) = (&saga.id, saga.saga_id());
        let declined = id.ends_with(DECLINED);
        let expected = if declined { Status::Compensated } else { Status::Completed };
        assert_eq!(saga.status, expected, "{story}: {saga:?}");
        let made: Vec<_> = ledger.iter().filter(|entry| entry[1..].starts_with(&format!("{key}:"))).collect();
        let right: &[String] = &match declined {
            true => vec![format!("+{key}:reserve"), format!("-{key}:reserve")],
            false => ["reserve", "pay", "ship"].map(|step| format!("+{key}:{step}")).to_vec(),
        };
        assert!(made.iter().copied().eq(right), "{story}: {made:?}");
        let heard = news.iter().filter(|entry| entry.ends_with(&format!(" {id}"))).count();
        assert_eq!(heard, 1, "{story}: {news:?}");
        let end = if declined { "OrderCancelled" } else { "OrderConfirmed" };
        assert!(news.contains(&format!("{end} {id}")), "{story}: {news:?}");
    }

    async fn texts(&self, sql: &'static str) -> Vec<String> {
        let mut conn = self.0.pool().acquire().await.unwrap();
        let rows = D::fetch(&mut conn, sql, &[]).await.unwrap();
        rows.iter().map(|row| D::text(row, 0).unwrap()).collect()
    }
}

const NEWS: &str = "SELECT entry FROM news ORDER BY seq";

async fn write<D: Backend>(tx: &mut Tx<D>, entry: &str) -> Result<(), sqlx::Error> {
    lock(tx).await?;
    let sql = "INSERT INTO ledger (seq, entry) VALUES ((SELECT COUNT(*) FROM ledger), $1)";
    D::execute(tx, sql, &[Arg::Text(entry)]).await.map(drop)
}

/// Serialises the numbering. On SQLite there is one writer anyway.
async fn lock<D: Backend>(tx: &mut Tx<D>) -> Result<(), sqlx::Error> {
    D::lock_key(tx, 7).await
}
