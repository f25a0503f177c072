use super::bus::LogBus;
use super::store::Record;
use crate::bus::dead_letter::{DeadLetter, DeadLettered};
use crate::bus::event_bus::BusError;
use crate::db::database::args;
use crate::db::{Database, DbError};
use crate::event::DomainEvent;

impl<D: Database> LogBus<D> {
    /// Lists the events of a topic that a group could not handle, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn dead_letters(&self, group: &str, topic: &str, limit: u32) -> Result<Vec<DeadLettered>, BusError> {
        let rows = self
            .log
            .db
            .read(
                "SELECT part, position, payload, dead_letter FROM buttress_log WHERE topic = $1
                 ORDER BY published_at, part, position LIMIT $2",
                args![&DeadLetter::topic_of(group, topic), i64::from(limit)],
            )
            .await?;
        rows.iter().map(|row| Ok(letter::<D>(row)?)).collect()
    }

    /// Appends a dead letter to its original topic for another attempt.
    ///
    /// It is idempotent: a letter is appended once. Every group of the topic receives it; groups
    /// that have handled the event recognise it by their [`Inbox`](crate::Inbox).
    ///
    /// # Errors
    ///
    /// [`BusError::Unknown`] if there is no such letter, [`BusError::Unavailable`] if the database
    /// fails.
    pub async fn redrive(&self, group: &str, topic: &str, partition: i64, offset: i64) -> Result<(), BusError> {
        let from = DeadLetter::topic_of(group, topic);
        let mut tx = self.log.db.begin().await?;
        let rows = self
            .log
            .db
            .fetch(
                &mut tx,
                "SELECT dedup, payload FROM buttress_log WHERE topic = $1 AND part = $2 AND position = $3",
                args![&from, partition, offset],
            )
            .await?;
        let Some(row) = rows.first() else {
            return Err(BusError::Unknown(format!("dead letter {partition}/{offset} on {from}")));
        };
        // The letter's own key differs from the key of the event's first publication and of a later
        // failure.
        let dedup = format!("{}#{group}", D::text(row, 0)?);
        let payload = D::blob(row, 1)?;
        // A dead letter keeps its partition number, so this is also the partition of the event's
        // key.
        let record = Record { dedup, payload: &payload, dead_letter: None };
        self.log.append(&mut tx, topic, partition, &[record]).await?;
        tx.commit().await?;
        self.log.wake();
        Ok(())
    }
}

fn letter<D: Database>(row: &D::Row) -> Result<DeadLettered, DbError> {
    let json = D::text(row, 3)?;
    let cause = serde_json::from_str(&json)
        .map_err(|error| DbError::Unreadable { what: "dead letter", value: error.to_string() })?;
    let event = DomainEvent::from_bytes(&D::blob(row, 2)?).ok();
    Ok(DeadLettered { event, partition: D::int(row, 0)?, offset: D::int(row, 1)?, cause })
}
