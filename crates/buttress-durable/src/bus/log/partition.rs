//! The task of one partition: reads, handles and acknowledges one record after the other.

use std::sync::Arc;
use std::time::Duration;

use buttress_core::Backoff;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::group::Claim;
use super::store::{Log, Record};
use crate::bus::attempt::attempt;
use crate::bus::dead_letter::DeadLetter;
use crate::bus::handler::{Delivery, Handler, HandlerError};
use crate::bus::subscribe::Subscribe;
use crate::db::database::args;
use crate::db::{Database, DbError};
use crate::event::DomainEvent;
use crate::task::Stop;
use crate::text::storable;

/// Records read by one query.
const BATCH: i64 = 64;
/// Pauses while the log's database fails.
const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));

pub(super) struct Partition<D: Database> {
    pub(super) log: Log<D>,
    pub(super) subscribe: Arc<Subscribe>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) claim: Claim,
    /// Whether `claim` is ahead of its row, because writing it failed.
    pub(super) unsaved: bool,
    /// Notified when there are records to read.
    pub(super) news: Arc<Notify>,
}

struct Stored {
    position: i64,
    dedup: String,
    payload: Vec<u8>,
    dead_letter: Option<String>,
}

/// Whether this member still owns the partition.
#[derive(Eq, PartialEq)]
enum Owner {
    Us,
    Others,
}

impl<D: Database> Partition<D> {
    /// Runs until it is stopped or the partition is lost. While the database fails it keeps its
    /// progress and tries again: a commit has no effect once another member owns the partition.
    pub(super) async fn run(mut self, mut stop: Stop) {
        let (group, topic, part) = (self.subscribe.group.clone(), self.claim.topic.clone(), self.claim.part);
        let mut failures = 0;
        while !stop.is_set() {
            match self.round(&stop).await {
                Ok(Owner::Us) => {
                    failures = 0;
                    self.idle(&mut stop).await;
                }
                Ok(Owner::Others) => {
                    tracing::warn!(group, topic, part, "another member owns the partition now");
                    return;
                }
                Err(error) => {
                    let pause = PAUSE.pause(failures, &mut fastrand::Rng::new());
                    failures = failures.saturating_add(1);
                    tracing::warn!(group, topic, part, ?pause, %error, "the log's database fails; retrying");
                    tokio::select! {
                        () = stop.wait() => {}
                        () = sleep(pause) => {}
                    }
                }
            }
        }
        // If this fails, the lease ends by itself.
        if let Err(error) = self.claim.give_back(&self.log.db).await {
            tracing::debug!(group, topic, part, %error, "cannot give the partition back");
        }
    }

    /// Handles records until the end of the log, or until a record has to wait for its next
    /// attempt.
    async fn round(&mut self, stop: &Stop) -> Result<Owner, DbError> {
        if self.unsaved && self.save().await? == Owner::Others {
            return Ok(Owner::Others);
        }
        while self.pause().is_none() {
            let batch = self.read().await?;
            if batch.is_empty() {
                break;
            }
            for record in batch {
                if stop.is_set() {
                    return Ok(Owner::Us);
                }
                let position = record.position;
                if self.record(record).await? == Owner::Others {
                    return Ok(Owner::Others);
                }
                // The record was not handled. The rest of the batch must follow it, even if its
                // pause has ended since.
                if self.claim.position <= position {
                    break;
                }
            }
        }
        Ok(Owner::Us)
    }

    /// Waits for records, or for the next attempt.
    async fn idle(&self, stop: &mut Stop) {
        let pause = self.pause();
        tokio::select! {
            () = stop.wait() => {}
            // While a record waits for its next attempt, new records cannot be handled.
            () = self.news.notified(), if pause.is_none() => {}
            () = self.pause_is_over(pause), if pause.is_some() => {}
        }
    }

    /// Waits for the next attempt. Looks at the clock now and then, because it can be set.
    async fn pause_is_over(&self, pause: Option<Duration>) {
        const LOOK: Duration = Duration::from_secs(1);
        sleep(pause.unwrap_or_default().min(self.log.lease / 3).min(LOOK)).await;
    }

