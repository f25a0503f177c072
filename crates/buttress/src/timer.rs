//! Timers for layers.

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

/// A timer that fires although its task has used up tokio's cooperative budget.
///
/// A task whose budget is spent is pending in every resource of tokio until it yields, its timers
/// included, so that a future that keeps its task busy would never time out.
/// (`tokio::time::timeout` does the same.)
#[pin_project]
#[derive(Debug)]
pub struct Timer(#[pin] Sleep);

impl Timer {
    /// A timer that fires after `time`.
    pub fn after(time: Duration) -> Self {
        Self(sleep(time))
    }

    /// Ready once the time is over.
    pub fn poll_expired(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(self.project().0)).poll(cx)
    }
}

/// A bound on waiting that is armed when something is first pending, and counts from then.
#[pin_project]
#[derive(Debug, Default)]
pub struct Deadline(#[pin] Option<Timer>);

impl Deadline {
    /// Not armed yet.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Ready once the time since the first call is over: at once where it is zero, and never where
    /// it is [`Duration::MAX`].
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
