//! The SQL of consumer groups: committed positions, owners of partitions, and live members.

use std::time::Duration;

use super::store::PARTITIONS;
use crate::bus::attempt::Tries;
use crate::bus::lag::Lag;
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
    pub(super) generation: i64,
    /// Position of the next record to handle.
    pub(super) position: i64,
    /// Failed attempts at that record.
    pub(super) tries: Tries,
    /// Whether the last of those attempts ended with the process of an earlier owner.
    pub(super) crashed: bool,
}

/// A group as a member sees it.
pub(super) struct View {
    /// Live members, ordered by id, with their topics separated by spaces.
    pub(super) members: Vec<(String, String)>,
    pub(super) partitions: Vec<Place>,
}

/// A partition of a group, and its lease.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) topic: String,
    pub(super) part: i64,
    pub(super) owner: Option<String>,
    pub(super) generation: i64,
    pub(super) expires_at: Timestamp,
    /// The length with which its lease was written, if the version of its owner writes it.
    pub(super) lease: Option<Duration>,
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

/// Renews a member's registration and all its leases, and deletes members that have expired, in one
/// transaction.
pub(super) async fn renew<D: Database>(
    db: &Db<D>,
    subscribe: &Subscribe,
    member: &str,
    ttl: Duration,
) -> Result<(), DbError> {
    let (group, topics, now) = (&subscribe.group, subscribe.topics.join(" "), db.lease_now().await?);
    let mut tx = db.begin().await?;
    db.execute(
        &mut tx,
        "INSERT INTO buttress_group_member (name, member, expires_at, topics, lease_ms) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name, member) DO UPDATE SET expires_at = excluded.expires_at, topics = excluded.topics,
             lease_ms = excluded.lease_ms",
        args![group, member, now.plus(ttl), &topics, millis(ttl)],
    )
    .await?;
    let dead = "DELETE FROM buttress_group_member WHERE name = $1 AND expires_at <= $2";
    db.execute(&mut tx, dead, args![group, now]).await?;
    let leases = "UPDATE buttress_group SET expires_at = $1, lease_ms = $4 WHERE name = $2 AND owner = $3";
    db.execute(&mut tx, leases, args![now.plus(ttl), group, member, millis(ttl)]).await?;
    tx.commit().await
}

pub(super) async fn leave<D: Database>(db: &Db<D>, group: &str, member: &str) -> Result<(), DbError> {
    let sql = "DELETE FROM buttress_group_member WHERE name = $1 AND member = $2";
    db.write(sql, args![group, member]).await.map(drop)
}

/// Reads the members and partitions of a group. A member whose lease ends later than two of its
/// length that begin now was measured by a clock that was ahead, and has no share: it may have
/// gone. `ttl` is the length of leases that do not say their own.
pub(super) async fn view<D: Database>(db: &Db<D>, group: &str, now: Timestamp, ttl: Duration) -> Result<View, DbError> {
    let sql = "SELECT member, topics FROM buttress_group_member
               WHERE name = $1 AND expires_at > $2 AND expires_at <= $2 + 2 * COALESCE(lease_ms, $3) ORDER BY member";
    let members = db.read(sql, args![group, now, millis(ttl)]).await?;
    let members = members.iter().map(|row| Ok((D::text(row, 0)?, D::text(row, 1)?)));
    let sql = "SELECT topic, part, owner, generation, expires_at, lease_ms FROM buttress_group WHERE name = $1
               ORDER BY part, topic";
    let partitions = db.read(sql, args![group]).await?;
    let partitions = partitions.iter().map(|row| {
        Ok(Place {
            topic: D::text(row, 0)?,
            part: D::int(row, 1)?,
            owner: D::maybe_text(row, 2)?,
            generation: D::int(row, 3)?,
            expires_at: Timestamp::from_millis(D::int(row, 4)?),
            lease: D::maybe_int(row, 5)?.map(|lease| Duration::from_millis(u64::try_from(lease).unwrap_or(0))),
        })
    });
    let members = members.collect::<Result<_, DbError>>()?;
    Ok(View { members, partitions: partitions.collect::<Result<_, DbError>>()? })
}

/// Returns the partitions of a member that hold records it has not committed.
pub(super) async fn behind<D: Database>(db: &Db<D>, group: &str, member: &str) -> Result<Vec<(String, i64)>, DbError> {
    let sql = "SELECT g.topic, g.part FROM buttress_group g
               JOIN buttress_log_head h ON h.topic = g.topic AND h.part = g.part
               WHERE g.name = $1 AND g.owner = $2 AND h.next > g.position";
    let rows = db.read(sql, args![group, member]).await?;
    rows.iter().map(|row| Ok((D::text(row, 0)?, D::int(row, 1)?))).collect()
}

