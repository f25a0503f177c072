//! The cost of the parts that layers are made of. Each runs beside a call of the bare service.

#![expect(clippy::disallowed_methods, reason = "this measures the cost of a clock read")]

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::subject::{BARE, Bare, Expect, Family, Kind, Subject, call};

pub(crate) fn subjects() -> Vec<Subject> {
    let counter = Arc::new(AtomicU64::new(0));
    let shared = Arc::new(0_u64);
    let semaphore = Arc::new(Semaphore::new(1_000));
    vec![
        Subject::service(BARE, Kind::Floor, Family::Other, Expect::Ok, Bare),
        floor("floor/fetch_add", move || {
            let counter = Arc::clone(&counter);
            move || {
                black_box(counter.fetch_add(1, Ordering::Relaxed));
            }
        }),
        floor("floor/arc_clone_and_drop", move || {
            let shared = Arc::clone(&shared);
            move || {
                drop(black_box(Arc::clone(&shared)));
            }
        }),
        floor("floor/instant_now", || {
            || {
                black_box(Instant::now());
            }
        }),
        floor("floor/box", || {
            || {
                drop(black_box(Box::new(7_u64)));
            }
        }),
        floor("floor/semaphore_try_acquire", move || {
            let semaphore = Arc::clone(&semaphore);
            move || {
                drop(black_box(semaphore.try_acquire().expect("permits are left")));
            }
        }),
        // Like a timeout: created, polled once (which registers it with the runtime), dropped.
        floor("floor/tokio_sleep", || {
            || {
                let sleep = pin!(tokio::time::sleep(Duration::from_secs(30)));
                let mut cx = Context::from_waker(Waker::noop());
                assert!(sleep.poll(&mut cx).is_pending());
            }
        }),
    ]
}

fn floor<F>(name: &'static str, make: impl Fn() -> F + 'static) -> Subject
where
    F: FnMut() + Send + 'static,
{
    Subject::around(name, Kind::Floor, Family::Other, move || {
        let mut part = make();
        move |bare| {
            part();
            call(bare, black_box(7)).is_ok()
        }
    })
}
