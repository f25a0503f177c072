//! Timers that fire in tasks that have used up tokio's cooperative budget, and limits that share a
//! timer.

mod wakeup;

pub(crate) use wakeup::Limit;
use wakeup::{Sleeper, Wakeup, Wakeups};

use crate::clock::TokioClock;
use buttress_core::Clock;
use pin_project::{pin_project, pinned_drop};
use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep, sleep_until},
};

/// A timer that fires even if its task has used up tokio's cooperative budget.
///
/// When the budget of a task is used up, all resources of tokio, timers included, are pending until
/// the task yields. A future that keeps its task busy would never time out. `tokio::time::timeout`
/// polls its timer in the same way.
///
/// ```
/// use buttress::timer::Timer;
/// use std::{future::poll_fn, pin::pin, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let mut timer = pin!(Timer::after(Duration::from_millis(50)));
/// poll_fn(|cx| timer.as_mut().poll_expired(cx)).await;
/// # }
/// ```
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub struct Timer {
    #[pin]
    sleep: Sleep,
    /// The task that limits around the timer rely on it to wake.
    sleeper: Sleeper,
}

impl Timer {
    /// Creates a timer that fires after `time`, rounded up to tokio's resolution of 1 ms.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn after(time: Duration) -> Self {
        Self::of(sleep(time))
    }

    fn of(sleep: Sleep) -> Self {
        Self { sleep, sleeper: Sleeper::default() }
    }

    /// Returns `Ready` after the time has passed.
    pub fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(self.project().sleep)).poll(cx)
    }

    /// Like [`poll_expired`](Self::poll_expired), for a timer that belongs to the future of a call:
    /// [`Deadline`]s around it that end later need no timer of their own.
    ///
    /// `now` is the present time, if the caller has read the clock.
    pub(crate) fn poll_in_call(mut self: Pin<&mut Self>, now: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.as_mut().poll_expired(cx);
        let this = self.project();
        if polled.is_pending() && this.sleeper.is_task_of(cx) {
            Wakeup::new(this.sleep.deadline(), now, cx).announce();
        }
        polled
    }
}

#[pinned_drop]
impl PinnedDrop for Timer {
    fn drop(self: Pin<&mut Self>) {
        Wakeup::withdraw();
        self.project().sleeper.leave();
    }
}

/// A limit on waiting that starts with the first poll.
///
/// A future that polls it only when its work is pending needs no timer if the work is ready at
/// once. Nested limits share a timer: one inside which another limit of the same call ends earlier
/// has none until it is the next to end.
///
/// ```
/// use buttress::timer::Deadline;
/// use std::{future::poll_fn, pin::pin, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let mut deadline = pin!(Deadline::new());
/// poll_fn(|cx| deadline.as_mut().poll_expired(Duration::from_secs(1), cx)).await;
/// # }
/// ```
#[pin_project]
#[derive(Debug, Default)]
pub struct Deadline {
    /// The end of the limit, from the first poll on.
    end: Option<Instant>,
    #[pin]
    timer: Option<Timer>,
}

impl Deadline {
    /// Creates a limit that has not started.
    pub const fn new() -> Self {
        Self { end: None, timer: None }
    }

    /// Creates a limit that ends at `end`, whenever it is polled first.
    pub(crate) const fn ending_at(end: Instant) -> Self {
        Self { end: Some(end), timer: None }
    }

    /// Creates a limit of `time` from `start` on.
    pub(crate) fn since(start: Instant, time: Duration) -> Self {
        Self::ending_at(end_of(start, time))
    }

    /// Returns the end of the limit, once it is known.
    pub(crate) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Returns `Ready` when `after` has passed since the first poll. Zero is ready at once,
    /// [`Duration::MAX`] never.
    ///
    /// # Panics
    /// Outside a tokio runtime, if `after` is neither zero nor [`Duration::MAX`].
    pub fn poll_expired(self: Pin<&mut Self>, after: Duration, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_expired_around(after, Wakeups::so_far(), cx)
    }

    /// Like [`poll_expired`](Self::poll_expired), for a limit around a future that was polled since
    /// `before` and is pending.
    ///
    /// If a timer in that future will wake the task before this limit ends, this limit arms none.
    /// The task then polls both again, and the limit looks anew.
    #[inline]
    pub(crate) fn poll_expired_around(
        self: Pin<&mut Self>,
        after: Duration,
        before: Wakeups,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        match after {
            Duration::ZERO => return Poll::Ready(()),
            Duration::MAX => return Poll::Pending,
            _ => {}
        }
        self.poll_around(before, cx, |inner| {
            let started = inner.and_then(|inner| inner.now());
            let started = started.unwrap_or_else(|| Instant::from_std(TokioClock.now()));
            (end_of(started, after), Some(started))
        })
    }

    /// Like [`poll_expired_around`](Self::poll_expired_around), for a limit that ends at `end`.
    #[inline]
    pub(crate) fn poll_end_around(
        self: Pin<&mut Self>,
        end: Instant,
        before: Wakeups,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.poll_around(before, cx, |_| (end, None))
    }

    /// `start` returns the end of the limit, and the present time if it has read the clock.
    #[inline]
    fn poll_around(
        self: Pin<&mut Self>,
        before: Wakeups,
        cx: &mut Context<'_>,
        start: impl FnOnce(Option<Wakeup>) -> (Instant, Option<Instant>),
    ) -> Poll<()> {
        let mut this = self.project();
        let mut now = None;
        if this.timer.is_none() {
            let inner = before.latest(cx);
            let end = match *this.end {
                Some(end) => end,
                None => {
                    let (end, started) = start(inner);
                    now = started;
                    *this.end.insert(end)
                }
            };
            if inner.is_some_and(|inner| inner.is_before(end)) {
                return Poll::Pending;
            }
            this.timer.set(Some(Timer::of(sleep_until(end))));
        }
        this.timer.as_pin_mut().map_or(Poll::Pending, |timer| timer.poll_in_call(now, cx))
    }
}

fn end_of(start: Instant, time: Duration) -> Instant {
    start.checked_add(time).unwrap_or_else(|| start + FAR)
}

/// The length of a limit that overflows [`Instant`]: thirty years, as in tokio's own timers.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

#[cfg(test)]
mod tests;
