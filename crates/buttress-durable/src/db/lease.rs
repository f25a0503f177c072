use std::time::Duration;

use super::database::{Database, args};
use super::{Db, DbError};

/// An exclusive right that expires, measured by [`Db::lease_now`].
///
/// A lease that ends later than any owner could have set it, because a clock was wrong, is free.
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
        let now = db.lease_now().await?;
        let mut tx = db.begin().await?;
        let rows = db
            .fetch(
                &mut tx,
                "INSERT INTO buttress_lease (name, owner, generation, expires_at) VALUES ($1, $2, 1, $3)
                 ON CONFLICT (name) DO UPDATE SET owner = excluded.owner,
                     generation = buttress_lease.generation + 1, expires_at = excluded.expires_at
                 WHERE buttress_lease.expires_at <= $4 OR buttress_lease.expires_at > $5
                 RETURNING generation",
                // A lease that ends later than two that begin now was measured by a clock that was
                // ahead. Two, because this transaction has waited for the lock since, and the lease
                // that began meanwhile must not be taken.
                args![name, owner, now.plus(ttl), now, now.plus(ttl).plus(ttl)],
            )
            .await?;
        let generation = rows.first().map(|row| D::int(row, 0)).transpose()?;
        tx.commit().await?;
        Ok(generation.map(|generation| Self { name: name.to_owned(), generation }))
    }

    /// Extends the lease to `ttl` from now. Returns false if another owner has it.
    pub(crate) async fn renew<D: Database>(&self, db: &Db<D>, ttl: Duration) -> Result<bool, DbError> {
        let ends = db.lease_now().await?.plus(ttl);
        let sql = "UPDATE buttress_lease SET expires_at = $1 WHERE name = $2 AND generation = $3";
        let changed = db.write(sql, args![ends, &self.name, self.generation]).await?;
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

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;
    use crate::{ManualClock, Timestamp};

    const TTL: Duration = Duration::from_secs(10);
    const MS: Duration = Duration::from_millis(1);

    async fn open() -> (Db<sqlx::Sqlite>, ManualClock, tempfile::TempDir) {
        let (dir, hand) = (tempfile::tempdir().unwrap(), ManualClock::new(Timestamp::from_millis(1_000)));
        (Db::open(dir.path().join("test.db")).await.unwrap().with_clock(hand.clock()), hand, dir)
    }

    async fn holds(lease: &Lease, db: &Db<sqlx::Sqlite>) -> bool {
        lease.hold(db, &mut db.begin().await.unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_exclusive_until_the_moment_it_expires() {
        let (db, hand, _dir) = open().await;
        let acquire = async |name, owner| Lease::acquire(&db, name, owner, TTL).await.unwrap();
        let first = acquire("a", "one").await.unwrap();
        assert!(acquire("b", "two").await.is_some(), "another name is another lease");
        hand.advance(TTL - MS);
        assert!(acquire("a", "two").await.is_none());
        hand.advance(MS);
        let second = acquire("a", "two").await.unwrap();
        assert!(!holds(&first, &db).await && holds(&second, &db).await);
        assert!(!first.renew(&db, TTL).await.unwrap(), "the replaced owner extends nothing");
        first.release(&db).await.unwrap();
        assert!(acquire("a", "three").await.is_none(), "and releases nothing");
    }

    #[tokio::test]
    async fn a_lease_taken_by_a_clock_that_is_ahead_is_free() {
        let (db, hand, _dir) = open().await;
        let ahead = ManualClock::new(hand.clock().now().plus(360 * TTL));
        let wrong = Lease::acquire(&db.clone().with_clock(ahead.clock()), "a", "one", TTL).await.unwrap().unwrap();
        let right = Lease::acquire(&db, "a", "two", TTL).await.unwrap().unwrap();
        assert!(!holds(&wrong, &db).await && holds(&right, &db).await);
        assert!(Lease::acquire(&db, "a", "three", TTL).await.unwrap().is_none(), "the longest right one is not free");
    }

    #[tokio::test]
    async fn a_renewed_lease_counts_from_its_renewal_and_a_released_one_is_free() {
        let (db, hand, _dir) = open().await;
        let acquire = async || Lease::acquire(&db, "a", "two", TTL).await.unwrap();
        let first = Lease::acquire(&db, "a", "one", TTL).await.unwrap().unwrap();
        hand.advance(TTL - MS);
        assert!(first.renew(&db, TTL).await.unwrap());
        hand.advance(TTL - MS);
        assert!(acquire().await.is_none());
        assert!(holds(&first, &db).await);
        first.clone().release(&db).await.unwrap();
        assert!(acquire().await.is_some());
        assert!(!holds(&first, &db).await);
    }
}
