use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::bus::{DeadLettered, Delivery, HandlerError, Start};
use futures_util::FutureExt;
use tokio::sync::mpsc;

use super::{Broker, Notes, later, number, on_every_broker};
use crate::support::{clock, eventually};

on_every_broker!(
    a_group_handles_each_event_and_in_order_per_key,
    every_group_gets_every_event,
    a_handler_that_fails_or_panics_is_never_acknowledged,
    what_cannot_be_handled_becomes_a_dead_letter_and_can_be_sent_back,
    a_new_group_may_begin_with_the_latest,
    a_member_that_goes_in_the_middle_of_an_event_leaves_it_to_others,
    a_member_shut_down_finishes_the_event_at_hand,
    a_group_goes_on_where_it_was,
    failed_attempts_are_counted_across_members,
    what_is_away_costs_no_attempt,
    an_event_of_a_later_version_waits_for_a_program_that_knows_it,
    what_waits_for_a_group_is_counted,
);

/// Longer than any test.
const PAUSE: Duration = Duration::from_secs(3_600);

async fn a_group_handles_each_event_and_in_order_per_key<B: Broker>() {
    let broker = B::start().await;
    let (bus, notes) = (broker.connect().await, Notes::default());
    let events: Vec<_> = (0..100).map(|n| broker.event(&format!("key-{}", n % 10), n)).collect();
    let (early, late) = events.split_at(50);
    let first = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    bus.publish(early).await.unwrap();
    notes.wait_for(1).await;
    let second = broker.connect().await.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    let third = broker.connect().await.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    bus.publish(late).await.unwrap();
    notes.wait_for(100).await;
    for member in [first, second, third] {
        member.shutdown().await;
    }
    for (key, numbers) in notes.first_seen() {
        assert!(numbers.is_sorted() && numbers.len() == 10, "{key}: {numbers:?}");
    }
    assert_eq!(broker.committed(&broker.name("g"), &broker.topic()).await, 100);
    broker.end().await;
}

async fn every_group_gets_every_event<B: Broker>() {
    let broker = B::start().await;
    let (bus, one, other) = (broker.connect().await, Notes::default(), Notes::default());
    bus.publish(&[broker.event("k", 1), broker.event("k", 2)]).await.unwrap();
    let first = bus.subscribe(broker.group("one"), one.handler()).await.unwrap();
    let second = bus.subscribe(broker.group("other"), other.handler()).await.unwrap();
    one.wait_for(2).await;
    other.wait_for(2).await;
    first.shutdown().await;
    second.shutdown().await;
    broker.end().await;
}

async fn a_handler_that_fails_or_panics_is_never_acknowledged<B: Broker>() {
    let broker = B::start().await;
    let bus = broker.connect().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handled: Arc<Mutex<Vec<(i64, u32)>>> = Arc::default();
    let handler = {
        let (calls, handled) = (calls.clone(), handled.clone());
        move |delivery: Delivery| {
            let (calls, handled) = (calls.clone(), handled.clone());
            async move {
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(HandlerError::retry("not yet")),
                    1 => std::panic::resume_unwind(Box::new("a bug")),
                    2 => std::future::pending().await,
                    _ => {
                        handled.lock().unwrap().push((number(&delivery), delivery.attempt));
                        Ok(())
                    }
                }
            }
        }
    };
    bus.publish(&[broker.event("k", 1), broker.event("k", 2)]).await.unwrap();
    let subscribe = broker.group("g").timeout(Duration::from_millis(50));
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    eventually("both events", || async { handled.lock().unwrap().len() == 2 }).await;
    assert_eq!(*handled.lock().unwrap(), [(1, 4), (2, 1)], "the second waits for the first");
    member.shutdown().await;
    broker.end().await;
}

