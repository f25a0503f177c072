//! The bare service in each situation, and the cost of the parts that layers are made of. Each part
//! runs beside a call of the bare service.

#![expect(clippy::disallowed_methods, reason = "this measures the cost of a clock read")]

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::caller::{Around, call};
use crate::family::NONE;
use crate::inner::Bare;
use crate::situation::{AllFail, Cloned, Kept, MostFail, Pending, TenthFails};
use crate::subject::{BARE, Kind::Floor, Rows};

pub(crate) fn add(rows: &mut Rows) {
    rows.of(Floor, BARE, NONE)
        .caller(Kept, Bare::<Kept>::new())
        .caller(Cloned, Bare::<Cloned>::new())
        .caller(Pending, Bare::<Pending>::new())
        .caller(TenthFails, Bare::<TenthFails>::new())
        .caller(MostFail, Bare::<MostFail>::new())
        .caller(AllFail, Bare::<AllFail>::new());
    let (counter, shared) = (Arc::new(AtomicU64::new(0)), Arc::new(0_u64));
    let semaphore = Arc::new(Semaphore::new(1_000));
    part(rows, "floor/fetch_add", move || {
        black_box(counter.fetch_add(1, Ordering::Relaxed));
    });
    part(rows, "floor/arc_clone_and_drop", move || drop(black_box(Arc::clone(&shared))));
    part(rows, "floor/instant_now", || {
        black_box(Instant::now());
    });
    part(rows, "floor/box", || drop(black_box(Box::new(7_u64))));
    part(rows, "floor/semaphore_try_acquire", move || {
        drop(black_box(semaphore.try_acquire().expect("permits are left")));
    });
    // Like a timeout: created, polled once (which registers it with the runtime), dropped.
    part(rows, "floor/tokio_sleep", || {
        let sleep = pin!(tokio::time::sleep(Duration::from_secs(30)));
        assert!(sleep.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
}

fn part(rows: &mut Rows, name: &str, part: impl Fn() + Clone + Send + 'static) {
    let mut bare = Bare::<Kept>::new();
    let both = Around(move |req| {
        part();
        call(&mut bare, req)
    });
    rows.of(Floor, name, NONE).caller(Kept, both);
}
