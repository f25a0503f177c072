//! The monolith's tables.

use buttress_durable::{Database, Db, DbError, args};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/legacy/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
}

#[derive(Clone, Debug)]
pub struct Customer {
    pub id: String,
    pub name: String,
    pub since: String,
}

#[derive(Clone, Debug)]
pub struct Review {
    pub author: String,
    pub stars: i64,
    pub text: String,
}

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        Ok(Self { db: db::open(home, "legacy", MIGRATIONS).await? })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub async fn customer(&self, id: &str) -> Result<Option<Customer>, DbError> {
        let row = self.db.row("SELECT id, name, since FROM customers WHERE id = $1", args![id]).await?;
        Ok(row.map(|(id, name, since)| Customer { id, name, since }))
    }

    pub async fn reviews(&self, sku: &str) -> Result<Vec<Review>, DbError> {
        let sql = "SELECT author, stars, text FROM reviews WHERE sku = $1 ORDER BY created_ms, id";
        let rows = self.db.rows(sql, args![sku]).await?;
        Ok(rows.into_iter().map(|(author, stars, text)| Review { author, stars, text }).collect())
    }

    pub async fn add_review(&self, sku: &str, review: &Review) -> Result<String, DbError> {
        let id = Uuid::now_v7().to_string();
        let sql = "INSERT INTO reviews (id, sku, author, stars, text, created_ms) VALUES ($1, $2, $3, $4, $5, $6)";
        let mut tx = self.db.begin().await?;
        tx.execute(sql, args![&id, sku, &review.author, review.stars, &review.text, now_ms()]).await?;
        tx.commit().await?;
        Ok(id)
    }
}
