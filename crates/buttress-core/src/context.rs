//! What a call hands on to the calls that are made while it is served: its priority and its
//! deadline.
//!
//! The current context belongs to the thread while a task is polled. The crate `buttress` enters it
//! around each poll of a call (`buttress::context::scope`), so that it follows the task over
//! threads. Policies read it in `admit`, where the request of a user cannot be read.
//!
//! ```
//! use buttress_core::{Criticality, context::CallContext};
//!
//! let context = CallContext::default().with_priority(Criticality::Sheddable.into());
//! let entered = context.enter();
//! assert_eq!(CallContext::current(), context);
//! drop(entered);
//! assert_eq!(CallContext::current(), CallContext::default());
//! ```

mod retried;

pub use retried::{Collecting, Retried};

use crate::Priority;
use std::{cell::Cell, marker::PhantomData, time::Instant};

thread_local! {
    static CURRENT: Cell<CallContext> = const { Cell::new(CallContext { priority: None, deadline: None, is_repeated: false }) };
}

/// What a call hands on to the calls that are made while it is served.
///
/// See the [module](self) for an example.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct CallContext {
    /// The importance of the call. `None` if it was not given; policies then use the default.
    pub priority: Option<Priority>,
    /// When the result of the call is of no use any more. `None` if there is no limit.
    pub deadline: Option<Instant>,
    /// Whether the caller repeats this call: it was sent before, and failed or took long. Retry
    /// budgets do not count the calls that are made for it.
    pub is_repeated: bool,
}

impl CallContext {
    /// Returns the context of the call that is being served, or an empty one.
    #[inline]
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Returns the context with another priority.
    pub fn with_priority(self, priority: Priority) -> Self {
        Self { priority: Some(priority), ..self }
    }

    /// Returns the context with the earlier one of its deadline and `deadline`: a call cannot get
    /// more time than the call that it serves.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, context::CallContext};
    /// use std::time::Duration;
    ///
    /// let now = ManualClock::new().now();
    /// let context = CallContext::default().with_deadline(now + Duration::from_secs(1));
    /// assert_eq!(context.with_deadline(now + Duration::from_secs(5)), context);
    /// ```
    pub fn with_deadline(self, deadline: Instant) -> Self {
        let deadline = self.deadline.map_or(deadline, |own| own.min(deadline));
        Self { deadline: Some(deadline), ..self }
    }

    /// Returns the context of a call that its caller repeats.
    pub fn with_repeated(self, is_repeated: bool) -> Self {
        Self { is_repeated, ..self }
    }

    /// Makes this the current context of the thread until the guard is dropped, which restores the
    /// context before it.
    ///
    /// Drop guards in the reverse order, and hold none over an `await`: other tasks of the thread
    /// would run in this context. `buttress::context::with` runs a future in a context.
    #[inline]
    pub fn enter(self) -> Entered {
        Entered { before: CURRENT.replace(self), _not_send: PhantomData }
    }
}

/// Guard of [`CallContext::enter`].
#[derive(Debug)]
#[must_use = "the context before is restored when the guard is dropped"]
pub struct Entered {
    before: CallContext,
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Criticality;

    #[test]
    fn the_context_before_is_restored_also_after_a_panic() {
        let outer = CallContext::default().with_priority(Criticality::SheddablePlus.into());
        let inner = outer.with_priority(Criticality::CriticalPlus.into());
        let _outer = outer.enter();
        let panicked = std::panic::catch_unwind(|| {
            let _inner = inner.enter();
            assert_eq!(CallContext::current(), inner);
            panic!("in the call");
        });
        assert!(panicked.is_err());
        assert_eq!(CallContext::current(), outer);
    }

    #[test]
    fn a_thread_has_a_context_of_its_own() {
        let _entered = CallContext::default().with_priority(Criticality::Sheddable.into()).enter();
        let other = std::thread::spawn(CallContext::current).join().unwrap();
        assert_eq!(other, CallContext::default());
    }
}
