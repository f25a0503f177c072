//! What a dead letter says on Kafka. `log_settings` has the same test for the embedded log.

use std::sync::Arc;

use buttress_durable::bus::{Delivery, EventBus, HandlerError, KafkaBus};

use super::Broker;
use super::brokers::{Mock, config};
use crate::support::{bounded, clock, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_says_where_why_and_when() {
    bounded(async {
        let (broker, hand) = (Mock::start().await, clock());
        let bus = KafkaBus::new(config(&broker.cluster)).unwrap().with_clock(hand.clock());
        let (topic, events) = (broker.topic(), [broker.event("k", 1), broker.event("k", 2)]);
        bus.publish(&events).await.unwrap();
        let rejects = |_: Delivery| async { Err::<(), _>(HandlerError::reject("no such customer")) };
        let member = bus.subscribe(broker.group("g"), Arc::new(rejects)).await.unwrap();
        let letters = async |limit| bus.dead_letters("g", &topic, limit).await.unwrap();
        eventually("both letters", || async { letters(9).await.len() == 2 }).await;
        member.shutdown().await;
        let all = letters(9).await;
        for (n, letter) in all.iter().enumerate() {
            let cause = &letter.cause;
            assert_eq!(letter.event.as_ref(), Some(&events[n]), "oldest first");
            assert_eq!((cause.group.as_str(), &cause.topic, cause.attempts), ("g", &topic, 1));
            assert_eq!((cause.offset, cause.partition), (n as i64, all[0].cause.partition));
            assert_eq!((cause.error.as_str(), cause.failed_at), ("no such customer", hand.clock().now()));
        }
        let first = letters(1).await;
        assert_eq!((first.len(), first[0].event.as_ref()), (1, Some(&events[0])));
    })
    .await;
}
