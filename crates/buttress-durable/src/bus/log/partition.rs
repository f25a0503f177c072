//! The task of one partition: reads, handles and acknowledges one record after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

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

pub(super) struct Partition<D: Database> {
    pub(super) log: Log<D>,
    pub(super) subscribe: Arc<Subscribe>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) claim: Claim,
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
    /// Runs until it is stopped, the partition is lost, or the database fails. After a failure a
    /// member claims the partition again.
    pub(super) async fn run(mut self, mut stop: Stop) {
        // Three chances to renew before the lease ends. The first tick fires at once and is
        // harmless.
        let mut beat = interval(self.log.lease / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (topic, part) = (self.claim.topic.clone(), self.claim.part);
        while !stop.is_set() {
            let owner = match self.round(&stop, &mut beat).await {
                Ok(Owner::Us) => self.idle(&mut stop, &mut beat).await,
                other => other,
            };
            match owner {
                Ok(Owner::Us) => {}
                Ok(Owner::Others) => {
                    tracing::warn!(group = self.subscribe.group, topic, part, "another member owns the partition now");
                    return;
                }
                Err(error) => {
                    tracing::warn!(group = self.subscribe.group, topic, part, %error, "partition released after a database error");
                    break;
                }
            }
        }
        // Expires the lease at once, so that another member need not wait. If this fails, the lease
        // expires by itself.
        if let Err(error) = self.claim.save(&self.log.db, Duration::ZERO).await {
            tracing::debug!(group = self.subscribe.group, topic, part, %error, "cannot release the partition");
        }
    }

    /// Handles records until the end of the log, or until a record has to wait for its next
    /// attempt.
    async fn round(&mut self, stop: &Stop, beat: &mut Interval) -> Result<Owner, DbError> {
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
                if self.record(record, beat).await? == Owner::Others {
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

    /// Waits for records while it renews the lease.
    async fn idle(&mut self, stop: &mut Stop, beat: &mut Interval) -> Result<Owner, DbError> {
        let pause = self.pause();
        tokio::select! {
            () = stop.wait() => Ok(Owner::Us),
            // While a record waits for its next attempt, new records cannot be handled.
            () = self.news.notified(), if pause.is_none() => Ok(Owner::Us),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => Ok(Owner::Us),
            // After renewing, the next round reads, which also covers a notification that was lost.
            _ = beat.tick() => self.renew().await,
        }
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
    async fn record(&mut self, record: Stored, beat: &mut Interval) -> Result<Owner, DbError> {
        let number = self.claim.attempts.saturating_add(1);
        let result = match self.delivery(&record, number) {
            Ok(delivery) => {
                // Concurrently, not nested: the handler may hold the transaction for which the
                // renewal waits.
                tokio::select! {
                    result = attempt(&*self.handler, delivery, self.subscribe.timeout) => result,
                    // Dropping the attempt cancels the handler, since another member owns the
                    // partition now.
                    () = self.renew_until_lost(beat) => return Ok(Owner::Others),
                }
            }
            Err(unreadable) => Err(unreadable),
        };
        let Err(error) = result else {
            self.claim = self.claim.after(record.position);
            return self.renew().await;
        };
        tracing::warn!(group = self.subscribe.group, topic = self.claim.topic, attempt = number, %error, "handler failed");
        if error.is_reject() || number >= self.subscribe.attempts.get() {
            return self.bury(&record, number, &error).await;
        }
        let pause = self.subscribe.backoff.pause(number - 1, &mut fastrand::Rng::new());
        self.claim.attempts = number;
        self.claim.retry_at = self.log.db.now().plus(pause);
        self.renew().await
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
        tracing::error!(group = letter.group, topic, part, offset = letter.offset, %error, "event moved to the dead-letter topic");
        let json = serde_json::to_string(&letter)
            .map_err(|error| DbError::Unreadable { what: "dead letter", value: error.to_string() })?;
        // Assigned after the commit only: if this transaction fails, `run` saves the old claim,
        // which must not skip the record.
        let next = self.claim.after(record.position);
        let mut tx = self.log.db.begin().await?;
        if !next.store(&self.log.db, &mut tx, self.log.lease).await? {
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

    /// Renews the lease until another member owns it. A failed renewal is retried; the commit
    /// decides whether the lease was lost.
    async fn renew_until_lost(&self, beat: &mut Interval) {
        loop {
            beat.tick().await;
            match self.renew().await {
                Ok(Owner::Us) => {}
                Ok(Owner::Others) => return,
                Err(error) => tracing::debug!(group = self.subscribe.group, %error, "cannot renew the lease"),
            }
        }
    }

    async fn renew(&self) -> Result<Owner, DbError> {
        let ours = self.claim.save(&self.log.db, self.log.lease).await?;
        Ok(if ours { Owner::Us } else { Owner::Others })
    }

    /// Returns how long the next record still waits for its next attempt, if it waits.
    fn pause(&self) -> Option<Duration> {
        let pause = self.claim.retry_at.since(self.log.db.now());
        (!pause.is_zero()).then_some(pause)
    }
}
