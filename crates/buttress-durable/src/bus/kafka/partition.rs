//! The task of one partition: handles, acknowledges, retries or buries one record after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::time::Duration;

use rdkafka::topic_partition_list::TopicPartitionListElem;
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::bury::bury;
use super::config::KafkaConfig;
use super::producer::{Producer, lock};
use super::record::Record;
use crate::bus::attempt::{Tries, attempt};
use crate::bus::handler::{Handler, HandlerError};
use crate::bus::subscribe::Subscribe;
use crate::clock::Clock;
use crate::task::{Stop, WorkerHealth};

/// The progress of a partition, as it is committed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Progress {
    /// Offset of the next record to handle.
    pub(super) offset: i64,
    pub(super) note: Note,
}

/// Failed attempts at the next record, and the member that is at it. Stored in the commit's
/// metadata.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Note {
    #[serde(flatten)]
    pub(super) tries: Tries,
    /// `None` once the member has given the partition back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
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
    committed: watch::Sender<Option<Progress>>,
    /// The progress to begin with.
    resume: Option<Progress>,
    /// Id of the member.
    id: String,
    pub(super) paused: bool,
}

/// What all partitions of a subscription share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) config: Arc<KafkaConfig>,
    pub(super) producer: Arc<Producer>,
    pub(super) clock: Clock,
    pub(super) subscribe: Arc<Subscribe>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) health: WorkerHealth,
    /// Id of the member.
    pub(super) id: String,
}

/// Where a partition's task begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Resume {
    /// The progress that is committed.
    pub(super) committed: Option<Progress>,
    /// The member that committed it has crashed.
    pub(super) crashed: bool,
}

struct Work {
    shared: Shared,
    records: mpsc::UnboundedReceiver<Record>,
    waiting: Arc<AtomicUsize>,
    progress: Arc<Mutex<Option<Progress>>>,
    committed: watch::Receiver<Option<Progress>>,
    /// The progress to begin with.
    resume: Option<Progress>,
    crashed: bool,
    /// Records that are committed one by one.
    careful: usize,
    _ended: blocking::Sender<()>,
}

/// After a crash, records are committed one by one, so that a further crash is counted for the
/// record that was at hand. More than can be uncommitted.
const CAREFUL: usize = 512;

// === impl Note ===

impl Note {
    /// Returns the metadata of a commit, if it says anything.
    pub(super) fn metadata(&self) -> Option<String> {
        (*self != Self::default()).then(|| serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads the metadata of a committed offset.
    pub(super) fn of(element: &TopicPartitionListElem<'_>) -> Self {
        // The binding panics if the metadata is not UTF-8, and another client may have written it.
        let metadata = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned()));
        Self::parse(&metadata.unwrap_or_default())
    }

    /// Parses metadata of a commit. Unknown metadata says nothing.
    pub(super) fn parse(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }
}

// === impl Slot ===

