use std::time::Duration;

use super::database::{Database, args};
use super::{Db, DbError};

/// An exclusive right that expires.
///
/// Every owner has a higher generation than the one before. A write that checks the generation in
/// its own transaction ([`Lease::hold`]) cannot come from an owner that has been replaced, however
/// late it runs.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    name: String,
    generation: i64,
}

impl Lease {
    /// Acquires the lease, or returns `None` if another owner has it.
    pub(crate) async fn acquire<D: Database>(
        db: &Db<D>,
        name: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<Option<Self>, DbError> {
        let now = db.now();
        let mut tx = db.begin().await?;
        let rows = db
            .fetch(
                &mut tx,
                "INSERT INTO buttress_lease (name, owner, generation, expires_at) VALUES ($1, $2, 1, $3)
                 ON CONFLICT (name) DO UPDATE SET owner = excluded.owner,
                     generation = buttress_lease.generation + 1, expires_at = excluded.expires_at
                 WHERE buttress_lease.expires_at <= $4
                 RETURNING generation",
                args![name, owner, now.plus(ttl), now],
            )
            .await?;
        let generation = rows.first().map(|row| D::int(row, 0)).transpose()?;
        tx.commit().await?;
        Ok(generation.map(|generation| Self { name: name.to_owned(), generation }))
    }

    /// Extends the lease to `ttl` from now. Returns false if another owner has it.
    pub(crate) async fn renew<D: Database>(&self, db: &Db<D>, ttl: Duration) -> Result<bool, DbError> {
        let changed = db
            .write(
                "UPDATE buttress_lease SET expires_at = $1 WHERE name = $2 AND generation = $3",
                args![db.now().plus(ttl), &self.name, self.generation],
            )
            .await?;
        Ok(changed == 1)
    }

    /// Checks that the lease is still held, and locks it until the transaction ends.
    pub(crate) async fn hold<D: Database>(&self, db: &Db<D>, conn: &mut D::Connection) -> Result<bool, DbError> {
        // An update without a change, which makes PostgreSQL lock the row, so that a new owner has
        // to wait.
        let held = db
            .execute(
                conn,
                "UPDATE buttress_lease SET generation = generation WHERE name = $1 AND generation = $2",
                args![&self.name, self.generation],
            )
            .await?;
        Ok(held == 1)
    }

    /// Releases the lease before it expires.
    pub(crate) async fn release<D: Database>(self, db: &Db<D>) -> Result<(), DbError> {
        db.write(
            "UPDATE buttress_lease SET expires_at = 0 WHERE name = $1 AND generation = $2",
            args![&self.name, self.generation],
        )
        .await
        .map(drop)
    }
}
