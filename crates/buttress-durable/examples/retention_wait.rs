//! Measures how long writers wait while [`Retention`] deletes old rows.
//!
//! ```text
//! cargo run --release -p buttress-durable --example retention_wait -- [ROWS]
//! ```
//!
//! Fills a temporary SQLite database with published events, 1.5 million by default, deletes them,
//! and writes meanwhile, once every 5 ms. Prints how long a transaction of the writer took, with
//! the retention and then, for as many transactions, without.
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use buttress_durable::{Db, Retention, args};
use sqlx::Sqlite;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let rows = std::env::args().nth(1).map_or(Ok(1_500_000), |rows| rows.parse())?;
    let dir = tempfile::tempdir()?;
    let db = Db::open(dir.path().join("outbox.db")).await?;
    let mut tx = db.begin().await?;
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
               INSERT INTO buttress_outbox (event_id, shard, payload, created_at, sent_at)
               SELECT CAST(i * 7919 % 15485863 AS TEXT), i % 16, hex(randomblob(100)), 1, 1 FROM n";
    tx.execute(sql, args![rows]).await?;
    tx.commit().await?;

    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let writer = tokio::spawn(write_while(db.clone(), move |_| !stop.load(Ordering::SeqCst)));
    let start = Instant::now();
    let deleted = Retention::new(db.clone()).outbox(Duration::from_secs(1)).run_once().await?;
    let took = start.elapsed();
    done.store(true, Ordering::SeqCst);
    let during = writer.await??;
    println!("deleted {deleted} rows in {took:.1?}");
    report("with the retention", during.clone());
    let written = during.len();
    report("without", write_while(db, move |count| count < written).await?);
    Ok(())
}

/// Writes a row every 5 ms, and returns how long each transaction took.
async fn write_while(
    db: Db<Sqlite>,
    go_on: impl Fn(usize) -> bool,
) -> Result<Vec<Duration>, buttress_durable::DbError> {
    let mut took = Vec::new();
    while go_on(took.len()) {
        let start = Instant::now();
        let mut tx = db.begin().await?;
        let sql =
            "INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ('writer', hex(randomblob(8)), 0)";
        tx.execute(sql, args![]).await?;
        tx.commit().await?;
        took.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

fn report(when: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |share: f64| took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1)));
    let line = [0.5, 0.99, 0.999, 1.0].map(|share| at(share).map_or("-".into(), |time| format!("{time:.1?}")));
    println!(
        "{when}: {} transactions; median {}, p99 {}, p99.9 {}, longest {}",
        took.len(),
        line[0],
        line[1],
        line[2],
        line[3]
    );
}
