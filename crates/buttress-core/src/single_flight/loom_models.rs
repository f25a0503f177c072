//! Models of two callers of one call on two threads. Run with
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p buttress-core --lib loom_models
//! ```

use super::{Arrival, Entered, Flights, Landed, Participant};
use crate::context::CallContext;
use loom::{
    future::{AtomicWaker, block_on},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use std::{future::poll_fn, sync::Arc, task::Poll};

type Of = Participant<u8, u32, ()>;

/// The backend's answer.
#[derive(Default)]
struct Answer {
    is_there: AtomicBool,
    waker: AtomicWaker,
}

fn two() -> (Of, Of, Arc<Answer>) {
    let flights = crate::shard::with_shards(1, Flights::new);
    let enter = || flights.enter::<u8, u32, ()>(1, CallContext::default(), 9);
    let (Entered::First(mut first), Entered::Joined(second)) = (enter(), enter()) else { panic!() };
    let answer = Arc::new(Answer::default());
    let waited_for = answer.clone();
    first.start(poll_fn(move |cx| {
        waited_for.waker.register_by_ref(cx.waker());
        match waited_for.is_there.load(Ordering::SeqCst) {
            true => Poll::Ready(Landed::Shared(7)),
            false => Poll::Pending,
        }
    }));
    (first, second, answer)
}

fn ends(mut participant: Of) {
    assert_eq!(block_on(poll_fn(|cx| participant.poll(cx))), Arrival::Shared(7));
}

/// Without the mark of a caller that found the call locked, this model hangs.
#[test]
fn both_callers_end_whenever_the_answer_comes() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let (first, second, answer) = two();
        let other = thread::spawn(move || ends(second));
        let backend = thread::spawn(move || {
            answer.is_there.store(true, Ordering::SeqCst);
            answer.waker.wake();
        });
        ends(first);
        other.join().unwrap();
        backend.join().unwrap();
    });
}

#[test]
fn the_other_caller_ends_when_one_leaves_after_a_poll() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let (mut first, second, answer) = two();
        let other = thread::spawn(move || ends(second));
        let backend = thread::spawn(move || {
            answer.is_there.store(true, Ordering::SeqCst);
            answer.waker.wake();
        });
        block_on(poll_fn(|cx| {
            let _ = first.poll(cx);
            Poll::Ready(())
        }));
        drop(first);
        other.join().unwrap();
        backend.join().unwrap();
    });
}