    async fn read(&self) -> Result<Vec<Stored>, DbError> {
        let rows = self
            .log
            .db
            .read(
                "SELECT position, dedup, payload, dead_letter FROM buttress_log
                 WHERE topic = $1 AND part = $2 AND position >= $3 ORDER BY position LIMIT $4",
                args![&self.claim.topic, self.claim.part, self.claim.position, BATCH],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Stored {
                    position: D::int(row, 0)?,
                    dedup: D::text(row, 1)?,
                    payload: D::blob(row, 2)?,
                    dead_letter: D::maybe_text(row, 3)?,
                })
            })
            .collect()
    }

    /// Makes one attempt at a record, and acknowledges it, schedules a retry, or buries it.
    async fn record(&mut self, record: Stored) -> Result<Owner, DbError> {
        let (tries, number) = (self.claim.tries, self.claim.tries.next());
        if self.claim.crashed && tries.are_crashes(&self.subscribe) {
            let error = HandlerError::retry("the process ended during the last attempt");
            return self.bury(&record, tries.attempts, &error).await;
        }
        let result = match self.delivery(&record, number) {
            // The member aborts this task, and with it the handler, when it has lost the partition.
            Ok(delivery) => attempt(&*self.handler, delivery, self.subscribe.timeout).await,
            Err(unreadable) => Err(unreadable),
        };
        let Err(error) = result else {
            self.claim = self.claim.after(record.position);
            return self.save().await;
        };
        let (topic, partition, event) = (&self.claim.topic, self.claim.part, &record.dedup);
        tracing::warn!(group = self.subscribe.group, topic, partition, event, attempt = number, %error, "handler failed");
        match tries.after(&error, &self.subscribe, self.log.db.now()) {
            Some(tries) => {
                self.claim.tries = tries;
                self.save().await
            }
            None => self.bury(&record, number, &error).await,
        }
    }

    fn delivery(&self, record: &Stored, attempt: u32) -> Result<Delivery, HandlerError> {
        let dead_letter = record.dead_letter.as_deref().map(serde_json::from_str).transpose();
        Ok(Delivery {
            event: DomainEvent::from_bytes(&record.payload).map_err(HandlerError::reject)?,
            topic: self.claim.topic.clone(),
            partition: self.claim.part,
            offset: record.position,
            attempt,
            dead_letter: dead_letter.map_err(HandlerError::reject)?,
        })
    }

    /// Moves a record to the dead-letter topic and commits the position, in one transaction, so
    /// that the letter is written exactly once.
    async fn bury(&mut self, record: &Stored, attempts: u32, error: &HandlerError) -> Result<Owner, DbError> {
        let Claim { group, topic, part, .. } = self.claim.clone();
        let letter = DeadLetter {
            topic: topic.clone(),
            partition: part,
            offset: record.position,
            attempts,
            error: storable(error),
            failed_at: self.log.db.now(),
            group,
        };
        let (offset, event) = (letter.offset, &record.dedup);
        tracing::error!(group = letter.group, topic, partition = part, offset, event, %error, "event moved to the dead-letter topic");
        let json = serde_json::to_string(&letter)
            .map_err(|error| DbError::Unreadable { what: "dead letter", value: error.to_string() })?;
        // Assigned after the commit only: if this transaction fails, the old claim must not skip
        // the record.
        let next = self.claim.after(record.position);
        let mut tx = self.log.db.begin().await?;
        if !next.store(&self.log.db, &mut tx).await? {
            return Ok(Owner::Others);
        }
        // A redriven letter that fails again is a new letter.
        let dedup = format!("{}@{}", record.dedup, record.position);
        let entry = Record { dedup, payload: &record.payload, dead_letter: Some(&json) };
        self.log.append(&mut tx, &DeadLetter::topic_of(&letter.group, &topic), part, &[entry]).await?;
        tx.commit().await?;
        self.claim = next;
        self.log.wake();
        Ok(Owner::Us)
    }

    async fn save(&mut self) -> Result<Owner, DbError> {
        self.unsaved = true;
        let ours = self.claim.save(&self.log.db).await?;
        self.unsaved = false;
        Ok(if ours { Owner::Us } else { Owner::Others })
    }

    /// Returns how long the next record still waits for its next attempt, if it waits.
    fn pause(&self) -> Option<Duration> {
        let pause = self.claim.tries.pause(&self.subscribe, self.log.db.now());
        (!pause.is_zero()).then_some(pause)
    }
}
