//! Until when the result of a call is of use, and whether to start it at all.
//!
//! # Algorithm
//!
//! The deadline of a call is the earliest one of the deadline of the [call that it
//! serves](crate::context), of the time that its request grants, and of a limit. So it only gets
//! shorter from call to call. Between processes it travels as the time that is left, never as a
//! moment: the clocks of two machines differ.
//!
//! A call that starts without time left is not worth its work: its caller has gone. A server
//! rejects it, with a safety valve from Finagle's `DeadlineFilter`: a wrong header, or a clock that
//! jumps, makes all calls look late, and a server that rejects all of them is down. So at most a
//! share of the calls of the last seconds is rejected, 0.2 of those of 10 s by default. A late call
//! beyond that starts as if it had no deadline but the limits of the server.
//!
//! | [`Mode`] | a late call | a call whose deadline passes |
//! |---|---|---|
//! | [`Observe`](Mode::Observe) | is counted and starts | is counted and goes on |
//! | [`Enforce`](Mode::Enforce) | is rejected, up to the share | ends |
//! | [`EnforceAll`](Mode::EnforceAll) | is rejected | ends |
//!
//! A deadline that is far away is compared with the coarse [`Clock`], which is some milliseconds
//! behind, and one that is nearer than 250 ms with the precise one. A limit of 250 ms or more can
//! therefore end some milliseconds early, by the resolution of the coarse clock (4 ms on most
//! Linux kernels, 10 ms on some), and never late.

mod builder;
mod call;
mod report;
mod terms;
#[cfg(all(test, not(loom)))]
mod tests;
mod valve;

pub use builder::Builder;
pub use call::{Near, Started};
pub use terms::{Deadline, Terms};

use crate::context::CallContext;
use crate::label::Labels;
use crate::shard::{Counter, Sharded};
use crate::sync::{AtomicU32, Ordering};
use crate::{Class, Clock, Name, Reason, Rejection, TimeoutKind};
use call::{UNLIMITED, nanos};
use std::time::{Duration, Instant};
use terms::earlier;
use valve::Valve;

/// The call was not started: its deadline had passed.
pub static EXPIRED: Reason = Reason::new("deadline_expired", "not started, the deadline has passed", Class::Deadline);
/// The call was not started: less time was left than a call needs.
pub static TOO_SHORT: Reason =
    Reason::new("deadline_too_short", "not started, too little time is left", Class::Deadline);
/// The deadline passed while the call was in flight.
pub static EXCEEDED: Reason =
    Reason::timeout("deadline_exceeded", "the deadline passed before the call ended", TimeoutKind::Deadline);

/// The default of [`Terms::min_useful`] for clients: 1 ms. Below it a call over a network hardly
/// ever succeeds.
pub const MIN_USEFUL: Duration = Duration::from_millis(1);

const POLICY: &str = "deadline";
/// From here on the precise clock is read. More than ten times the tick of a coarse clock.
const NEAR: Duration = Duration::from_millis(250);

/// What happens to calls that have no time left.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Mode {
    /// Counts late calls and does nothing else: no deadline is handed on or enforced. To see what
    /// the other modes would do.
    Observe,
    /// Rejects late calls, up to a share of all calls.
    #[default]
    Enforce,
    /// Rejects all late calls.
    EnforceAll,
}

/// Decides whether calls start within their deadlines, and counts those that do not end within
/// them. A cheap handle; clones share the counts.
///
/// ```
/// use buttress_core::{Clock, ManualClock, context::CallContext};
/// use buttress_core::deadline::{Deadlines, EXPIRED, Terms};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let deadlines = Deadlines::<ManualClock>::builder().clock(clock.clone()).max_share(1.0).build()?;
/// let terms = Terms { asked: Some(Duration::from_secs(2)), ..Terms::default() };
/// let mut context = CallContext::default();
/// let _started = deadlines.start(&mut context, &terms)?;
/// assert_eq!(context.deadline, Some(clock.now() + Duration::from_secs(2)));
///
/// // A call that is made while this one is served gets what is left, and nothing after that.
/// clock.advance(Duration::from_secs(2));
/// let error = deadlines.start(&mut context, &terms).unwrap_err();
/// assert_eq!(error.reason(), &EXPIRED);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Deadlines<C> {
    state: Sharded<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    labels: Labels,
    mode: AtomicU32,
    valve: Valve,
    expired: Counter,
    observed: Counter,
    exceeded: Counter,
}

