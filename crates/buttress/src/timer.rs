//! Timers that fire in tasks that have used up tokio's cooperative budget.

use pin_project::pin_project;
use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep},
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
#[pin_project]
#[derive(Debug)]
pub struct Timer(#[pin] Sleep);

impl Timer {
    /// Creates a timer that fires after `time`, rounded up to tokio's resolution of 1 ms.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn after(time: Duration) -> Self {
        Self(sleep(time))
    }

    /// Returns `Ready` after the time has passed.
    pub fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(self.project().0)).poll(cx)
    }
}

/// A limit on waiting that starts with the first poll.
///
/// A future that polls it only when its work is pending needs no timer if the work is ready at
/// once.
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
pub struct Deadline(#[pin] Option<Timer>);

impl Deadline {
    /// Creates a limit that has not started.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Returns `Ready` when `after` has passed since the first poll. Zero is ready at once,
    /// [`Duration::MAX`] never.
    ///
    /// # Panics
    /// Outside a tokio runtime, if `after` is neither zero nor [`Duration::MAX`].
    pub fn poll_expired(self: Pin<&mut Self>, after: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.project().0;
        match after {
            Duration::ZERO => return Poll::Ready(()),
            Duration::MAX => return Poll::Pending,
            _ if timer.is_none() => timer.set(Some(Timer::after(after))),
            _ => {}
        }
        timer.as_pin_mut().map_or(Poll::Pending, |timer| timer.poll_expired(cx))
    }
}