async fn what_cannot_be_handled_becomes_a_dead_letter_and_can_be_sent_back<B: Broker>() {
    let broker = B::start().await;
    let bus = broker.connect().await;
    let broken = Arc::new(AtomicU32::new(1));
    let notes = Notes::default();
    let handler = {
        let (broken, notes) = (broken.clone(), notes.clone());
        move |delivery: Delivery| {
            let (broken, notes) = (broken.clone(), notes.clone());
            async move {
                let number = number(&delivery);
                if broken.load(Ordering::SeqCst) == 1 && number < 3 {
                    let error = format!("cannot do {number}");
                    return Err(if number == 1 { HandlerError::retry(error) } else { HandlerError::reject(error) });
                }
                notes.take(&delivery);
                Ok(())
            }
        }
    };
    let events = [broker.event("k", 1), broker.event("k", 2), broker.event("k", 3)];
    bus.publish(&events).await.unwrap();
    let subscribe = broker.group("g").attempts(NonZeroU32::new(3).unwrap());
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    eventually("the third event", || async { notes.all() == [3] }).await;
    let (group, topic) = (&broker.name("g"), &broker.topic());
    let letters = broker.dead_letters(group, topic).await;
    let tries: Vec<_> = letters.iter().map(|letter| (letter.cause.attempts, letter.cause.error.as_str())).collect();
    assert_eq!(tries, [(3, "cannot do 1"), (1, "cannot do 2")]);
    assert_eq!(letters[0].event.as_ref(), Some(&events[0]));

    // Redriven while the handler still fails, it is a new letter; redriven after the fix, it is
    // handled.
    let place = |letter: &DeadLettered| (letter.partition, letter.offset);
    broker.redrive(group, topic, place(&letters[0])).await.unwrap();
    eventually("the new letter", || async {
        let letters = broker.dead_letters(group, topic).await;
        letters.len() == 2 && letters[0].cause.error == "cannot do 2"
    })
    .await;
    assert!(broker.redrive(group, topic, place(&letters[0])).await.is_err(), "the old letter is gone");
    broken.store(0, Ordering::SeqCst);
    let letters = broker.dead_letters(group, topic).await;
    broker.redrive(group, topic, place(&letters[1])).await.unwrap();
    eventually("the first event", || async { notes.all() == [3, 1] }).await;
    broker.bus().discard(group, topic, letters[0].partition, letters[0].offset).await.unwrap();
    assert!(broker.dead_letters(group, topic).await.is_empty(), "one is redriven, and one discarded");
    assert!(broker.bus().discard(group, topic, letters[0].partition, letters[0].offset).await.is_err(), "it is gone");
    assert!(broker.redrive(group, topic, (0, 99)).await.is_err(), "there is no such letter");
    assert!(broker.redrive(group, "NothingFailedHere", (0, 0)).await.is_err(), "nor there");
    assert!(broker.dead_letters(group, "NothingFailedHere").await.is_empty());
    member.shutdown().await;
    broker.end().await;
}

async fn a_new_group_may_begin_with_the_latest<B: Broker>() {
    let broker = B::start().await;
    let (bus, notes) = (broker.connect().await, Notes::default());
    bus.publish(&[broker.event("k", 1), broker.event("j", 2)]).await.unwrap();
    let latest = || broker.group("g").start(Start::Latest);
    // It leaves before it has received an event. Later events belong to the group nevertheless.
    let first = bus.subscribe(latest(), notes.handler()).await.unwrap();
    drop(first);
    bus.publish(&[broker.event("k", 3), broker.event("j", 4)]).await.unwrap();
    let second = bus.subscribe(latest(), notes.handler()).await.unwrap();
    bus.publish(&[broker.event("k", 5)]).await.unwrap();
    notes.wait_for(3).await;
    second.shutdown().await;
    let seen = notes.first_seen();
    assert_eq!((&*seen["k"], &*seen["j"]), (&[3, 5][..], &[4][..]));
    broker.end().await;
}

