//! A member of a consumer group: a thread that polls, distributes records, commits, and hands
//! partitions over.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::context;
use super::partition::{Note, Progress, Resume, Shared, Slot};
use super::producer::lock;
use super::record::Record;
use super::stop_signal::StopSignal;
use crate::clock::monotonic;

/// A topic and the number of a partition.
type Key = (String, i32);

pub(super) type MemberConsumer = BaseConsumer<Member>;

/// The consumer's context, whose callbacks librdkafka calls on rebalances.
pub(super) struct Member {
    shared: Shared,
    runtime: runtime::Handle,
    /// By the topic's name on the brokers.
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
/// A member that has heard nothing from the brokers for this time asks them something.
const PROBE: Duration = Duration::from_secs(5);
/// Timeout of such a probe, and of asking for the ends of a partition during a rebalance.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a consumer is created again.
const REOPEN: Duration = Duration::from_secs(1);

impl Member {
    pub(super) fn new(shared: Shared, runtime: runtime::Handle, stop: StopSignal) -> Self {
        Self { shared, runtime, owned: Mutex::default(), stop }
    }

    /// Polls on a dedicated thread, because rebalancing and committing block and must not wait for
    /// handlers. Creates the consumer with `open` if there is none, or if it has failed. The
    /// receiver resolves when the member has left the group.
    pub(super) fn run(
        mut consumer: Option<MemberConsumer>,
        open: impl Fn() -> Option<MemberConsumer> + Send + 'static,
        stop: StopSignal,
    ) -> std::io::Result<oneshot::Receiver<()>> {
        let (left, gone) = oneshot::channel();
        let work = move || {
            let _left = left;
            while !stop.is_set() || consumer.is_some() {
                match consumer.take() {
                    Some(current) if supervised(&current) == Poll::Ended => return,
                    // Also drops a broken one.
                    _ => pause(&stop),
                }
                if !stop.is_set() {
                    // A panic in it must not end the thread either.
                    consumer = catch_unwind(AssertUnwindSafe(&open)).unwrap_or_default();
                }
            }
        };
        thread::Builder::new().name("buttress-kafka".to_owned()).spawn(work)?;
        Ok(gone)
    }

    fn take(&self, consumer: &MemberConsumer, message: &impl Message) {
        let key = (message.topic().to_owned(), message.partition());
        let begins = lock(&self.owned).get(&key).is_some_and(|slot| slot.begin(message.offset()));
        if begins {
            self.commit(consumer);
        }
        let mut owned = lock(&self.owned);
        let Some(slot) = owned.get_mut(&key) else { return };
        let topic = self.shared.config.local(&key.0).unwrap_or(&key.0);
        slot.push(Record::detach(message, topic));
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
            self.shared.health.failed(&error);
            // The next round tries again. If the partitions were revoked meanwhile, the commit must
            // fail.
            tracing::debug!(group = self.shared.subscribe.group, %error, "cannot commit; retrying");
            return;
        }
        self.shared.health.succeeded();
        let owned = lock(&self.owned);
        for (key, progress) in progress {
            if let Some(slot) = owned.get(&key) {
                slot.confirm(progress);
            }
        }
    }

