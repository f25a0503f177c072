//! The timers inside of calls, as far as the limits around them need to know them.
//!
//! A stack has several limits on time, such as a total timeout around an attempt's. The outer one
//! needs no timer while the inner one will wake the task earlier: it is polled then, and can arm
//! its own. So a timer that is polled announces when it will wake the task, in a word of the
//! thread, and a limit around it, which is polled next, reads that.
//!
//! A limit arms its own timer unless it is certain. An announcement counts only if it was made
//! during the poll of what the limit bounds, for the same waker, and if no timer was dropped since:
//! that one will not fire. A timer that moves to another task afterwards, as one in an attempt that
//! is spawned to end in the background, wakes the task that it leaves: see [`Sleeper`].

use std::{
    cell::Cell,
    task::{Context, Waker},
};
use tokio::{
    task::{Id, try_id},
    time::Instant,
};

thread_local! {
    /// The number of limits that are being polled.
    static LIMITS: Cell<u32> = const { Cell::new(0) };
    /// The number of announcements.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// The latest one, unless it was withdrawn.
    static LATEST: Cell<Option<Wakeup>> = const { Cell::new(None) };
}

/// The announcement of a pending timer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wakeup {
    end: Instant,
    /// The present time, if the clock was read for this timer.
    now: Option<Instant>,
    task: Task,
}

/// The identity of a waker, which is compared while the waker lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Task(usize, usize);

impl Task {
    fn of(waker: &Waker) -> Self {
        Self(waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
    }
}

impl Wakeup {
    pub(crate) fn new(end: Instant, now: Option<Instant>, cx: &Context<'_>) -> Self {
        Self { end, now, task: Task::of(cx.waker()) }
    }

    pub(crate) fn announce(self) {
        COUNT.set(COUNT.get() + 1);
        LATEST.set(Some(self));
    }

    /// Withdraws the latest announcement, because a timer was dropped. It may have been another
    /// one's.
    pub(crate) fn withdraw() {
        LATEST.set(None);
    }

    /// Returns whether the task is woken at `end` at the latest.
    pub(crate) fn is_before(&self, end: Instant) -> bool {
        self.end <= end
    }

    /// Returns the present time, if it is known without reading the clock.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.now
    }
}

/// A limit that polls what it bounds. Timers announce themselves only inside of one.
#[derive(Debug)]
pub(crate) struct Limit(Wakeups);

impl Limit {
    #[inline]
    pub(crate) fn enter() -> Self {
        LIMITS.set(LIMITS.get() + 1);
        Self(Wakeups::so_far())
    }

    /// Returns the announcements from before, to look for later ones.
    #[inline]
    pub(crate) fn leave(self) -> Wakeups {
        self.0
    }

    fn is_around() -> bool {
        LIMITS.get() > 0
    }
}

impl Drop for Limit {
    #[inline]
    fn drop(&mut self) {
        LIMITS.set(LIMITS.get() - 1);
    }
}

/// The announcements on this thread up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wakeups(u64);

impl Wakeups {
    #[inline]
    pub(crate) fn so_far() -> Self {
        Self(COUNT.get())
    }

    /// Returns the latest announcement since then, if it was made for the same task.
    pub(crate) fn latest(self, cx: &Context<'_>) -> Option<Wakeup> {
        if COUNT.get() == self.0 {
            return None;
        }
        LATEST.get().filter(|latest| latest.task == Task::of(cx.waker()))
    }
}

/// The task that a timer has announced to wake.
#[derive(Debug, Default)]
pub(crate) enum Sleeper {
    /// Nothing was announced.
    #[default]
    None,
    /// The task, and its id if it is not the future of a `block_on`.
    Task(Waker, Option<Id>),
    /// The timer was polled with another waker. It announces no more, so that tasks which poll it
    /// in turns do not wake each other without end.
    Left,
}

impl Sleeper {
    /// Returns whether limits of the task that polls may rely on the timer. Wakes the task that
    /// relied on it before, because a timer wakes only the last one that polled it.
    #[inline]
    pub(crate) fn is_task_of(&mut self, cx: &Context<'_>) -> bool {
        match self {
            Self::Task(waker, _) if waker.will_wake(cx.waker()) => return true,
            Self::Task(..) => {
                if let Self::Task(waker, _) = std::mem::replace(self, Self::Left) {
                    waker.wake();
                }
            }
            Self::None if Limit::is_around() => *self = Self::Task(cx.waker().clone(), try_id()),
            Self::None | Self::Left => {}
        }
        matches!(self, Self::Task(..))
    }

    /// Wakes the task if its timer is dropped in another one. If it is dropped in the same task,
    /// the limits around it are about to look anew.
    #[inline]
    pub(crate) fn leave(&mut self) {
        if let Self::Task(waker, id) = self
            && *id != try_id()
        {
            waker.wake_by_ref();
        }
    }
}