impl Slot {
    pub(super) fn start(shared: Shared, resume: Resume, runtime: &runtime::Handle) -> Self {
        let (records, received) = mpsc::unbounded_channel();
        let (held, ended) = blocking::channel();
        let (stop, stopped) = Stop::channel();
        let Resume { committed, crashed } = resume;
        let id = shared.id.clone();
        let resume = committed.clone().map(|Progress { offset, mut note }| {
            note.tries.attempts = note.tries.attempts.saturating_add(u32::from(crashed));
            Progress { offset, note: Note { owner: Some(id.clone()), ..note } }
        });
        let (committed, confirmed) = watch::channel(committed);
        let (waiting, progress) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Option<Progress>>>::default());
        let work = Work {
            shared,
            records: received,
            waiting: waiting.clone(),
            progress: progress.clone(),
            committed: confirmed,
            resume: resume.clone(),
            crashed,
            careful: if crashed { CAREFUL } else { 0 },
            _ended: held,
        };
        let task = runtime.spawn(work.run(stopped)).abort_handle();
        Self { records, waiting, progress, stop, task, ended, committed, resume, id, paused: false }
    }

    /// Names this member as the owner before the first record is handled, so that a crash is
    /// recognised. Returns whether that has to be committed.
    pub(super) fn begin(&self, offset: i64) -> bool {
        let mut progress = lock(&self.progress);
        if progress.is_some() {
            return false;
        }
        let resumed = self.resume.clone().filter(|resume| resume.offset == offset);
        let note = Note { owner: Some(self.id.clone()), ..Note::default() };
        *progress = Some(resumed.unwrap_or(Progress { offset, note }));
        true
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

    /// Returns the progress that has not been committed yet. Once the task was stopped and has
    /// ended, it names no owner: the partition is given back.
    pub(super) fn uncommitted(&self) -> Option<Progress> {
        let mut progress = lock(&self.progress).clone()?;
        if *self.stop.borrow() && self.has_ended() {
            progress.note.owner = None;
        }
        (self.committed.borrow().as_ref() != Some(&progress)).then_some(progress)
    }

    /// Notes the progress that the group's coordinator has confirmed.
    pub(super) fn confirm(&self, progress: Progress) {
        self.committed.send_replace(Some(progress));
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
            if self.careful > 0 {
                self.careful -= 1;
                let next = record.offset + 1;
                let is_committed = |progress: &Option<Progress>| progress.as_ref().is_some_and(|p| p.offset >= next);
                tokio::select! {
                    biased;
                    () = stop.wait() => return,
                    _ = self.committed.wait_for(is_committed) => {}
                }
            }
        }
    }

    /// Handles a record until it is done. Returns false if the task was stopped before.
    async fn record(&self, record: &Record, stop: &mut Stop) -> bool {
        let Shared { clock, subscribe, handler, .. } = &self.shared;
        if record.done.is_some() {
            self.note(record.offset + 1, Tries::default());
            return true;
        }
        let resumed = self.resume.as_ref().filter(|resume| resume.offset == record.offset);
        let mut tries = resumed.map(|resume| resume.note.tries).unwrap_or_default();
        if self.crashed && tries.are_crashes(subscribe) {
            let error = HandlerError::retry("the process ended during the last attempt");
            if !bury(&self.shared, record, tries.attempts, &error, stop).await {
                return false;
            }
            self.note(record.offset + 1, Tries::default());
            return true;
        }
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => return false,
                () = sleep(tries.pause(subscribe, clock.now())) => {}
            }
            let number = tries.next();
            let result = match record.delivery(number) {
                Ok(delivery) => attempt(&**handler, delivery, subscribe.timeout).await,
                Err(unreadable) => Err(unreadable),
            };
            let Err(error) = result else { break };
            let Record { topic, partition, offset, .. } = record;
            tracing::warn!(group = subscribe.group, topic, partition, offset, attempt = number, %error, "handler failed");
            let Some(next) = tries.after(&error, subscribe, clock.now()) else {
                if !bury(&self.shared, record, number, &error, stop).await {
                    return false;
                }
                break;
            };
            tries = next;
            self.note(record.offset, tries);
        }
        self.note(record.offset + 1, Tries::default());
        true
    }

    fn note(&self, offset: i64, tries: Tries) {
        let note = Note { tries, owner: Some(self.shared.id.clone()) };
        *lock(&self.progress) = Some(Progress { offset, note });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn tries_and_the_owner_survive_a_commit() {
        let tries = Tries { attempts: 3, retry_at: Timestamp::from_millis(7), ..Tries::default() };
        let note = Note { tries, owner: Some("m".to_owned()) };
        assert_eq!(Note::parse(&note.metadata().unwrap()), note);
        assert_eq!(Note::default().metadata(), None);
        for foreign in ["", "{}", "{\"attempts\":-1}", "not ours"] {
            assert_eq!(Note::parse(foreign), Note::default(), "{foreign:?}");
        }
        let older = Note::parse("{\"attempts\":3,\"retry_at\":7}");
        assert_eq!(older, Note { tries, owner: None }, "as versions without an owner wrote it");
    }
}