impl<C: Clock + Default> Deadlines<C> {
    /// Creates a handle with the defaults of [`builder`](Self::builder).
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::{Deadlines, Mode}};
    ///
    /// assert_eq!(Deadlines::<ManualClock>::new().mode(), Mode::Enforce);
    /// ```
    pub fn new() -> Self {
        Builder::default().into_deadlines(builder::MAX_SHARE)
    }

    /// Creates a handle with a name, for rejections and metrics, and the defaults of
    /// [`builder`](Self::builder).
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::Deadlines};
    ///
    /// assert_eq!(Deadlines::<ManualClock>::named("orders").name(), Some("orders"));
    /// ```
    pub fn named(name: impl Into<Name>) -> Self {
        Builder::default().name(name).into_deadlines(builder::MAX_SHARE)
    }

    /// Returns a builder with [`Mode::Enforce`], a share of at most 0.2, and a window of 10 s.
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::Deadlines};
    ///
    /// let deadlines = Deadlines::<ManualClock>::builder().name("orders").max_share(0.1).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder() -> Builder<C> {
        Builder::default()
    }
}

impl<C: Clock + Default> Default for Deadlines<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clock> Deadlines<C> {
    /// Returns the name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.state.labels.name().map(|name| &**name)
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.state.mode()
    }

    /// Sets the mode, from the next call on.
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::{Deadlines, Mode}};
    ///
    /// let deadlines = Deadlines::<ManualClock>::new();
    /// deadlines.set_mode(Mode::Observe);
    /// assert_eq!(deadlines.mode(), Mode::Observe);
    /// ```
    pub fn set_mode(&self, mode: Mode) {
        self.state.mode.store(mode as u32, Ordering::Relaxed);
    }

    /// Starts a call, and puts its deadline into its context. Returns what is kept of the call
    /// until it ends, and the deadline of a call that [`Mode::Observe`] only observes.
    ///
    /// # Errors
    /// [`EXPIRED`] if no time is left, [`TOO_SHORT`] if less than [`Terms::min_useful`] is left, as
    /// far as the [mode](Mode) rejects.
    pub fn start(&self, context: &mut CallContext, terms: &Terms) -> Result<(Started, Option<Instant>), Rejection> {
        match self.start_far(context, terms) {
            Ok(started) => Ok((started, None)),
            Err(near) => near.start(self, context, terms),
        }
    }

    /// Starts a call as [`start`](Self::start) does, if its deadline is far away.
    ///
    /// Apart from what follows otherwise, so that its result needs no memory.
    ///
    /// # Errors
    /// What [`Near::start`] needs to decide on the call.
    #[inline(always)]
    pub fn start_far(&self, context: &mut CallContext, terms: &Terms) -> Result<Started, Near> {
        let (ticket, mode) = (self.state.ticket(), self.state.mode());
        if mode == Mode::Enforce {
            ticket.valve.count(&self.clock, ticket.shard());
        }
        let (limit, until) = (terms.limit(), earlier(context.deadline, terms.until));
        if limit.is_none() && until.is_none() {
            return Ok(Started::new(ticket, UNLIMITED));
        }
        let is_near = limit.is_some_and(|limit| limit < NEAR);
        let now = if is_near { self.clock.now() } else { self.clock.coarse() };
        let deadline = earlier(until, limit.and_then(|limit| now.checked_add(limit)));
        // `None` only if the limit is beyond all time.
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        if left < NEAR || left < terms.min_useful || mode == Mode::Observe {
            return Err(Near::new(ticket));
        }
        context.deadline = deadline;
        Ok(Started::new(ticket, if deadline.is_some() { nanos(left) } else { UNLIMITED }))
    }

    /// Returns the number of calls that were rejected because no time, or too little, was left.
    pub fn expired(&self) -> u64 {
        self.state.expired.sum()
    }

    /// Returns the number of calls that had no time left, or too little, and were not rejected.
    pub fn observed(&self) -> u64 {
        self.state.observed.sum()
    }

    /// Returns the number of calls whose deadline passed before their response began.
    pub fn exceeded(&self) -> u64 {
        self.state.exceeded.sum()
    }
}

impl State {
    #[inline]
    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Observe,
            1 => Mode::Enforce,
            _ => Mode::EnforceAll,
        }
    }
}
