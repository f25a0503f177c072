use std::time::Duration;

use super::database::{Database, args};
use super::{Db, DbError};

/// The right to be the only one at something, until it expires.
///
/// Every owner gets a generation one higher than the last. A write that checks the generation in its own transaction
/// ([`Lease::hold`]) cannot come from an owner that has been replaced, however late it wakes.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    name: String,
    generation: i64,
}

impl Lease {
    /// Takes the lease if nobody has it.
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

    /// Makes the lease last another while from now. False if somebody else has it.
    pub(crate) async fn renew<D: Database>(&self, db: &Db<D>, ttl: Duration) -> Result<bool, DbError> {
        let changed = db
            .write(
                "UPDATE buttress_lease SET expires_at = $1 WHERE name = $2 AND generation = $3",
                args![db.now().plus(ttl), &self.name, self.generation],
            )
            .await?;
        Ok(changed == 1)
    }

    /// Whether the lease is still ours; and if so, it stays ours until the transaction has ended.
    pub(crate) async fn hold<D: Database>(&self, db: &Db<D>, conn: &mut D::Connection) -> Result<bool, DbError> {
        // An update, though it changes nothing: PostgreSQL then locks the row, and a new owner has to wait.
        let held = db
            .execute(
                conn,
                "UPDATE buttress_lease SET generation = generation WHERE name = $1 AND generation = $2",
                args![&self.name, self.generation],
            )
            .await?;
        Ok(held == 1)
    }

    /// Gives the lease back before it expires.
    pub(crate) async fn release<D: Database>(self, db: &Db<D>) -> Result<(), DbError> {
        db.write(
            "UPDATE buttress_lease SET expires_at = 0 WHERE name = $1 AND generation = $2",
            args![&self.name, self.generation],
        )
        .await
        .map(drop)
    }
}
