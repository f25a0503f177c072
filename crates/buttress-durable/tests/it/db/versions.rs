use buttress_durable::{DbError, args};

use super::{create_notes, works};
use crate::support::{Backend, close, execute, on_both};

on_both!(tables_of_a_newer_version_can_be_used, tables_of_a_newer_era_are_refused_with_what_is_needed);

/// Records a migration as a newer version of this crate would.
async fn migrated<D: Backend>(home: &D::Home, sql: &'static str) {
    let db = D::connect(home).await;
    let mut tx = db.begin().await.unwrap();
    execute::<D>(&mut tx, sql, &[]).await;
    tx.commit().await.unwrap();
    close(db).await;
}

async fn tables_of_a_newer_version_can_be_used<D: Backend>() {
    let home = D::create().await;
    let newer = "INSERT INTO buttress_migrations (version, description, success, checksum, execution_time)
                 SELECT 999, 'newer', success, checksum, 0 FROM buttress_migrations WHERE version = 1";
    migrated::<D>(&home, newer).await;
    let db = D::connect(&home).await;
    create_notes(&db).await;
    works(&db).await;
    let rows: Vec<(i64,)> = db.rows("SELECT version FROM buttress_migrations", args![]).await.unwrap();
    assert!(rows.contains(&(999,)));
    close(db).await;
    D::destroy(home).await;
}

async fn tables_of_a_newer_era_are_refused_with_what_is_needed<D: Backend>() {
    let home = D::create().await;
    let newer = "INSERT INTO buttress_migrations (version, description, success, checksum, execution_time)
                 SELECT 1000, 'newer', success, checksum, 0 FROM buttress_migrations WHERE version = 1";
    let db = D::connect(&home).await;
    migrated::<D>(&home, newer).await;
    let error = db.migrate().await.unwrap_err();
    assert!(matches!(error, DbError::Newer { tables: 1000, .. }), "{error:?}");
    assert!(error.to_string().contains("deploy the newer version"), "{error}");
    close(db).await;
    D::destroy(home).await;
}
