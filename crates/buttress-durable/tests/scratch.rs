use buttress_durable::{Db, Outbox, Timestamp, args};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[allow(clippy::all)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t12() {
    let dir = tempfile::tempdir_in(std::env::var("SCRATCH_DIR").unwrap_or("/tmp".into())).unwrap();
    let db = Db::open(dir.path().join("x.db")).await.unwrap();
    let other = Db::open(dir.path().join("x.db")).await.unwrap();
    let outbox = Outbox::new(db.clone());
    let mut tx = db.begin().await.unwrap();
    let rows: i64 = std::env::var("ROWS").unwrap_or("1500000".into()).parse().unwrap();
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
               INSERT INTO buttress_outbox (event_id, shard, payload, created_at, sent_at)
               SELECT lower(hex(randomblob(16))), i % 16, randomblob(350), 1, 1 FROM n"
    );
    let start = Instant::now();
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    println!("filled in {:?}", start.elapsed());
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (name, db) in [("same process pool", db.clone()), ("other pool, as another process", other)] {
        let done = done.clone();
        writers.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            let mut n = 0i64;
            while !done.load(Ordering::SeqCst) {
                let start = Instant::now();
                let mut tx = db.begin().await.unwrap();
                waits.push(start.elapsed());
                n += 1;
                tx.execute(
                    "INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ($1, $2, 0)",
                    args![name, &n.to_string()],
                )
                .await
                .unwrap();
                tx.commit().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            waits.sort();
            println!(
                "{name}: {} writes, wait for the lock: median {:?}, p99 {:?}, max {:?}",
                waits.len(),
                waits[waits.len() / 2],
                waits[waits.len() * 99 / 100],
                waits[waits.len() - 1]
            );
        }));
    }
    let start = Instant::now();
    println!("purged {:?} in {:?}", outbox.purge(Timestamp::from_millis(2)).await, start.elapsed());
    done.store(true, Ordering::SeqCst);
    for w in writers {
        w.await.unwrap();
    }
}
