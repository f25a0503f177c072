//! The task of one partition: handles, acknowledges, retries or buries one record after the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::time::Duration;

use buttress_core::Backoff;
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::producer::{Entry, Producer, lock};
use super::record::{Record, letter_headers};
use crate::bus::attempt::attempt;
use crate::bus::dead_letter::DeadLetter;
use crate::bus::handler::{Handler, HandlerError};
use crate::bus::subscribe::Subscribe;
use crate::clock::{Clock, Timestamp};
use crate::task::Stop;
use crate::text::storable;

/// The progress of a partition, as it is committed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    /// Offset of the next record to handle.
    pub(super) offset: i64,
    pub(super) tries: Tries,
}

/// Failed attempts at the next record, and when to try again. Stored in the commit's metadata.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Tries {
    attempts: u32,
    retry_at: Timestamp,
}

/// A partition's task, as the polling thread sees it.
pub(super) struct Slot {
    records: mpsc::UnboundedSender<Record>,
    waiting: Arc<AtomicUsize>,
    progress: Arc<Mutex<Option<Progress>>>,
    stop: watch::Sender<bool>,
    task: AbortHandle,
    /// Disconnects when the task and everything it held have been dropped.
    ended: blocking::Receiver<()>,
    /// The progress that the group's coordinator has confirmed.
    pub(super) committed: Option<Progress>,
    pub(super) paused: bool,
}

/// What all partitions of a subscription share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) producer: Arc<Producer>,
    pub(super) clock: Clock,
    pub(super) subscribe: Arc<Subscribe>,
    pub(super) handler: Arc<dyn Handler>,
}

struct Work {
    shared: Shared,
    records: mpsc::UnboundedReceiver<Record>,
    waiting: Arc<AtomicUsize>,
    progress: Arc<Mutex<Option<Progress>>>,
    /// The progress that an earlier owner has committed.
    resume: Option<Progress>,
    _ended: blocking::Sender<()>,
}

/// Pauses between attempts to write a dead letter, which must succeed before the group continues.
const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));

// === impl Tries ===

impl Tries {
    /// Returns the metadata of a commit, if there are failed attempts.
    pub(super) fn metadata(self) -> Option<String> {
        (self.attempts > 0).then(|| serde_json::to_string(&self).unwrap_or_default())
    }

    /// Parses metadata of a commit. Unknown metadata counts as no attempts.
    pub(super) fn parse(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }
}

// === impl Slot ===

impl Slot {
    pub(super) fn start(shared: Shared, resume: Option<Progress>, runtime: &runtime::Handle) -> Self {
        let (records, received) = mpsc::unbounded_channel();
        let (held, ended) = blocking::channel();
        let (stop, stopped) = Stop::channel();
        let (waiting, progress) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Option<Progress>>>::default());
        let work = Work {
            shared,
            records: received,
            waiting: waiting.clone(),
            progress: progress.clone(),
            resume,
            _ended: held,
        };
        let task = runtime.spawn(work.run(stopped)).abort_handle();
        Self { records, waiting, progress, stop, task, ended, committed: resume, paused: false }
    }

    pub(super) fn push(&self, record: Record) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A task that has ended receives nothing, so the record is not committed.
        let _ = self.records.send(record);
    }

    /// Returns the number of records that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns the progress that has not been committed yet.
    pub(super) fn uncommitted(&self) -> Option<Progress> {
        let progress = *lock(&self.progress);
        progress.filter(|_| progress != self.committed)
    }

    /// Lets the task finish the record at hand and then end.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.ended.try_recv(), Err(blocking::TryRecvError::Disconnected))
    }

    /// Waits for the task to end, and aborts it after the grace period.
    pub(super) fn end(&self, grace: Duration) {
        if let Err(blocking::RecvTimeoutError::Timeout) = self.ended.recv_timeout(grace) {
            self.task.abort();
            // A handler that blocks its thread cannot be aborted. Its later effects are never
            // committed.
            let _ = self.ended.recv_timeout(Duration::from_secs(1));
        }
    }
}

// === impl Work ===

impl Work {
    async fn run(mut self, mut stop: Stop) {
        loop {
            let record = tokio::select! {
                biased;
                () = stop.wait() => return,
                record = self.records.recv() => record,
            };
            let Some(record) = record else { return };
            if !self.record(&record, &mut stop).await {
                return;
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Handles a record until it is done. Returns false if the task was stopped before.
    async fn record(&self, record: &Record, stop: &mut Stop) -> bool {
        let Shared { clock, subscribe, handler, .. } = &self.shared;
        let resumed = self.resume.filter(|resume| resume.offset == record.offset);
        let mut tries = resumed.map(|resume| resume.tries).unwrap_or_default();
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => return false,
                () = sleep(tries.retry_at.since(clock.now())) => {}
            }
            let number = tries.attempts.saturating_add(1);
            let result = match record.delivery(number) {
                Ok(delivery) => attempt(&**handler, delivery, subscribe.timeout).await,
                Err(unreadable) => Err(unreadable),
            };
            let Err(error) = result else { break };
            tracing::warn!(group = subscribe.group, topic = record.topic, attempt = number, %error, "handler failed");
            if error.is_reject() || number >= subscribe.attempts.get() {
                if !self.bury(record, number, &error, stop).await {
                    return false;
                }
                break;
            }
            let pause = subscribe.backoff.pause(number - 1, &mut fastrand::Rng::new());
            tries = Tries { attempts: number, retry_at: clock.now().plus(pause) };
            *lock(&self.progress) = Some(Progress { offset: record.offset, tries });
        }
        *lock(&self.progress) = Some(Progress { offset: record.offset + 1, tries: Tries::default() });
        true
    }

    /// Writes a record to the dead-letter topic, before the partition continues. Returns false if
    /// stopped.
    async fn bury(&self, record: &Record, attempts: u32, error: &HandlerError, stop: &mut Stop) -> bool {
        let Shared { producer, clock, subscribe, .. } = &self.shared;
        let letter = DeadLetter {
            group: subscribe.group.clone(),
            topic: record.topic.clone(),
            partition: record.partition.into(),
            offset: record.offset,
            attempts,
            error: storable(error),
            failed_at: clock.now(),
        };
        let Record { topic, partition, offset, .. } = record;
        tracing::error!(group = letter.group, topic, partition, offset, %error, "event moved to the dead-letter topic");
        let cause = serde_json::to_string(&letter).unwrap_or_default();
        for failures in 0.. {
            let entry = Entry {
                id: format!("{}/{topic}/{partition}/{offset}", letter.group),
                topic: &DeadLetter::topic_of(&letter.group, topic),
                key: record.key.as_deref().unwrap_or_default(),
                payload: &record.payload,
                headers: letter_headers(record, &cause),
            };
            let Err(error) = producer.publish_entry(entry).await else { return true };
            tracing::error!(
                topic,
                partition,
                offset,
                error = &error as &dyn std::error::Error,
                "cannot write the dead letter; retrying"
            );
            tokio::select! {
                biased;
                () = stop.wait() => return false,
                () = sleep(PAUSE.pause(failures, &mut fastrand::Rng::new())) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_survive_a_commit() {
        let tries = Tries { attempts: 3, retry_at: Timestamp::from_millis(7) };
        assert_eq!(Tries::parse(&tries.metadata().unwrap()), tries);
        assert_eq!(Tries::default().metadata(), None);
        for foreign in ["", "{}", "{\"attempts\":-1}", "not ours"] {
            assert_eq!(Tries::parse(foreign), Tries::default(), "{foreign:?}");
        }
    }
}