async fn a_member_that_goes_in_the_middle_of_an_event_leaves_it_to_others<B: Broker>() {
    let broker = B::start().await;
    let bus = broker.connect().await;
    bus.publish(&[broker.event("k", 1), broker.event("k", 2)]).await.unwrap();
    let (entered, mut enters) = mpsc::channel(9);
    let hangs = move |delivery: Delivery| {
        let entered = entered.clone();
        async move {
            entered.send(number(&delivery)).await?;
            std::future::pending().await
        }
    };
    let member = bus.subscribe(broker.group("g"), Arc::new(hangs)).await.unwrap();
    assert_eq!(enters.recv().await, Some(1));
    drop(member);
    assert_eq!(enters.recv().await, None, "the handler is dropped, and the next event not begun");
    let notes = Notes::default();
    let other = broker.connect().await.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    notes.wait_for(2).await;
    assert_eq!(notes.all(), [1, 2]);
    other.shutdown().await;
    broker.end().await;
}

async fn a_member_shut_down_finishes_the_event_at_hand<B: Broker>() {
    let broker = B::start().await;
    let bus = broker.connect().await;
    bus.publish(&[broker.event("k", 1), broker.event("k", 2)]).await.unwrap();
    let (entered, mut enters) = mpsc::channel(9);
    let (gate, notes) = (Arc::new(tokio::sync::Semaphore::new(0)), Notes::default());
    let handler = {
        let (gate, notes) = (gate.clone(), notes.clone());
        move |delivery: Delivery| {
            let (entered, gate, notes) = (entered.clone(), gate.clone(), notes.clone());
            async move {
                if number(&delivery) == 2 {
                    return later();
                }
                entered.send(()).await?;
                gate.acquire().await?.forget();
                notes.take(&delivery);
                Ok(())
            }
        }
    };
    let subscribe = broker.group("g").backoff(Backoff::constant(PAUSE));
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    enters.recv().await.unwrap();
    // The shutdown has begun, but may reach the partition only after the first event. The second
    // one then fails and waits out its pause, which the shutdown ends.
    let mut leaving = pin!(member.shutdown());
    assert!(leaving.as_mut().now_or_never().is_none(), "it waits for the event at hand");
    gate.add_permits(1);
    leaving.await;
    assert_eq!(notes.all(), [1]);
    assert_eq!(broker.committed(&broker.name("g"), &broker.topic()).await, 1, "what is finished is acknowledged");
    broker.end().await;
}

async fn a_group_goes_on_where_it_was<B: Broker>() {
    let broker = B::start().await;
    let (bus, notes) = (broker.connect().await, Notes::default());
    for round in 0..3 {
        let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
        let events: Vec<_> = (0..5).map(|n| broker.event(["a", "b", "c"][n as usize % 3], round * 5 + n)).collect();
        bus.publish(&events).await.unwrap();
        notes.wait_for(5 * (round as usize + 1)).await;
        member.shutdown().await;
    }
    assert_eq!(notes.all().len(), 15, "what was acknowledged does not come again: {notes:?}");
    broker.end().await;
}

async fn failed_attempts_are_counted_across_members<B: Broker>() {
    let (broker, hand) = (B::start().await, clock());
    let bus = broker.connect_at(hand.clock()).await;
    bus.publish(&[broker.event("k", 1)]).await.unwrap();
    let attempts: Arc<Mutex<Vec<u32>>> = Arc::default();
    let handler = {
        let attempts = attempts.clone();
        move |delivery: Delivery| {
            attempts.lock().unwrap().push(delivery.attempt);
            async { later() }
        }
    };
    // One attempt in each of three lives, with a pause between them that no life waits out.
    for life in 1..=3 {
        let subscribe = broker.group("g").backoff(Backoff::constant(PAUSE));
        let member = bus.subscribe(subscribe, Arc::new(handler.clone())).await.unwrap();
        eventually("an attempt", || async { attempts.lock().unwrap().len() == life }).await;
        member.shutdown().await;
        hand.advance(PAUSE);
    }
    assert_eq!(*attempts.lock().unwrap(), [1, 2, 3]);
    assert!(broker.dead_letters(&broker.name("g"), &broker.topic()).await.is_empty());
    broker.end().await;
}

