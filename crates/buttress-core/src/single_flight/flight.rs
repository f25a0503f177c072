use super::Home;
use crate::{
    Priority,
    context::CallContext,
    sync::{Mutex, lock, try_lock},
};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

/// How a shared call ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Landed<T, O> {
    /// Every participant gets a clone.
    Shared(T),
    /// Only the caller that has made the call gets this.
    Own(O),
}

/// What a participant gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrival<T, O> {
    /// The result that all participants share.
    Shared(T),
    /// The result for the first caller alone.
    Own(O),
    /// The result is not shared: make a call.
    Unshared,
    /// The call panicked.
    Panicked,
}

/// The place of one caller in a shared call. Dropping it leaves the call.
///
/// The [module](super) has an example.
#[must_use = "dropping it leaves the call"]
pub struct Participant<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> {
    pub(super) flight: Arc<Flight<K, T, O>>,
    /// The place of its waker.
    slot: Option<usize>,
    is_first: bool,
    /// Whether it has its result, and counts no more.
    arrived: bool,
}

/// One call and its participants.
pub(super) struct Flight<K, T, O> {
    key: K,
    hash: u64,
    context: CallContext,
    home: Home,
    state: Mutex<State<T, O>>,
    /// The call, from its start to its end. Locked while it is polled.
    pub(super) work: Mutex<Option<Work<T, O>>>,
}

type Work<T, O> = Pin<Box<dyn Future<Output = Landed<T, O>> + Send>>;

struct State<T, O> {
    stage: Stage<T, O>,
    participants: usize,
    /// Whether the first caller can still take a result of its own.
    has_first: bool,
    is_started: bool,
    /// Whether a participant found the call locked, or is about to look.
    missed: bool,
    wakers: Vec<Option<Waker>>,
    /// The free places among the wakers.
    free: Vec<usize>,
}

enum Stage<T, O> {
    Running,
    Shared(T),
    Own(Option<O>),
    Panicked,
    /// The last participant has left, or taken the result.
    Over,
}

pub(super) enum Join {
    Joined,
    Full,
    /// The call has ended, or is less important.
    Passed,
}

// ===== impl Participant =====

impl<K: Send + Sync + 'static, T: Clone + Send + 'static, O: Send + 'static> Participant<K, T, O> {
    pub(super) fn first(flight: Arc<Flight<K, T, O>>) -> Self {
        Self { flight, slot: None, is_first: true, arrived: false }
    }

    pub(super) fn joined(flight: Arc<Flight<K, T, O>>) -> Self {
        Self { flight, slot: None, is_first: false, arrived: false }
    }

    /// Sets the call of a participant that is the [first](super::Entered::First). If it is dropped
    /// before, the call counts as panicked.
    pub fn start(&mut self, work: impl Future<Output = Landed<T, O>> + Send + 'static) {
        *lock(&self.flight.work) = Some(Box::pin(work));
        lock(&self.flight.state).is_started = true;
        // Others may have looked before there was a call.
        self.flight.wake_all();
    }

    /// Returns the time at which the result is of no use to the caller that has made the call.
    pub fn deadline(&self) -> Option<Instant> {
        self.flight.context.deadline
    }

    /// Polls the call, unless another participant does. After it has returned `Ready` it must not
    /// be polled again; it is [`Arrival::Unshared`] then.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arrival<T, O>> {
        if let Some(arrival) = self.look(cx) {
            return Poll::Ready(arrival);
        }
        let Some(mut work) = try_lock(&self.flight.work) else { return Poll::Pending };
        // Before the poll: what is set from now on may not be seen by it.
        lock(&self.flight.state).missed = false;
        let Some(future) = work.as_mut() else {
            drop(work);
            // It has ended since, or has not started.
            return self.look(cx).map_or(Poll::Pending, Poll::Ready);
        };
        let waker = Waker::from(self.flight.clone());
        let unwinding = Unwinding(&self.flight);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        std::mem::forget(unwinding);
        match polled {
            Poll::Pending => {
                drop(work);
                if std::mem::take(&mut lock(&self.flight.state).missed) {
                    self.flight.wake_all();
                }
                Poll::Pending
            }
            Poll::Ready(landed) => {
                let ended = work.take();
                drop(work);
                drop(ended);
                self.flight.end(match landed {
                    Landed::Shared(result) => Stage::Shared(result),
                    Landed::Own(result) => Stage::Own(Some(result)),
                });
                Poll::Ready(self.look(cx).unwrap_or(Arrival::Unshared))
            }
        }
    }

    /// Takes the result, or registers the waker.
    pub(super) fn look(&mut self, cx: &Context<'_>) -> Option<Arrival<T, O>> {
        let mut state = lock(&self.flight.state);
        if matches!(state.stage, Stage::Running) {
            state.register(&mut self.slot, cx.waker());
            state.missed = true;
            return None;
        }
        if std::mem::replace(&mut self.arrived, true) {
            return Some(Arrival::Unshared);
        }
        state.participants -= 1;
        let is_last = state.participants == 0;
        Some(match &mut state.stage {
            Stage::Shared(result) if !is_last => Arrival::Shared(result.clone()),
            Stage::Own(result) if self.is_first => result.take().map_or(Arrival::Unshared, Arrival::Own),
            Stage::Shared(_) => match std::mem::replace(&mut state.stage, Stage::Over) {
                Stage::Shared(result) => Arrival::Shared(result),
                _ => Arrival::Unshared,
            },
            Stage::Panicked => Arrival::Panicked,
            Stage::Own(_) | Stage::Running | Stage::Over => Arrival::Unshared,
        })
    }
}