    /// Lets handlers finish the records at hand and commits them, while it keeps polling: brokers
    /// reject commits during a rebalance, and only polling completes one.
    fn finish(&self, consumer: &MemberConsumer) {
        lock(&self.owned).values().for_each(Slot::stop);
        let (start, limit) = (monotonic(), self.shared.subscribe.timeout.saturating_add(REQUEST_TIMEOUT));
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
            let committed = committed.find_partition(&key.0, key.1).and_then(|element| {
                let Offset::Offset(offset) = element.offset() else { return None };
                Some(Progress { offset, note: Note::of(&element) })
            });
            let crashed = committed.as_ref().is_some_and(|progress| self.has_crashed(consumer, &key, progress));
            let resume = Resume { committed, crashed };
            tracing::debug!(
                group = self.shared.subscribe.group,
                topic = key.0,
                partition = key.1,
                "partition assigned"
            );
            owned.insert(key, Slot::start(self.shared.clone(), resume, &self.runtime));
        }
        self.shared.health.succeeded();
    }

    /// Returns whether the member that committed this progress has ended while it was at the next
    /// record: it has not given the partition back, and the record exists and did not wait for its
    /// next attempt.
    fn has_crashed(&self, consumer: &MemberConsumer, (topic, partition): &Key, progress: &Progress) -> bool {
        let others = progress.note.owner.as_ref().is_some_and(|owner| *owner != self.shared.id);
        let was_due = progress.note.tries.pause(&self.shared.subscribe, self.shared.clock.now()).is_zero();
        let end = || consumer.fetch_watermarks(topic, *partition, SHORT_TIMEOUT);
        others && was_due && end().is_ok_and(|(_, end)| progress.offset < end)
    }

    /// Asks the brokers something, so that the member's health is known while nothing happens.
    fn probe(&self, consumer: &MemberConsumer) {
        let topic = self.shared.subscribe.topics.first().map(|topic| self.shared.config.wire(topic));
        match consumer.fetch_metadata(topic.as_deref(), SHORT_TIMEOUT) {
            Ok(_) => self.shared.health.succeeded(),
            Err(error) => self.shared.health.failed(&error),
        }
    }

    /// Whether the task of a partition has ended by itself, which only a bug can cause.
    fn has_lost_a_task(&self) -> bool {
        lock(&self.owned).values().any(Slot::has_ended)
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
        let start = monotonic();
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

/// Polls until the member stops, or its consumer has to be replaced.
fn supervised(consumer: &MemberConsumer) -> Poll {
    catch_unwind(AssertUnwindSafe(|| poll(consumer))).unwrap_or_else(|_| {
        let health = &consumer.context().shared.health;
        health.failed(&KafkaError::Canceled);
        tracing::error!("the thread of a Kafka consumer panicked; starting it again");
        Poll::Broken
    })
}

fn pause(stop: &StopSignal) {
    let start = monotonic();
    while !stop.is_set() && start.elapsed() < REOPEN {
        thread::sleep(POLL);
    }
}

fn poll(consumer: &MemberConsumer) -> Poll {
    let member = consumer.context();
    let (mut handed_out, mut heard, mut round): (usize, Instant, Instant) = (0, monotonic(), monotonic());
    while !member.stop.is_set() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                member.take(consumer, &message);
                handed_out += 1;
                heard = monotonic();
            }
            Some(Err(error)) => {
                member.shared.health.failed(&error);
                tracing::warn!(group = member.shared.subscribe.group, %error, "cannot poll Kafka");
                if let KafkaError::MessageConsumptionFatal(_) = error {
                    return Poll::Broken;
                }
            }
            None => handed_out = PAUSE_AT,
        }
        // Also by time: records that arrive one by one leave no pause in which to commit.
        if handed_out >= PAUSE_AT || round.elapsed() >= POLL {
            (handed_out, round) = (0, monotonic());
            member.commit(consumer);
            member.resume(consumer);
            if member.has_lost_a_task() {
                tracing::error!(
                    group = member.shared.subscribe.group,
                    "the task of a partition panicked; starting again"
                );
                return Poll::Broken;
            }
        }
        if heard.elapsed() >= PROBE {
            member.probe(consumer);
            heard = monotonic();
        }
    }
    member.finish(consumer);
    Poll::Ended
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
    for ((topic, partition), Progress { offset, note }) in progress {
        let mut element = list.add_partition(topic, *partition);
        // Fails only for a value that is not an offset. These are offsets of records.
        let _ = element.set_offset(Offset::Offset(*offset));
        if let Some(metadata) = note.metadata() {
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
        // librdkafka calls this, and a panic must not unwind into it.
        let outcome = catch_unwind(AssertUnwindSafe(|| match rebalance {
            Rebalance::Assign(partitions) => self.assigned(consumer, partitions),
            Rebalance::Revoke(partitions) => self.revoked(consumer, partitions),
            Rebalance::Error(error) => {
                self.shared.health.failed(error);
                tracing::warn!(group = self.shared.subscribe.group, %error, "rebalance failed");
            }
        }));
        if outcome.is_err() {
            tracing::error!(group = self.shared.subscribe.group, "a rebalance panicked");
        }
    }
}
