//! Listing, redriving and discarding dead letters.

use super::store::{Log, Record};
use crate::bus::dead_letter::{DeadLetter, DeadLettered};
use crate::bus::event_bus::BusError;
use crate::db::database::args;
use crate::db::{Database, DbError};
use crate::event::DomainEvent;

pub(super) async fn list<D: Database>(
    log: &Log<D>,
    group: &str,
    topic: &str,
    limit: u32,
) -> Result<Vec<DeadLettered>, BusError> {
    let rows = log
        .db
        .read(
            "SELECT part, position, payload, dead_letter FROM buttress_log WHERE topic = $1
             ORDER BY published_at, part, position LIMIT $2",
            args![&DeadLetter::topic_of(group, topic), i64::from(limit)],
        )
        .await?;
    rows.iter().map(|row| Ok(letter::<D>(row)?)).collect()
}

/// Moves a letter back to its original topic, in one transaction.
pub(super) async fn redrive<D: Database>(
    log: &Log<D>,
    group: &str,
    topic: &str,
    place: (i64, i64),
) -> Result<(), BusError> {
    let mut tx = log.db.begin().await?;
    let (dedup, payload) = remove(log, &mut tx, group, topic, place).await?;
    // The letter's own key differs from the key of the event's first publication and of a later
    // failure.
    let record = Record { dedup: format!("{dedup}#{group}"), payload: &payload, dead_letter: None };
    // A dead letter keeps its partition number, so this is also the partition of the event's key.
    log.append(&mut tx, topic, place.0, &[record]).await?;
    tx.commit().await?;
    log.wake();
    Ok(())
}

pub(super) async fn discard<D: Database>(
    log: &Log<D>,
    group: &str,
    topic: &str,
    place: (i64, i64),
) -> Result<(), BusError> {
    let mut tx = log.db.begin().await?;
    remove(log, &mut tx, group, topic, place).await?;
    Ok(tx.commit().await?)
}

/// Deletes a letter, and returns its key and payload.
async fn remove<D: Database>(
    log: &Log<D>,
    conn: &mut D::Connection,
    group: &str,
    topic: &str,
    (partition, offset): (i64, i64),
) -> Result<(String, Vec<u8>), BusError> {
    let from = DeadLetter::topic_of(group, topic);
    let sql = "DELETE FROM buttress_log WHERE topic = $1 AND part = $2 AND position = $3 RETURNING dedup, payload";
    let rows = log.db.fetch(conn, sql, args![&from, partition, offset]).await?;
    let row = rows.first().ok_or_else(|| BusError::Unknown(format!("dead letter {partition}/{offset} on {from}")))?;
    Ok((D::text(row, 0)?, D::blob(row, 1)?))
}

fn letter<D: Database>(row: &D::Row) -> Result<DeadLettered, DbError> {
    let json = D::text(row, 3)?;
    let cause = serde_json::from_str(&json)
        .map_err(|error| DbError::Unreadable { what: "dead letter", value: error.to_string() })?;
    let event = DomainEvent::from_bytes(&D::blob(row, 2)?).ok();
    Ok(DeadLettered { event, partition: D::int(row, 0)?, offset: D::int(row, 1)?, cause })
}
