//! Connections and transactions: what happens after a failure, a dropped future or a silent server.

mod cancel;
mod postgres;
mod proxy;
mod sqlite;
mod transactions;
mod versions;

use buttress_durable::{Database, Db, args};

/// Creates the table that these tests write to.
async fn create_notes<D: Database>(db: &Db<D>) {
    let mut tx = db.begin().await.unwrap();
    tx.execute("CREATE TABLE notes (id TEXT PRIMARY KEY)", args![]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn note<D: Database>(db: &Db<D>, id: &str) -> Result<(), buttress_durable::DbError> {
    let mut tx = db.begin().await?;
    tx.execute("INSERT INTO notes (id) VALUES ($1)", args![id]).await?;
    tx.commit().await
}

async fn notes<D: Database>(db: &Db<D>) -> Vec<String> {
    let rows: Vec<(String,)> = db.rows("SELECT id FROM notes ORDER BY id", args![]).await.unwrap();
    rows.into_iter().map(|(id,)| id).collect()
}

/// Uses every connection of the pool at the same time, and writes.
async fn works<D: Database>(db: &Db<D>) {
    let all = db.pool().options().get_max_connections();
    let sessions = futures_util::future::join_all((0..all).map(|_| db.pool().acquire())).await;
    for session in sessions {
        drop(session.unwrap());
    }
    for n in 0..2 * all {
        note(db, &format!("works-{n}")).await.unwrap();
    }
    let mut tx = db.begin().await.unwrap();
    tx.execute("DELETE FROM notes WHERE id LIKE 'works-%'", args![]).await.unwrap();
    tx.commit().await.unwrap();
}