impl<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> Drop for Participant<K, T, O> {
    fn drop(&mut self) {
        if self.arrived {
            return;
        }
        let mut state = lock(&self.flight.state);
        state.deregister(self.slot.take());
        state.participants -= 1;
        let is_running = matches!(state.stage, Stage::Running);
        let has_not_started = self.is_first && !state.is_started;
        let mut left = None;
        if self.is_first {
            state.has_first = false;
            if let Stage::Own(result) = &mut state.stage {
                left = result.take();
            }
        }
        let is_last = state.participants == 0;
        if is_last && is_running {
            state.stage = Stage::Over;
        }
        drop(state);
        // A result and a call are dropped outside of the lock.
        drop(left);
        if is_last && is_running {
            self.flight.home.remove(self.flight.hash, &self.flight);
            let abandoned = lock(&self.flight.work).take();
            drop(abandoned);
        } else if has_not_started && is_running {
            self.flight.end(Stage::Panicked);
        }
    }
}

impl<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> fmt::Debug for Participant<K, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant").field("is_first", &self.is_first).finish_non_exhaustive()
    }
}

/// Ends a call that panicked.
struct Unwinding<'a, K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static>(&'a Arc<Flight<K, T, O>>);

impl<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> Drop for Unwinding<'_, K, T, O> {
    #[cold]
    fn drop(&mut self) {
        self.0.end(Stage::Panicked);
    }
}

// ===== impl Flight =====

impl<K, T, O> Flight<K, T, O> {
    pub(super) fn new(key: K, hash: u64, context: CallContext, home: Home) -> Self {
        let state = State {
            stage: Stage::Running,
            participants: 1,
            has_first: true,
            is_started: false,
            missed: false,
            wakers: Vec::new(),
            free: Vec::new(),
        };
        Self { key, hash, context, home, state: Mutex::new(state), work: Mutex::new(None) }
    }

    pub(super) fn has(&self, key: &K) -> bool
    where
        K: Eq,
    {
        self.key == *key
    }

    pub(super) fn join(&self, priority: Priority, max_waiters: usize) -> Join {
        let mut state = lock(&self.state);
        if !matches!(state.stage, Stage::Running) || priority > self.context.priority.unwrap_or_default() {
            return Join::Passed;
        }
        if state.participants > max_waiters {
            return Join::Full;
        }
        state.participants += 1;
        Join::Joined
    }

    fn wake_all(&self) {
        // Cloned, because a waker may run a task at once, which looks at the state.
        let mut at = 0;
        loop {
            let waker = {
                let state = lock(&self.state);
                let Some(next) = (at..state.wakers.len()).find(|&index| state.wakers[index].is_some()) else { return };
                at = next + 1;
                state.wakers[next].clone()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> Flight<K, T, O> {
    fn end(self: &Arc<Self>, stage: Stage<T, O>) {
        let mut unwanted = None;
        let mut state = lock(&self.state);
        state.stage = match stage {
            Stage::Own(result) if !state.has_first => {
                unwanted = result;
                Stage::Own(None)
            }
            stage => stage,
        };
        let wakers = std::mem::take(&mut state.wakers);
        state.free.clear();
        drop(state);
        drop(unwanted);
        self.home.remove(self.hash, self);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Wakes every participant: see the [module](super).
impl<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> Wake for Flight<K, T, O> {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

impl<T, O> State<T, O> {
    fn register(&mut self, slot: &mut Option<usize>, waker: &Waker) {
        let index = *slot.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.wakers.push(None);
                self.wakers.len() - 1
            })
        });
        match &mut self.wakers[index] {
            Some(known) => known.clone_from(waker),
            empty => *empty = Some(waker.clone()),
        }
    }

    fn deregister(&mut self, slot: Option<usize>) {
        // The call took the wakers when it ended.
        if let Some(index) = slot
            && let Some(waker) = self.wakers.get_mut(index)
        {
            *waker = None;
            self.free.push(index);
        }
    }
}
