use super::*;
use proptest::prelude::*;
use std::future::{Pending, pending, poll_fn};
use tokio_test::{
    assert_pending,
    task::{Spawn, spawn},
};

const INNER: Duration = Duration::from_millis(500);
const OUTER: Duration = Duration::from_secs(2);

/// A future within a limit, as a timeout's service makes it. Returns whether the time was over.
#[pin_project]
struct Limited<F> {
    #[pin]
    future: F,
    #[pin]
    limit: Deadline,
    after: Duration,
}

impl<F: Future> Future for Limited<F> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = self.project();
        let limit = Limit::enter();
        match this.future.poll(cx) {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending => this.limit.poll_expired_around(*this.after, limit.leave(), cx).map(|()| true),
        }
    }
}

impl<F> Limited<F> {
    fn is_armed(&self) -> bool {
        self.limit.timer.is_some()
    }
}

/// Polled by hand, for a task of its own.
fn boxed<F: Future>(call: Limited<F>) -> Spawn<Pin<Box<Limited<F>>>> {
    spawn(Box::pin(call))
}

fn limited<F: Future>(after: Duration, future: F) -> Limited<F> {
    Limited { future, limit: Deadline::new(), after }
}

#[tokio::test(start_paused = true)]
async fn of_nested_limits_only_the_first_to_end_has_a_timer() {
    let mut call = boxed(limited(OUTER, limited(OUTER, limited(INNER, pending::<()>()))));
    for _ in 0..3 {
        assert_pending!(call.poll());
        assert!(call.future.future.is_armed());
        assert!(!call.future.is_armed() && !call.is_armed());
    }
    tokio::time::advance(INNER).await;
    assert!(call.is_woken() && call.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_limit_around_a_longer_one_has_a_timer_of_its_own() {
    let mut call = boxed(limited(INNER, limited(OUTER, pending::<()>())));
    assert_pending!(call.poll());
    assert!(call.is_armed());
    tokio::time::advance(INNER).await;
    assert!(call.is_woken() && call.poll() == Poll::Ready(true));
}

#[tokio::test(start_paused = true)]
async fn a_limit_counts_from_its_own_first_poll_also_without_a_timer() {
    let attempts = async {
        for _ in 0..10 {
            assert!(limited(INNER, pending::<()>()).await);
        }
    };
    let started = Instant::from_std(TokioClock.now());
    assert!(limited(OUTER, attempts).await);
    assert_eq!(started.elapsed(), OUTER);
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_was_dropped_in_the_same_poll_wakes_no_task() {
    let call = async {
        let mut dropped = Box::pin(limited(INNER, pending::<()>()));
        poll_fn(|cx| {
            assert_pending!(dropped.as_mut().poll(cx));
            Poll::Ready(())
        })
        .await;
        drop(dropped);
        pending::<()>().await;
    };
    let mut call = boxed(limited(OUTER, Box::pin(call)));
    assert_pending!(call.poll());
    assert!(call.is_armed());
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_polled_no_more_wakes_no_task() {
    let mut inner = Box::pin(limited(INNER, pending::<()>()));
    let mut is_first = true;
    let polled_once = poll_fn(|cx| {
        if std::mem::take(&mut is_first) {
            assert_pending!(inner.as_mut().poll(cx));
        }
        Poll::<()>::Pending
    });
    let mut call = boxed(limited(OUTER, polled_once));
    assert_pending!(call.poll());
    assert!(!call.is_armed());
    assert_pending!(call.poll());
    assert!(call.is_armed());
}

#[tokio::test(start_paused = true)]
async fn a_timer_for_another_waker_is_not_relied_on() {
    let mut elsewhere = boxed(limited(INNER, pending::<()>()));
    let mut call = boxed(limited(
        OUTER,
        poll_fn(|_| {
            assert_pending!(elsewhere.poll());
            Poll::<()>::Pending
        }),
    ));
    assert_pending!(call.poll());
    assert!(call.is_armed());
}

/// A limit around a call that gives an attempt, which it has polled, to another task, and waits on.
async fn relies_on_an_attempt_that_leaves(with: impl FnOnce(Pin<Box<Limited<Pending<()>>>>)) {
    let call = async {
        let mut attempt = Box::pin(limited(INNER, pending::<()>()));
        poll_fn(|cx| {
            assert_pending!(attempt.as_mut().poll(cx));
            Poll::Ready(())
        })
        .await;
        with(attempt);
        pending::<()>().await;
    };
    let started = Instant::from_std(TokioClock.now());
    let expired = tokio::time::timeout(2 * OUTER, limited(OUTER, call)).await;
    assert_eq!((expired, started.elapsed()), (Ok(true), OUTER));
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_polled_by_another_task_wakes_the_one_that_relied_on_it() {
    relies_on_an_attempt_that_leaves(|attempt| drop(tokio::spawn(attempt))).await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_dropped_in_another_task_wakes_the_one_that_relied_on_it() {
    relies_on_an_attempt_that_leaves(|attempt| drop(tokio::spawn(async { drop(attempt) }))).await;
}

#[tokio::test(start_paused = true)]
async fn tasks_that_poll_one_timer_in_turns_do_not_wake_each_other_without_end() {
    let mut tasks = [spawn(pending::<()>()), spawn(pending::<()>())];
    let mut timer = pin!(Timer::after(INNER));
    let mut woken_in_a_round = || {
        let _limit = Limit::enter();
        for task in &mut tasks {
            task.enter(|cx, _| assert_pending!(timer.as_mut().poll_in_call(None, cx)));
        }
        tasks.each_ref().map(Spawn::is_woken)
    };
    assert_eq!(woken_in_a_round(), [true, false]);
    assert_eq!(woken_in_a_round(), [false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_all_time_ends_with_no_panic() {
    let mut call = boxed(limited(Duration::MAX - Duration::from_nanos(1), limited(INNER, pending::<()>())));
    assert_pending!(call.poll());
    assert!(!call.is_armed());
    let mut alone = boxed(limited(Duration::MAX - Duration::from_nanos(1), pending::<()>()));
    assert_pending!(alone.poll());
}

/// What a call does for a time, in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Waits within a limit until it ends.
    Limited(u64),
    /// Waits for a timer that limits do not know.
    Foreign(u64),
    /// Polls a limit once and drops it, then waits.
    Dropped(u64, u64),
    /// Waits for a limit in a pause, as a retry does.
    Pause(u64),
}

impl Step {
    fn takes(self) -> u64 {
        let (Self::Limited(time) | Self::Foreign(time) | Self::Dropped(_, time) | Self::Pause(time)) = self;
        time
    }

    async fn run(self) {
        let ms = Duration::from_millis;
        match self {
            Self::Limited(time) => assert!(limited(ms(time), pending::<()>()).await),
            Self::Foreign(time) => sleep(ms(time)).await,
            Self::Dropped(limit, time) => {
                tokio::select! {
                    biased;
                    _ = limited(ms(limit), pending::<()>()) => unreachable!("the limit is longer than a poll"),
                    () = std::future::ready(()) => {}
                }
                sleep(ms(time)).await;
            }
            Self::Pause(time) => {
                let mut pause = pin!(Timer::after(ms(time)));
                poll_fn(|cx| pause.as_mut().poll_in_call(None, cx)).await;
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let time = || 1..400_u64;
    prop_oneof![
        time().prop_map(Step::Limited),
        time().prop_map(Step::Foreign),
        (time(), time()).prop_map(|(limit, time)| Step::Dropped(limit, time)),
        time().prop_map(Step::Pause),
    ]
}

proptest! {
    #[test]
    fn nested_limits_end_when_each_would_alone(
        steps in prop::collection::vec(step(), 0..8),
        limits in prop::collection::vec(1..1_500_u64, 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let total: u64 = steps.iter().map(|step| step.takes()).sum();
        let took = runtime.block_on(async {
            let started = Instant::from_std(TokioClock.now());
            let mut call: Pin<Box<dyn Future<Output = bool>>> = Box::pin(async move {
                for step in steps {
                    step.run().await;
                }
                false
            });
            for limit in &limits {
                call = Box::pin(limited(Duration::from_millis(*limit), call));
            }
            call.await;
            started.elapsed()
        });
        let shortest = limits.iter().copied().min().unwrap();
        prop_assert_eq!(took, Duration::from_millis(total.min(shortest)));
    }
}