/// Reads how far a group has come in each partition of its topics.
pub(super) async fn lag<D: Database>(db: &Db<D>, group: &str) -> Result<Vec<Lag>, DbError> {
    let sql = "SELECT g.topic, g.part, g.position, COALESCE(h.next, g.position), g.attempts, g.waiting_since
               FROM buttress_group g
               LEFT JOIN buttress_log_head h ON h.topic = g.topic AND h.part = g.part
               WHERE g.name = $1 ORDER BY g.topic, g.part";
    let rows = db.read(sql, args![group]).await?;
    rows.iter()
        .map(|row| {
            Ok(Lag {
                topic: D::text(row, 0)?,
                partition: D::int(row, 1)?,
                position: D::int(row, 2)?,
                end: D::int(row, 3)?,
                attempts: u32::try_from(D::int(row, 4)?).unwrap_or(u32::MAX),
                waiting_since: D::maybe_int(row, 5)?.map(Timestamp::from_millis),
            })
        })
        .collect()
}

fn millis(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 4)
}

impl Claim {
    /// Claims a partition whose lease is over. Returns `None` if the row has changed since `place`
    /// was read.
    ///
    /// An owner that gives a partition back clears its name. One that is still named has crashed,
    /// perhaps because of the record at hand, so that counts as an attempt at it. It is counted
    /// here, and not before each attempt, because a write for each record would double the cost of
    /// handling it. The record was not at hand if it was published later, or was still waiting.
    pub(super) async fn take<D: Database>(
        db: &Db<D>,
        group: &str,
        place: &Place,
        member: &str,
        (now, ttl): (Timestamp, Duration),
    ) -> Result<Option<Self>, DbError> {
        let Place { topic, part, owner, generation, expires_at, .. } = place;
        let mut tx = db.begin().await?;
        let rows = db
            .fetch(
                &mut tx,
                "UPDATE buttress_group SET owner = $1, generation = generation + 1, expires_at = $2, lease_ms = $8,
                     attempts = attempts + CASE WHEN owner <> $1 AND retry_at <= expires_at AND EXISTS (
                         SELECT 1 FROM buttress_log l
                         WHERE l.topic = buttress_group.topic AND l.part = buttress_group.part
                             AND l.position >= buttress_group.position AND l.published_at <= buttress_group.expires_at)
                     THEN 1 ELSE 0 END
                 WHERE name = $3 AND topic = $4 AND part = $5 AND generation = $6 AND expires_at = $7
                 RETURNING generation, position, attempts, retry_at, waiting_since",
                args![member, now.plus(ttl), group, topic, *part, *generation, *expires_at, millis(ttl)],
            )
            .await?;
        tx.commit().await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let tries = Tries {
            attempts: u32::try_from(D::int(row, 2)?).unwrap_or(u32::MAX),
            retry_at: Timestamp::from_millis(D::int(row, 3)?),
            waiting_since: D::maybe_int(row, 4)?.map(Timestamp::from_millis),
            ..Tries::default()
        };
        Ok(Some(Self {
            group: group.to_owned(),
            topic: topic.clone(),
            part: *part,
            generation: D::int(row, 0)?,
            position: D::int(row, 1)?,
            tries,
            crashed: owner.as_deref().is_some_and(|owner| owner != member),
        }))
    }

    /// Returns the claim after the record at `position` has been handled.
    pub(super) fn after(&self, position: i64) -> Self {
        Self { position: position + 1, tries: Tries::default(), crashed: false, ..self.clone() }
    }

    /// Writes position and attempts. Returns false, without a write, if another member owns the
    /// partition.
    pub(super) async fn store<D: Database>(&self, db: &Db<D>, conn: &mut D::Connection) -> Result<bool, DbError> {
        let changed = db
            .execute(
                conn,
                "UPDATE buttress_group SET position = $1, attempts = $2, retry_at = $3, waiting_since = $4
                 WHERE name = $5 AND topic = $6 AND part = $7 AND generation = $8",
                args![
                    self.position,
                    i64::from(self.tries.attempts),
                    self.tries.retry_at,
                    self.tries.waiting_since.map(Timestamp::as_millis),
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
    pub(super) async fn save<D: Database>(&self, db: &Db<D>) -> Result<bool, DbError> {
        let mut tx = db.begin().await?;
        let ours = self.store(db, &mut tx).await?;
        tx.commit().await?;
        Ok(ours)
    }

    /// Writes position and attempts, and gives the partition back, so that another member need not
    /// wait for the end of the lease.
    pub(super) async fn give_back<D: Database>(&self, db: &Db<D>) -> Result<(), DbError> {
        let mut tx = db.begin().await?;
        if self.store(db, &mut tx).await? {
            let free = "UPDATE buttress_group SET owner = NULL, expires_at = 0
                        WHERE name = $1 AND topic = $2 AND part = $3";
            db.execute(&mut tx, free, args![&self.group, &self.topic, self.part]).await?;
        }
        tx.commit().await
    }
}
