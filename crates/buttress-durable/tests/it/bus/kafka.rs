//! Tests of Kafka only: failing brokers, records that are not events, revoked partitions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use buttress_durable::Outbox;
use buttress_durable::bus::{BusError, Delivery, EventBus, HandlerError, KafkaBus};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::Sqlite;
use tokio::sync::mpsc;

use super::brokers::{Mock, config};
use super::{Broker, Notes, number};
use crate::support::{Backend, bounded, event, eventually};

/// Publishes until all are stored, as a relay does: again only what failed.
pub(super) async fn publish_at_last(bus: &dyn EventBus, events: &[buttress_durable::DomainEvent]) {
    let mut left = events.to_vec();
    let publish = async {
        while !left.is_empty() {
            let results = bus.publish_each(&left).await;
            let failed = left.iter().zip(results).filter(|(_, result)| result.is_err());
            left = failed.map(|(event, _)| event.clone()).collect();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), publish).await.expect("published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_neither_loses_nor_doubles_nor_reorders() {
    bounded(async {
        let broker = Mock::start().await;
        let impatient = config(&broker.cluster).publish_timeout(Duration::from_millis(300));
        let (bus, notes) = (KafkaBus::new(impatient).unwrap(), Notes::default());
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        let events: Vec<_> = (0..6).map(|n| broker.event("k", n)).collect();
        publish_at_last(&bus, &events[..2]).await;
        notes.wait_for(2).await;

        broker.cluster.broker_down(-1).unwrap();
        for _ in 0..3 {
            assert!(matches!(bus.publish(&events[2..4]).await, Err(BusError::Unavailable(_))));
        }
        assert!(matches!(bus.publish(&events[2..]).await, Err(BusError::Unavailable(_))));
        broker.cluster.broker_up(-1).unwrap();
        publish_at_last(&bus, &events[2..]).await;
        notes.wait_for(6).await;
        member.shutdown().await;
        assert_eq!(notes.all(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(broker.committed("g", &broker.topic()).await, 6, "what is published again and again is there once");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_fail_now_and_then_are_made_again() {
    bounded(async {
        let broker = Mock::start().await;
        // A real broker rejects a request that has overtaken another and so keeps the order. The
        // mock does not check sequence numbers.
        let one_at_a_time = config(&broker.cluster).option("max.in.flight.requests.per.connection", "1");
        let (bus, notes) = (KafkaBus::new(one_at_a_time).unwrap(), Notes::default());
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        let again = [
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
        ];
        for turn in 0..10 {
            broker.cluster.request_errors(RDKafkaApiKey::Produce, &again);
            broker.cluster.request_errors(RDKafkaApiKey::OffsetCommit, &again[2..]);
            let events: Vec<_> =
                (0..10).map(|n| broker.event(["a", "b", "c"][n % 3], (turn * 10 + n) as i64)).collect();
            publish_at_last(&bus, &events).await;
        }
        notes.wait_for(100).await;
        assert!(notes.first_seen().values().all(|numbers| numbers.is_sorted()), "{notes:?}");
        eventually("all committed", || async { broker.committed("g", &broker.topic()).await == 100 }).await;
        member.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_brokers_nothing_hangs() {
    bounded(async {
        let broker = Mock::start().await;
        broker.cluster.broker_down(-1).unwrap();
        let bus = broker.connect().await;
        let event = broker.event("k", 1);
        assert!(matches!(bus.publish(&[event]).await, Err(BusError::Unavailable(_))));
        let member = bus.subscribe(broker.group("g"), Notes::default().handler()).await.unwrap();
        let status = member.health().status();
        assert!(status.error.is_some() && status.last_success.is_none(), "it keeps trying: {status:?}");
        member.shutdown().await;
        assert!(matches!(broker.bus.dead_letters("g", "t", 1).await, Err(BusError::Unavailable(_))));
        assert!(matches!(broker.bus.redrive("g", "t", 0, 0).await, Err(BusError::Unavailable(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_becomes_a_dead_letter() {
    bounded(async {
        let broker = Mock::start().await;
        let (bus, notes, topic) = (broker.connect().await, Notes::default(), broker.topic());
        let mut plain = ClientConfig::new();
        let plain: BaseProducer = plain.set("bootstrap.servers", broker.cluster.bootstrap_servers()).create().unwrap();
        plain.send(BaseRecord::to(&topic).key("k").payload("no JSON")).unwrap();
        plain.send(BaseRecord::<str, str>::to(&topic).key("k")).unwrap();
        plain.send(BaseRecord::<str, [u8]>::to(&topic).payload(&[0xff, 0x00])).unwrap();
        plain.flush(Duration::from_secs(10)).unwrap();
        bus.publish(&[broker.event("k", 7)]).await.unwrap();
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        notes.wait_for(1).await;
        eventually("three letters", || async { broker.dead_letters("g", &topic).await.len() == 3 }).await;
        member.shutdown().await;
        assert!(broker.dead_letters("g", &topic).await.iter().all(|letter| letter.event.is_none()));
        assert_eq!(broker.committed("g", &topic).await, 4, "the group has gone on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_no_broker_would_take_is_refused() {
    bounded(async {
        let broker = Mock::start().await;
        let bus = KafkaBus::new(config(&broker.cluster).option("message.max.bytes", "2000")).unwrap();
        let huge = buttress_durable::DomainEvent::new(
            broker.topic(),
            "k",
            buttress_durable::Timestamp::default(),
            &"x".repeat(5_000),
        )
        .unwrap();
        let events = [broker.event("k", 1), huge, broker.event("k", 2)];
        match bus.publish(&events).await {
            Err(BusError::Refused { event_id, .. }) => assert_eq!(event_id, events[1].event_id()),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

/// Handlers hang on every partition. Then a second member joins and takes some of them over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_taken_away_is_not_worked_on_and_not_committed() {
    bounded(async {
        let broker = Mock::start().await;
        let bus = broker.connect().await;
        let events: Vec<_> = (0..40).map(|n| broker.event(&format!("key-{n}"), n)).collect();
        bus.publish(&events).await.unwrap();
        let (begun, mut begins) = mpsc::unbounded_channel();
        let working = Arc::new(AtomicU32::new(0));
        let hangs = {
            let working = working.clone();
            move |delivery: Delivery| {
                let (working, begun) = (Working::new(&working), begun.clone());
                async move {
                    let _working = working;
                    begun.send(number(&delivery))?;
                    std::future::pending().await
                }
            }
        };
        let stuck = bus.subscribe(broker.group("g"), Arc::new(hangs)).await.unwrap();
        let mut first = BTreeSet::new();
        while first.len() < 4 {
            first.insert(begins.recv().await.unwrap());
        }
        let notes = Notes::default();
        let other = broker.connect().await.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        eventually("half of the partitions", || async { working.load(Ordering::SeqCst) == 2 }).await;
        // The second member reads them from the start, and the first member's two are still there.
        eventually("what was taken over", || async {
            let taken: BTreeSet<_> = notes.all().into_iter().filter(|number| first.contains(number)).collect();
            taken.len() == 2
        })
        .await;
        other.shutdown().await;
        let handled = notes.first_seen().len() as i64;
        assert_eq!(broker.committed("g", &broker.topic()).await, handled, "only what was handled is committed");
        drop(stuck);
        eventually("nothing", || async { working.load(Ordering::SeqCst) == 0 }).await;
        assert_eq!(broker.committed("g", &broker.topic()).await, handled);
    })
    .await;
}

/// Handlers that take longer than the session, since another thread polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_does_not_cost_the_membership() {
    bounded(async {
        let broker = Mock::start().await;
        let (bus, notes) = (broker.connect().await, Notes::default());
        let slow = {
            let notes = notes.clone();
            move |delivery: Delivery| {
                let notes = notes.clone();
                async move {
                    // In real time, since librdkafka and its mock know no other.
                    tokio::time::sleep(Duration::from_secs(6)).await;
                    notes.take(&delivery);
                    Ok(())
                }
            }
        };
        bus.publish(&[broker.event("k", 1)]).await.unwrap();
        let member = bus.subscribe(broker.group("g"), Arc::new(slow)).await.unwrap();
        eventually("committed", || async { broker.committed("g", &broker.topic()).await == 1 }).await;
        assert_eq!(notes.all(), [1]);
        member.shutdown().await;
    })
    .await;
}

/// Each record arrives before the member has waited for it in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_arrive_one_by_one_are_committed_nevertheless() {
    bounded(async {
        let broker = Mock::start().await;
        let often = config(&broker.cluster).option("fetch.wait.max.ms", "5");
        let (bus, notes) = (KafkaBus::new(often).unwrap(), Notes::default());
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        let publish = async {
            for n in 0.. {
                bus.publish(&[broker.event("k", n)]).await.unwrap();
                // Half as long as the member waits.
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        };
        let committed = eventually("committed", || async { broker.committed("g", &broker.topic()).await > 0 });
        tokio::select! {
            () = publish => {}
            () = committed => {}
        }
        let handled = notes.all().len();
        assert!(handled < 200, "the first commit came after {handled} records");
        member.shutdown().await;
    })
    .await;
}

/// More records than may wait in a partition, so that it is paused and resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_partition_is_paused_and_goes_on() {
    bounded(async {
        let broker = Mock::start().await;
        let (bus, notes) = (broker.connect().await, Notes::default());
        let events: Vec<_> = (0..1_500).map(|n| broker.event("k", n)).collect();
        bus.publish(&events).await.unwrap();
        let patient = {
            let notes = notes.clone();
            move |delivery: Delivery| {
                let notes = notes.clone();
                async move {
                    // Slower than the records arrive, so that they pile up.
                    tokio::time::sleep(Duration::from_micros(500)).await;
                    notes.take(&delivery);
                    Ok(())
                }
            }
        };
        let member = bus.subscribe(broker.group("g"), Arc::new(patient)).await.unwrap();
        eventually("all of them", || async { notes.all().len() >= 1_500 }).await;
        member.shutdown().await;
        assert!(notes.all().into_iter().eq(0..1_500), "once each, and in order");
    })
    .await;
}

struct Working(Arc<AtomicU32>);

impl Working {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns the number of records in each partition.
async fn records(broker: &Mock, topic: &str, partitions: i32) -> Vec<i64> {
    let (brokers, topic) = (broker.cluster.bootstrap_servers(), topic.to_owned());
    let ask = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let end = |partition| Some(consumer.fetch_watermarks(&topic, partition, Duration::from_secs(1)).ok()?.1);
        (0..partitions).map(|partition| end(partition).unwrap_or(-1)).collect()
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_leader_holds_back_only_its_own_keys() {
    bounded(async {
        let broker = Mock::start().await;
        broker.cluster.create_topic("T", 4, 3).unwrap();
        broker.cluster.partition_leader("T", 0, None).unwrap();
        let home = Sqlite::create().await;
        let db = Sqlite::connect(&home).await;
        let outbox = Outbox::new(db.clone()).with_poll(Duration::from_millis(5));
        let bus = KafkaBus::new(config(&broker.cluster).publish_timeout(Duration::from_millis(1_500))).unwrap();
        let mut tx = db.begin().await.unwrap();
        for n in 0..300 {
            outbox.append(&mut tx, &event("T", &format!("k{n}"), n)).await.unwrap();
        }
        tx.commit().await.unwrap();
        let relay = outbox.relay(Arc::new(bus));
        let unsent = async || i64::try_from(outbox.backlog().await.unwrap().unsent).unwrap();
        // A quarter of the keys is stuck. One publication holds less than the other three.
        eventually("the other partitions", || async { unsent().await < 120 }).await;
        eventually("all of them", || async {
            let others: i64 = records(&broker, "T", 4).await[1..].iter().sum();
            others + unsent().await == 300 && unsent().await < 120
        })
        .await;
        broker.cluster.partition_leader("T", 0, Some(1)).unwrap();
        eventually("everything", || async { unsent().await == 0 }).await;
        relay.shutdown().await;
        let records = records(&broker, "T", 4).await;
        assert!(records[0] > 30, "keys of the stuck partition: {records:?}");
        assert_eq!(records.iter().sum::<i64>(), 300, "each event once: {records:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_too_large_is_cut_and_can_be_redriven_nevertheless() {
    bounded(async {
        let broker = Mock::start().await;
        let (topic, notes) = (broker.topic(), Notes::default());
        let bus = KafkaBus::new(config(&broker.cluster).option("message.max.bytes", "4000")).unwrap();
        let sized = |size: usize| {
            let data = "x".repeat(size);
            buttress_durable::DomainEvent::new(&topic, "k", buttress_durable::Timestamp::default(), &data).unwrap()
        };
        // With its cause it is too large; with a short cause it is not; and not even then.
        let events = [sized(3_200), sized(3_650)];
        bus.publish(&events).await.unwrap();
        bus.publish(&[broker.event("k", 3)]).await.unwrap();
        let fixed = Arc::new(AtomicU32::new(0));
        let handler = {
            let (notes, fixed) = (notes.clone(), fixed.clone());
            move |delivery: Delivery| {
                let (notes, fixed) = (notes.clone(), fixed.clone());
                async move {
                    let Ok(number) = delivery.event.decode::<i64>() else {
                        let long = "y".repeat(1_000);
                        let fixed = fixed.load(Ordering::SeqCst) == 1;
                        notes.0.lock().unwrap().push(("large".to_owned(), if fixed { 10 } else { 0 }));
                        return if fixed { Ok(()) } else { Err(HandlerError::reject(long)) };
                    };
                    notes.0.lock().unwrap().push(("k".to_owned(), number));
                    Ok(())
                }
            }
        };
        let member = bus.subscribe(broker.group("g"), Arc::new(handler)).await.unwrap();
        eventually("the event behind them", || async { notes.all().contains(&3) }).await;
        let letters = bus.dead_letters("g", &topic, 9).await.unwrap();
        assert_eq!(letters.len(), 2);
        assert_eq!((letters[0].event.as_ref(), letters[1].event.as_ref()), (Some(&events[0]), None));
        assert!(letters.iter().all(|letter| letter.cause.error == "y".repeat(100)));
        assert_eq!(letters.iter().map(|letter| letter.cause.offset).collect::<Vec<_>>(), [0, 1]);
        fixed.store(1, Ordering::SeqCst);
        bus.redrive("g", &topic, letters[1].partition, letters[1].offset).await.unwrap();
        eventually("the original", || async { notes.all().contains(&10) }).await;
        member.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_crashed_costs_the_event_at_hand_an_attempt() {
    bounded(async {
        let broker = Mock::start().await;
        let (bus, topic) = (broker.connect().await, broker.topic());
        bus.publish(&[broker.event("k", 1), broker.event("k", 2)]).await.unwrap();
        // As a member leaves it that does not give its partitions back.
        let (brokers, name) = (broker.cluster.bootstrap_servers(), topic.clone());
        let commit = move || {
            let mut config = ClientConfig::new();
            let consumer: BaseConsumer =
                config.set("bootstrap.servers", brokers).set("group.id", "g").create().unwrap();
            let metadata = consumer.fetch_metadata(Some(&name), Duration::from_secs(10)).unwrap();
            let mut offsets = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                let mut element = offsets.add_partition(&name, partition.id());
                element.set_offset(Offset::Offset(0)).unwrap();
                element.set_metadata(r#"{"attempts":1,"retry_at":0,"owner":"gone"}"#);
            }
            consumer.commit(&offsets, CommitMode::Sync).unwrap();
        };
        tokio::task::spawn_blocking(commit).await.unwrap();
        let (seen, mut handled) = mpsc::unbounded_channel();
        let handler = move |delivery: Delivery| {
            seen.send((number(&delivery), delivery.attempt)).unwrap();
            async { Ok(()) }
        };
        let member = bus.subscribe(broker.group("g"), Arc::new(handler.clone())).await.unwrap();
        assert_eq!((handled.recv().await, handled.recv().await), (Some((1, 3)), Some((2, 1))));
        member.shutdown().await;
        bus.publish(&[broker.event("k", 3)]).await.unwrap();
        let next = bus.subscribe(broker.group("g"), Arc::new(handler)).await.unwrap();
        assert_eq!(handled.recv().await, Some((3, 1)), "a member that was shut down has given everything back");
        next.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_is_seen_by_the_brokers_only() {
    bounded(async {
        let broker = Mock::start().await;
        let bus = |prefix: &str| KafkaBus::new(config(&broker.cluster).prefix(prefix)).unwrap();
        let (staging, prod, topic) = (bus("staging."), bus("prod."), broker.topic());
        let (seen, mut handled) = mpsc::unbounded_channel();
        let rejects = move |delivery: Delivery| {
            seen.send((delivery.topic.clone(), number(&delivery))).unwrap();
            async { Err::<(), _>(HandlerError::reject("never")) }
        };
        prod.publish(&[broker.event("k", 1)]).await.unwrap();
        staging.publish(&[broker.event("k", 2)]).await.unwrap();
        let member = staging.subscribe(broker.group("g"), Arc::new(rejects)).await.unwrap();
        assert_eq!(handled.recv().await, Some((topic.clone(), 2)));
        eventually("a letter", || async { staging.dead_letters("g", &topic, 9).await.unwrap().len() == 1 }).await;
        let letter = &staging.dead_letters("g", &topic, 9).await.unwrap()[0];
        assert_eq!(letter.cause.topic, topic);
        assert!(prod.dead_letters("g", &topic, 9).await.unwrap().is_empty());
        staging.redrive("g", &topic, letter.partition, letter.offset).await.unwrap();
        assert_eq!(handled.recv().await, Some((topic.clone(), 2)));
        assert!(staging.lag("g").await.unwrap().iter().all(|lag| lag.topic == topic));
        assert!(prod.lag("g").await.unwrap().is_empty());
        member.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_starts_while_the_brokers_are_down() {
    bounded(async {
        let broker = Mock::start().await;
        let (bus, notes) = (broker.connect().await, Notes::default());
        bus.publish(&[broker.event("k", 1)]).await.unwrap();
        broker.cluster.broker_down(-1).unwrap();
        let member = broker.connect().await.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        assert!(member.health().status().error.is_some());
        broker.cluster.broker_up(-1).unwrap();
        notes.wait_for(1).await;
        eventually("it is well", || async { member.health().status().error.is_none() }).await;
        member.shutdown().await;
    })
    .await;
}
