use super::{Fault, State};
use crate::{shard::Ticket, sync::Ordering};
use std::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};

/// What a call suffers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Drawn {
    /// The call fails.
    pub error: bool,
    /// How late the call begins.
    pub latency: Option<Duration>,
    /// The call hangs.
    pub hang: bool,
    /// The body of the response breaks.
    pub reset: bool,
    /// The body of the response ends within its first frame.
    pub truncation: bool,
    /// The trailers of the response are missing.
    pub lost_trailers: bool,
    /// How late each frame of the response is.
    pub pause: Option<Duration>,
    /// Whether an error or a hang occurs after the inner service, not before it.
    pub is_late: bool,
    /// The HTTP status of an error.
    pub status: u16,
    /// The gRPC status of an error.
    pub grpc_status: i32,
}

impl Drawn {
    pub(super) fn is_none(&self) -> bool {
        !self.error && self.latency.is_none() && !self.hang && !self.breaks_body()
    }

    /// Returns whether the body of the response suffers.
    pub fn breaks_body(&self) -> bool {
        self.reset || self.truncation || self.lost_trailers || self.pause.is_some()
    }
}

/// The faults of one call, which counts as suffering until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the faults of the call"]
pub struct Injection {
    state: Ticket<State>,
    drawn: Drawn,
    /// Number of changes of the faults when they were drawn.
    change: u64,
    /// Its entry in the list of hanging calls.
    key: Option<u64>,
}

impl Injection {
    pub(super) fn new(state: Ticket<State>, drawn: Drawn, change: u64) -> Self {
        Self { state, drawn, change, key: None }
    }

    /// Returns what the call suffers.
    pub fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// Counts a fault that occurs now.
    pub fn count(&self, fault: Fault) {
        self.state.injected[fault as usize].add(1);
    }

    /// Hangs: returns `Ready` once the faults were changed or switched off.
    pub fn poll_hang(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waiters = &self.state.waiters;
        let key = *self.key.get_or_insert_with(|| waiters.key());
        // Registered before the check: a change after it wakes the task.
        waiters.register(key, cx.waker());
        if self.state.changes.load(Ordering::SeqCst) == self.change {
            return Poll::Pending;
        }
        waiters.served(key);
        self.key = None;
        Poll::Ready(())
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.state.waiters.served(key);
        }
        self.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks an injected fault: an error, or an extension of a response.
///
/// To everything that classifies results, the fault is like a real one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Injected(Fault);

impl Injected {
    /// Creates the mark of a fault. For endings.
    pub const fn new(fault: Fault) -> Self {
        Self(fault)
    }

    /// Returns the fault.
    ///
    /// ```
    /// use buttress_core::chaos::{Fault, Injected};
    ///
    /// let injected = Injected::new(Fault::Reset);
    /// assert_eq!(injected.to_string(), "injected fault: reset");
    /// assert_eq!(injected.fault(), Fault::Reset);
    /// ```
    pub const fn fault(self) -> Fault {
        self.0
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected fault: {}", self.0.word())
    }
}

impl std::error::Error for Injected {}
