use std::path::Path;

use buttress_durable::db::DbErrorKind;
use buttress_durable::{Db, DbError, args};
use sqlx::{Connection, Sqlite};
use tempfile::TempDir;

use super::{create_notes, note, notes, works};
use crate::support::{Backend, bounded, close, ints};

const LARGE: &str = "INSERT INTO notes (id) VALUES (hex(randomblob(1000000)))";

async fn open() -> (Db<Sqlite>, TempDir) {
    let home = <Sqlite as Backend>::create().await;
    let db = <Sqlite as Backend>::connect(&home).await;
    create_notes(&db).await;
    (db, home)
}

/// Lets a connection allocate no more pages, so that its next large write finds the disk full.
const FULL: &str = "PRAGMA max_page_count = 1";

#[tokio::test]
async fn after_a_full_disk_everything_works_again() {
    bounded(async {
        let (db, _home) = open().await;
        let mut tx = db.begin().await.unwrap();
        tx.execute(FULL, args![]).await.unwrap();
        tx.execute("INSERT INTO notes (id) VALUES ('undone')", args![]).await.unwrap();
        let error = tx.execute(LARGE, args![]).await.unwrap_err();
        assert_eq!(error.kind(), DbErrorKind::Unavailable, "{error:?}");
        // SQLite has rolled back, so that this would be committed at once.
        let late = tx.execute("INSERT INTO notes (id) VALUES ('late')", args![]).await;
        assert!(matches!(late, Err(DbError::Aborted(Some(_)))));
        assert!(matches!(tx.commit().await, Err(DbError::Aborted(Some(_)))));
        works(&db).await;
        assert_eq!(notes(&db).await, Vec::<String>::new());
        close(db).await;
    })
    .await;
}

#[tokio::test]
async fn after_a_full_disk_in_statements_of_the_service_everything_works_again() {
    bounded(async {
        let (db, _home) = open().await;
        let mut tx = db.begin().await.unwrap();
        sqlx::query(FULL).execute(&mut *tx).await.unwrap();
        sqlx::query(LARGE).execute(&mut *tx).await.unwrap_err();
        assert!(tx.commit().await.is_err(), "there is no transaction any more");
        works(&db).await;

        let mut tx = db.begin().await.unwrap();
        sqlx::query(FULL).execute(&mut *tx).await.unwrap();
        sqlx::query(LARGE).execute(&mut *tx).await.unwrap_err();
        drop(tx);
        works(&db).await;

        // And in a transaction of sqlx's.
        let mut tx = db.pool().begin().await.unwrap();
        sqlx::query(FULL).execute(&mut *tx).await.unwrap();
        sqlx::query(LARGE).execute(&mut *tx).await.unwrap_err();
        drop(tx);
        works(&db).await;
        close(db).await;
    })
    .await;
}

#[tokio::test]
async fn after_a_read_only_file_everything_works_again() {
    bounded(async {
        let (db, _home) = open().await;
        let mut tx = db.begin().await.unwrap();
        tx.execute("PRAGMA query_only = 1", args![]).await.unwrap();
        let error = tx.execute("INSERT INTO notes (id) VALUES ('a')", args![]).await.unwrap_err();
        assert_eq!(error.kind(), DbErrorKind::Unavailable, "{error:?}");
        drop(tx);
        works(&db).await;
        close(db).await;
    })
    .await;
}

#[tokio::test]
async fn after_a_damaged_page_is_mended_everything_works_again() {
    bounded(async {
        let (db, home) = open().await;
        for _ in 0..3 {
            let mut tx = db.begin().await.unwrap();
            tx.execute(LARGE, args![]).await.unwrap();
            tx.commit().await.unwrap();
        }
        // The pages are in the file then, and not in the log before it.
        assert_eq!(ints(&db, "PRAGMA wal_checkpoint(TRUNCATE)").await, [0]);
        close(db).await;
        let file = home.path().join("test.db");
        let (sound, db) = (std::fs::read(&file).unwrap(), damage(&file).await);
        let read = async || db.row::<(i64,)>("SELECT SUM(LENGTH(id)) FROM notes NOT INDEXED", args![]).await;
        let error = read().await.unwrap_err();
        assert_eq!(error.kind(), DbErrorKind::Unavailable, "{error:?}");
        std::fs::write(&file, sound).unwrap();
        assert_eq!(read().await.unwrap(), Some((6_000_000,)));
        works(&db).await;
        close(db).await;
    })
    .await;
}

/// Opens a file, and then overwrites all of its pages but those of the schema.
async fn damage(file: &Path) -> Db<Sqlite> {
    let db = Db::open(file).await.unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0xff);
    std::fs::write(file, bytes).unwrap();
    db
}

#[tokio::test]
async fn a_connection_that_another_user_left_in_a_transaction_is_not_handed_out() {
    bounded(async {
        let (db, _home) = open().await;
        let mut conn = db.pool().acquire().await.unwrap();
        std::mem::forget(conn.begin().await.unwrap());
        drop(conn);
        works(&db).await;
        note(&db, "a").await.unwrap();
        close(db).await;
    })
    .await;
}

#[tokio::test]
async fn a_check_fails_on_a_database_that_answers_queries_and_accepts_no_writes() {
    bounded(async {
        let (db, home) = open().await;
        db.check_writable().await.unwrap();
        db.check_writable().await.unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.path().join("test.db")).read_only(true);
        let reader = Db::new(sqlx::SqlitePool::connect_with(options).await.unwrap());
        assert_eq!(notes(&reader).await, Vec::<String>::new());
        assert_eq!(reader.check_writable().await.unwrap_err().kind(), DbErrorKind::Unavailable);
        close(reader).await;
        close(db).await;
    })
    .await;
}

#[test]
fn a_transaction_that_outlives_its_runtime_is_dropped_without_a_panic() {
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tx = runtime.block_on(async { Db::open(home.path().join("test.db")).await.unwrap().begin().await.unwrap() });
    drop(runtime);
    drop(tx);
}