async fn what_is_away_costs_no_attempt<B: Broker>() {
    let broker = B::start().await;
    let (bus, attempts) = (broker.connect().await, Arc::new(Mutex::new(Vec::new())));
    bus.publish(&[broker.event("k", 1)]).await.unwrap();
    let handler = {
        let attempts = attempts.clone();
        move |delivery: Delivery| {
            let mut attempts = attempts.lock().unwrap();
            attempts.push(delivery.attempt);
            let away = attempts.len() < 4;
            async move {
                // Recognised without a word about it.
                if away {
                    Err(buttress_durable::DbError::Busy(PAUSE))?;
                }
                Ok(())
            }
        }
    };
    let subscribe = broker.group("g").attempts(NonZeroU32::MIN);
    let member = bus.subscribe(subscribe, Arc::new(handler)).await.unwrap();
    eventually("handled", || async { attempts.lock().unwrap().len() == 4 }).await;
    member.shutdown().await;
    assert_eq!(*attempts.lock().unwrap(), [1, 1, 1, 1]);
    assert!(broker.dead_letters(&broker.name("g"), &broker.topic()).await.is_empty());
    broker.end().await;
}

async fn an_event_of_a_later_version_waits_for_a_program_that_knows_it<B: Broker>() {
    let broker = B::start().await;
    let (bus, notes) = (broker.connect().await, Notes::default());
    bus.publish(&[broker.event("k", 1).with_schema_version(2)]).await.unwrap();
    let (seen, mut postponed) = mpsc::unbounded_channel();
    let old = move |delivery: Delivery| {
        seen.send(delivery.attempt).unwrap();
        async { Err::<(), _>(HandlerError::postpone("version 2; known is 1")) }
    };
    let member = bus.subscribe(broker.group("g").attempts(NonZeroU32::MIN), Arc::new(old.clone())).await.unwrap();
    assert_eq!((postponed.recv().await, postponed.recv().await), (Some(1), Some(1)));
    member.shutdown().await;
    let new = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    notes.wait_for(1).await;
    new.shutdown().await;
    assert!(broker.dead_letters(&broker.name("g"), &broker.topic()).await.is_empty());

    // Another group's patience is over at once.
    let hasty = bus.subscribe(broker.group("hasty").patience(Duration::ZERO), Arc::new(old)).await.unwrap();
    eventually("a letter", || async { broker.dead_letters(&broker.name("hasty"), &broker.topic()).await.len() == 1 })
        .await;
    hasty.shutdown().await;
    broker.end().await;
}

async fn what_waits_for_a_group_is_counted<B: Broker>() {
    let broker = B::start().await;
    let (bus, notes) = (broker.connect().await, Notes::default());
    let group = broker.name("g");
    let waiting = async || bus.lag(&group).await.unwrap().iter().map(buttress_durable::bus::Lag::waiting).sum::<u64>();
    bus.publish(&[broker.event("a", 1)]).await.unwrap();
    let member = bus.subscribe(broker.group("g"), notes.handler()).await.unwrap();
    notes.wait_for(1).await;
    member.shutdown().await;
    assert_eq!(waiting().await, 0);
    bus.publish(&[broker.event("a", 2), broker.event("a", 3)]).await.unwrap();
    assert_eq!(waiting().await, 2);
    let lag = bus.lag(&group).await.unwrap();
    assert!(lag.iter().all(|lag| lag.topic == broker.topic() && lag.attempts == 0), "{lag:?}");
    assert!(bus.lag(&broker.name("unknown")).await.unwrap().is_empty());
    broker.end().await;
}
