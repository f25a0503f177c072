//! A member of a consumer group: a thread that polls, distributes records, commits, and hands
//! partitions over.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::runtime;
use tokio::sync::oneshot;

use super::context;
use super::partition::{Progress, Shared, Slot, Tries};
use super::producer::lock;
use super::record::Record;
use super::stop_signal::StopSignal;

/// A topic and the number of a partition.
type Key = (String, i32);

pub(super) type MemberConsumer = BaseConsumer<Member>;

/// The consumer's context, whose callbacks librdkafka calls on rebalances.
pub(super) struct Member {
    shared: Shared,
    runtime: runtime::Handle,
    owned: Mutex<HashMap<Key, Slot>>,
    stop: StopSignal,
}

/// Timeout of one poll. It also bounds how late a shutdown begins and a drained partition resumes.
const POLL: Duration = Duration::from_millis(50);
/// A partition is paused when this many of its records wait, and resumed when few are left.
const PAUSE_AT: usize = 256;
const RESUME_AT: usize = 64;
/// Time for handlers of a revoked partition to finish. Its next owner waits for that long.
const GRACE: Duration = Duration::from_secs(5);
/// Timeout of a request to the brokers.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Member {
    pub(super) fn new(shared: Shared, runtime: runtime::Handle, stop: StopSignal) -> Self {
        Self { shared, runtime, owned: Mutex::default(), stop }
    }

    /// Polls on a dedicated thread, because rebalancing and committing block and must not wait for
    /// handlers. The receiver resolves when the member has left the group.
    pub(super) fn run(
        consumer: MemberConsumer,
        reopen: impl Fn() -> Option<MemberConsumer> + Send + 'static,
    ) -> std::io::Result<oneshot::Receiver<()>> {
        let (left, gone) = oneshot::channel();
        let work = move || {
            let _left = left;
            let mut consumer = Some(consumer);
            while let Some(current) = consumer.take() {
                let stop = current.context().stop.clone();
                if poll(&current) == Poll::Ended {
                    return;
                }
                drop(current);
                while consumer.is_none() && !stop.is_set() {
                    thread::sleep(Duration::from_secs(1));
                    consumer = reopen();
                }
            }
        };
        thread::Builder::new().name("buttress-kafka".to_owned()).spawn(work)?;
        Ok(gone)
    }

    fn take(&self, consumer: &MemberConsumer, record: Record) {
        let mut owned = lock(&self.owned);
        let key = (record.topic.clone(), record.partition);
        let Some(slot) = owned.get_mut(&key) else { return };
        slot.push(record);
        if slot.waiting() >= PAUSE_AT && !slot.paused {
            slot.paused = consumer.pause(&list([&key])).is_ok();
        }
    }

    fn resume(&self, consumer: &MemberConsumer) {
        for (key, slot) in lock(&self.owned).iter_mut() {
            if slot.paused && slot.waiting() <= RESUME_AT {
                slot.paused = consumer.resume(&list([key])).is_err();
            }
        }
    }

    /// Commits the progress of all partitions and waits for the answer, to know what has been
    /// committed. This thread may block.
    fn commit(&self, consumer: &MemberConsumer) {
        let progress = uncommitted(lock(&self.owned).iter());
        if progress.is_empty() {
            return;
        }
        if let Err(error) = consumer.commit(&offsets(&progress), CommitMode::Sync) {
            // The next round tries again. If the partitions were revoked meanwhile, the commit must
            // fail.
            tracing::debug!(group = self.shared.subscribe.group, %error, "cannot commit; retrying");
            return;
        }
        let mut owned = lock(&self.owned);
        for (key, progress) in progress {
            if let Some(slot) = owned.get_mut(&key) {
                slot.committed = Some(progress);
            }
        }
    }

    /// Lets handlers finish the records at hand and commits them, while it keeps polling: brokers
    /// reject commits during a rebalance, and only polling completes one.
    fn finish(&self, consumer: &MemberConsumer) {
        lock(&self.owned).values().for_each(Slot::stop);
        let (start, limit) = (now(), self.shared.subscribe.timeout.saturating_add(REQUEST_TIMEOUT));
        while self.stop.is_graceful() && start.elapsed() < limit {
            let settled = |slot: &Slot| slot.has_ended() && slot.uncommitted().is_none();
            if lock(&self.owned).values().all(settled) {
                return;
            }
            // Not acknowledged, so it is delivered again to another member.
            drop(consumer.poll(POLL));
            self.commit(consumer);
        }
    }

    /// Starts a task for each assigned partition, from the committed progress.
    fn assigned(&self, consumer: &MemberConsumer, partitions: &TopicPartitionList) {
        if partitions.count() == 0 || self.stop.is_set() {
            return;
        }
        let committed = consumer.committed_offsets(partitions.clone(), REQUEST_TIMEOUT).unwrap_or_else(|error| {
            // Records are delivered anyway. Only the count of attempts at the first one starts
            // again.
            tracing::warn!(group = self.shared.subscribe.group, %error, "cannot read the committed attempts; counting from zero");
            TopicPartitionList::new()
        });
        let mut owned = lock(&self.owned);
        for element in partitions.elements() {
            let key = (element.topic().to_owned(), element.partition());
            let resume = committed.find_partition(&key.0, key.1).and_then(|element| {
                let Offset::Offset(offset) = element.offset() else { return None };
                // The binding panics if the metadata is not UTF-8, and another client may have
                // written it.
                let metadata = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned())).unwrap_or_default();
                Some(Progress { offset, tries: Tries::parse(&metadata) })
            });
            tracing::debug!(
                group = self.shared.subscribe.group,
                topic = key.0,
                partition = key.1,
                "partition assigned"
            );
            owned.insert(key, Slot::start(self.shared.clone(), resume, &self.runtime));
        }
    }

    /// Stops the tasks of revoked partitions and commits their progress, if this member still owns
    /// them.
    fn revoked(&self, consumer: &MemberConsumer, partitions: &TopicPartitionList) {
        let slots: Vec<_> = {
            let mut owned = lock(&self.owned);
            let elements = partitions.elements();
            let keys = elements.iter().map(|element| (element.topic().to_owned(), element.partition()));
            keys.filter_map(|key| owned.remove_entry(&key)).collect()
        };
        let lost = consumer.assignment_lost();
        let grace = if lost || self.stop.is_abort() { Duration::ZERO } else { GRACE };
        slots.iter().for_each(|(_, slot)| slot.stop());
        let start = now();
        for (_, slot) in &slots {
            slot.end(grace.saturating_sub(start.elapsed()));
        }
        let progress = uncommitted(slots.iter().map(|(key, slot)| (key, slot)));
        if lost || progress.is_empty() {
            return;
        }
        if let Err(error) = consumer.commit(&offsets(&progress), CommitMode::Sync) {
            tracing::warn!(group = self.shared.subscribe.group, %error, "cannot commit a revoked partition; its next owner repeats the events");
        }
    }
}

