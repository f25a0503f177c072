//! A member of a consumer group: a thread that polls, hands out records, commits, and gives partitions away.

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

/// A topic and one of its partitions.
type Key = (String, i32);

pub(super) type MemberConsumer = BaseConsumer<Member>;

/// The consumer's own context: what it calls back to.
pub(super) struct Member {
    shared: Shared,
    runtime: runtime::Handle,
    owned: Mutex<HashMap<Key, Slot>>,
    stop: StopSignal,
}

/// How long a poll waits. As long, at most, for a shutdown to begin, or a drained partition to go on.
const POLL: Duration = Duration::from_millis(50);
/// Records that may wait in a partition before it is paused, and how few of them let it go on.
const PAUSE_AT: usize = 256;
const RESUME_AT: usize = 64;
/// Work on a partition that goes to another member may take this long: as long as that one has to wait for it.
const GRACE: Duration = Duration::from_secs(5);
/// For a question to the brokers.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

impl Member {
    pub(super) fn new(shared: Shared, runtime: runtime::Handle, stop: StopSignal) -> Self {
        Self { shared, runtime, owned: Mutex::default(), stop }
    }

    /// Polls on a thread of its own: rebalancing and committing block, and no handler may keep them from it. Resolves when
    /// the member has left the group.
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

    /// Commits what is done, and waits for the answer: this thread has the time, and librdkafka tells nobody else of it.
    fn commit(&self, consumer: &MemberConsumer) {
        let progress = uncommitted(lock(&self.owned).iter());
        if progress.is_empty() {
            return;
        }
        if let Err(error) = consumer.commit(&offsets(&progress), CommitMode::Sync) {
            // The next round tries again; or the partitions are taken from us, and that is right too.
            tracing::debug!(group = self.shared.subscribe.group, %error, "nothing committed for now");
            return;
        }
        let mut owned = lock(&self.owned);
        for (key, progress) in progress {
            if let Some(slot) = owned.get_mut(&key) {
                slot.committed = Some(progress);
            }
        }
    }

    /// Finishes what is at hand and commits it, while the group goes on as ever: in the middle of a rebalance the brokers
    /// take no commits, and only polling ends it.
    fn finish(&self, consumer: &MemberConsumer) {
        lock(&self.owned).values().for_each(Slot::stop);
        let (start, limit) = (now(), self.shared.subscribe.timeout.saturating_add(ANSWER));
        while self.stop.is_graceful() && start.elapsed() < limit {
            let settled = |slot: &Slot| slot.has_ended() && slot.uncommitted().is_none();
            if lock(&self.owned).values().all(settled) {
                return;
            }
            // What comes now is not acknowledged, and so comes again, to somebody else.
            drop(consumer.poll(POLL));
            self.commit(consumer);
        }
    }

    /// Begins work on partitions, where their last owner left them.
    fn assigned(&self, consumer: &MemberConsumer, partitions: &TopicPartitionList) {
        if partitions.count() == 0 || self.stop.is_set() {
            return;
        }
        let committed = consumer.committed_offsets(partitions.clone(), ANSWER).unwrap_or_else(|error| {
            // The records come all the same. Only the attempts at the first one are counted anew.
            tracing::warn!(group = self.shared.subscribe.group, %error, "attempts before the rebalance are not known");
            TopicPartitionList::new()
        });
        let mut owned = lock(&self.owned);
        for element in partitions.elements() {
            let key = (element.topic().to_owned(), element.partition());
            let resume = committed.find_partition(&key.0, key.1).and_then(|element| {
                let Offset::Offset(offset) = element.offset() else { return None };
                // The binding panics at metadata that is no text, and somebody else may have committed.
                let metadata = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned())).unwrap_or_default();
                Some(Progress { offset, tries: Tries::parse(&metadata) })
            });
            tracing::debug!(group = self.shared.subscribe.group, topic = key.0, partition = key.1, "partition taken");
            owned.insert(key, Slot::start(self.shared.clone(), resume, &self.runtime));
        }
    }

    /// Ends work on partitions, and commits what of it is done, if they are still ours.
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
            tracing::warn!(group = self.shared.subscribe.group, %error, "not committed; others do it again");
        }
    }
}

#[derive(Eq, PartialEq)]
enum Poll {
    Ended,
    /// The consumer is of no use any more; another one is.
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
                tracing::warn!(group = member.shared.subscribe.group, %error, "Kafka is in trouble");
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
        // Refused is only what is no offset, and ours come from records.
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
                tracing::warn!(group = self.shared.subscribe.group, %error, "the group cannot rebalance");
            }
        }
    }
}
