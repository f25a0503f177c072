//! The SQL of consumer groups: committed positions, owners of partitions, and live members.

use std::time::Duration;

use super::store::PARTITIONS;
use crate::bus::subscribe::{Start, Subscribe};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};

/// A partition that this member owns: its state when it was claimed, and the generation that
/// permits writes.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) part: i64,
    generation: i64,
    /// Position of the next record to handle.
    pub(super) position: i64,
    /// Failed attempts at that record.
    pub(super) attempts: u32,
    pub(super) retry_at: Timestamp,
}

/// Inserts the rows of a group for each of its topics that has none yet.
pub(super) async fn register<D: Database>(db: &Db<D>, subscribe: &Subscribe) -> Result<(), DbError> {
    let mut tx = db.begin().await?;
    for topic in &subscribe.topics {
        for part in 0..i64::from(PARTITIONS) {
            db.execute(
                &mut tx,
                "INSERT INTO buttress_group (name, topic, part, position, attempts, retry_at, generation, expires_at)
                 VALUES ($1, $2, $3, CASE WHEN $4 = 0 THEN 0 ELSE COALESCE(
                     (SELECT next FROM buttress_log_head WHERE topic = $2 AND part = $3), 0) END, 0, 0, 0, 0)
                 ON CONFLICT (name, topic, part) DO NOTHING",
                args![&subscribe.group, topic, part, i64::from(subscribe.start == Start::Latest)],
            )
            .await?;
        }
    }
    tx.commit().await
}

/// Renews a member's registration, deletes expired members, and returns the number of live ones.
pub(super) async fn heartbeat<D: Database>(
    db: &Db<D>,
    group: &str,
    member: &str,
    ttl: Duration,
) -> Result<usize, DbError> {
    let now = db.now();
    let mut tx = db.begin().await?;
    db.execute(
        &mut tx,
        "INSERT INTO buttress_group_member (name, member, expires_at) VALUES ($1, $2, $3)
         ON CONFLICT (name, member) DO UPDATE SET expires_at = excluded.expires_at",
        args![group, member, now.plus(ttl)],
    )
    .await?;
    let dead = "DELETE FROM buttress_group_member WHERE name = $1 AND expires_at <= $2";
    db.execute(&mut tx, dead, args![group, now]).await?;
    let count = "SELECT COUNT(*) FROM buttress_group_member WHERE name = $1";
    let rows = db.fetch(&mut tx, count, args![group]).await?;
    let members = rows.first().map(|row| D::int(row, 0)).transpose()?.unwrap_or(1);
    tx.commit().await?;
    Ok(usize::try_from(members).unwrap_or(1).max(1))
}

pub(super) async fn leave<D: Database>(db: &Db<D>, group: &str, member: &str) -> Result<(), DbError> {
    let sql = "DELETE FROM buttress_group_member WHERE name = $1 AND member = $2";
    db.write(sql, args![group, member]).await.map(drop)
}

/// Returns the partitions of a group whose leases have expired.
pub(super) async fn free<D: Database>(db: &Db<D>, group: &str) -> Result<Vec<(String, i64)>, DbError> {
    let sql = "SELECT topic, part FROM buttress_group WHERE name = $1 AND expires_at <= $2 ORDER BY part, topic";
    let rows = db.read(sql, args![group, db.now()]).await?;
    rows.iter().map(|row| Ok((D::text(row, 0)?, D::int(row, 1)?))).collect()
}

/// Returns the partitions of a member that hold records it has not committed.
pub(super) async fn behind<D: Database>(db: &Db<D>, group: &str, member: &str) -> Result<Vec<(String, i64)>, DbError> {
    let sql = "SELECT g.topic, g.part FROM buttress_group g
               JOIN buttress_log_head h ON h.topic = g.topic AND h.part = g.part
               WHERE g.name = $1 AND g.owner = $2 AND h.next > g.position";
    let rows = db.read(sql, args![group, member]).await?;
    rows.iter().map(|row| Ok((D::text(row, 0)?, D::int(row, 1)?))).collect()
}

impl Claim {
    /// Claims a partition. Returns `None` if another member owns it.
    pub(super) async fn take<D: Database>(
        db: &Db<D>,
        group: &str,
        (topic, part): (String, i64),
        member: &str,
        ttl: Duration,
    ) -> Result<Option<Self>, DbError> {
        let now = db.now();
        let mut tx = db.begin().await?;
        let rows = db
            .fetch(
                &mut tx,
                "UPDATE buttress_group SET owner = $1, generation = generation + 1, expires_at = $2
                 WHERE name = $3 AND topic = $4 AND part = $5 AND expires_at <= $6
                 RETURNING generation, position, attempts, retry_at",
                args![member, now.plus(ttl), group, &topic, part, now],
            )
            .await?;
        tx.commit().await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Self {
            group: group.to_owned(),
            topic,
            part,
            generation: D::int(row, 0)?,
            position: D::int(row, 1)?,
            attempts: u32::try_from(D::int(row, 2)?).unwrap_or(u32::MAX),
            retry_at: Timestamp::from_millis(D::int(row, 3)?),
        }))
    }

    /// Returns the claim after the record at `position` has been handled.
    pub(super) fn after(&self, position: i64) -> Self {
        Self { position: position + 1, attempts: 0, retry_at: Timestamp::default(), ..self.clone() }
    }

    /// Writes position and attempts, and renews the lease. Returns false, without a write, if
    /// another member owns the partition.
    pub(super) async fn store<D: Database>(
        &self,
        db: &Db<D>,
        conn: &mut D::Connection,
        ttl: Duration,
    ) -> Result<bool, DbError> {
        let changed = db
            .execute(
                conn,
                "UPDATE buttress_group SET position = $1, attempts = $2, retry_at = $3, expires_at = $4
                 WHERE name = $5 AND topic = $6 AND part = $7 AND generation = $8",
                args![
                    self.position,
                    i64::from(self.attempts),
                    self.retry_at,
                    db.now().plus(ttl),
                    &self.group,
                    &self.topic,
                    self.part,
                    self.generation,
                ],
            )
            .await?;
        Ok(changed == 1)
    }

    /// Calls [`store`](Self::store) in its own transaction.
    pub(super) async fn save<D: Database>(&self, db: &Db<D>, ttl: Duration) -> Result<bool, DbError> {
        let mut tx = db.begin().await?;
        let ours = self.store(db, &mut tx, ttl).await?;
        tx.commit().await?;
        Ok(ours)
    }
}