#[derive(Eq, PartialEq)]
enum Poll {
    Ended,
    /// The consumer cannot be used any more and must be replaced.
    Broken,
}

fn poll(consumer: &MemberConsumer) -> Poll {
    let member = consumer.context();
    let mut handed_out = 0;
    while !member.stop.is_set() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                member.take(consumer, Record::detach(&message));
                handed_out += 1;
            }
            Some(Err(error)) => {
                tracing::warn!(group = member.shared.subscribe.group, %error, "cannot poll Kafka");
                if let KafkaError::MessageConsumptionFatal(_) = error {
                    return Poll::Broken;
                }
            }
            None => handed_out = PAUSE_AT,
        }
        if handed_out >= PAUSE_AT {
            handed_out = 0;
            member.commit(consumer);
            member.resume(consumer);
        }
    }
    member.finish(consumer);
    Poll::Ended
}

#[expect(clippy::disallowed_methods, reason = "the thread is none of tokio's, and so its clock is none either")]
fn now() -> Instant {
    Instant::now()
}

fn list<'a>(keys: impl IntoIterator<Item = &'a Key>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in keys {
        list.add_partition(topic, *partition);
    }
    list
}

fn uncommitted<'a>(slots: impl Iterator<Item = (&'a Key, &'a Slot)>) -> Vec<(Key, Progress)> {
    slots.filter_map(|(key, slot)| Some((key.clone(), slot.uncommitted()?))).collect()
}

fn offsets(progress: &[(Key, Progress)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), Progress { offset, tries }) in progress {
        let mut element = list.add_partition(topic, *partition);
        // Fails only for a value that is not an offset. These are offsets of records.
        let _ = element.set_offset(Offset::Offset(*offset));
        if let Some(metadata) = tries.metadata() {
            element.set_metadata(metadata);
        }
    }
    list
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::complain(&error, reason);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &MemberConsumer, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assigned(consumer, partitions),
            Rebalance::Revoke(partitions) => self.revoked(consumer, partitions),
            Rebalance::Error(error) => {
                tracing::warn!(group = self.shared.subscribe.group, %error, "rebalance failed");
            }
        }
    }
}
