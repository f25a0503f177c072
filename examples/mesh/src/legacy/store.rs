//! The monolith's tables.

use buttress_durable::{Database, Db, DbError, args};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::page::Page;

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
    pub id: String,
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

    /// One page of the reviews of a product, oldest first, and one more if there is another page.
    /// The cursor is the id of a review; after an unknown one there is none.
    pub async fn reviews(&self, sku: &str, page: &Page) -> Result<Vec<Review>, DbError> {
        let from = match page.after() {
            None => Some((i64::MIN, String::new())),
            Some(id) => self.db.row("SELECT created_ms, id FROM reviews WHERE id = $1", args![id]).await?,
        };
        let Some((created_ms, id)) = from else { return Ok(Vec::new()) };
        let sql = "SELECT id, author, stars, text FROM reviews
                   WHERE sku = $1 AND (created_ms > $2 OR (created_ms = $2 AND id > $3))
                   ORDER BY created_ms, id LIMIT $4";
        let rows = self.db.rows(sql, args![sku, created_ms, &id, page.rows()]).await?;
        Ok(rows.into_iter().map(|(id, author, stars, text)| Review { id, author, stars, text }).collect())
    }

    /// Adds a review and returns its id.
    pub async fn add_review(&self, sku: &str, author: &str, stars: i64, text: &str) -> Result<String, DbError> {
        let id = Uuid::now_v7().to_string();
        let sql = "INSERT INTO reviews (id, sku, author, stars, text, created_ms) VALUES ($1, $2, $3, $4, $5, $6)";
        let mut tx = self.db.begin().await?;
        tx.execute(sql, args![&id, sku, author, stars, text, now_ms()]).await?;
        tx.commit().await?;
        Ok(id)
    }
}
