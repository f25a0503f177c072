//! Brokers that have forgotten the producer, or everything. The bus goes on in the same process.

use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use buttress_durable::bus::{EventBus, KafkaBus, KafkaConfig, Start, Subscribe};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::brokers::{Mock, config};
use super::kafka::publish_at_last;
use super::{Broker, Notes};
use crate::support::{bounded, event, eventually, offered};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_the_brokers_have_forgotten_is_replaced() {
    bounded(async {
        let broker = Mock::start().await;
        let bus = KafkaBus::new(config(&broker.cluster).publish_timeout(Duration::from_secs(1))).unwrap();
        let notes = Notes::default();
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        let forgotten = [
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        ];
        let mut next = 0;
        for error in forgotten {
            // The producer is known by now, and then it is not.
            for errors in [&[][..], &[error], &[error; 3]] {
                broker.cluster.request_errors(RDKafkaApiKey::Produce, errors);
                let events: Vec<_> = (next..next + 10).map(|n| broker.event(["a", "b"][n as usize % 2], n)).collect();
                publish_at_last(&bus, &events).await;
                next += 10;
            }
        }
        notes.wait_for(next as usize).await;
        member.shutdown().await;
        assert!(notes.first_seen().values().all(|numbers| numbers.is_sorted()), "{notes:?}");
        assert_eq!(notes.all().len(), next as usize, "each once: what was rejected was not stored");
    })
    .await;
}

/// Tests with a broker that they start and kill themselves.
mod on_kafka_command {
    use super::*;

    /// The broker loses its records and what it knows of producers, under load.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_comes_back_empty_is_published_to_again() {
        let Some(command) = offered("BUTTRESS_TEST_KAFKA_COMMAND") else { return };
        bounded(async {
            let mut broker = Volatile::start(command);
            let bus = || {
                let config = KafkaConfig::new(format!("127.0.0.1:{}", broker.port));
                KafkaBus::new(config.publish_timeout(Duration::from_secs(1))).unwrap()
            };
            let (publisher, consumer) = (bus(), bus());
            let (published, done) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
            let load = tokio::spawn(publish_until(done.clone(), publisher, published.clone()));
            let mut from = 0;
            for _ in 0..4 {
                eventually("events", || async { published.load(Ordering::SeqCst) >= from + 50 }).await;
                broker.replace();
                from = published.load(Ordering::SeqCst);
            }
            eventually("events", || async { published.load(Ordering::SeqCst) >= from + 50 }).await;
            done.store(true, Ordering::SeqCst);
            load.await.unwrap();
            let (to, notes) = (published.load(Ordering::SeqCst), Notes::default());
            let group = Subscribe::new("g", ["OrderCreated"]).unwrap().start(Start::Earliest);
            let member = consumer.subscribe(group, notes.handler()).await.unwrap();
            // The batch under way at the end of a life may be in the log of the last one or not.
            eventually("the last life", || async { (from + 5..to).all(|n| notes.all().contains(&n)) }).await;
            member.shutdown().await;
            assert!(notes.first_seen().values().all(|numbers| numbers.is_sorted()), "{notes:?}");
        })
        .await;
    }
}

/// Publishes as a relay does, five events at a time.
async fn publish_until(done: Arc<AtomicBool>, bus: KafkaBus, published: Arc<AtomicI64>) {
    while !done.load(Ordering::SeqCst) {
        let next = published.load(Ordering::SeqCst);
        let events: Vec<_> = (next..next + 5).map(|n| event("OrderCreated", ["a", "b"][n as usize % 2], n)).collect();
        publish_at_last(&bus, &events).await;
        published.fetch_add(5, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A broker in a process of its own, which keeps nothing.
struct Volatile {
    command: String,
    port: u16,
    process: Child,
}

impl Volatile {
    /// Starts it with a shell command that finds the port of 127.0.0.1 in `PORT`.
    fn start(command: String) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = spawn(&command, port);
        Self { command, port, process }
    }

    /// Kills it, and starts another at the same address.
    fn replace(&mut self) {
        self.end();
        self.process = spawn(&self.command, self.port);
    }

    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Volatile {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(command: &str, port: u16) -> Child {
    // In place of the shell, so that the broker itself is killed.
    Command::new("sh").args(["-c", &format!("exec {command}")]).env("PORT", port.to_string()).spawn().unwrap()
}
