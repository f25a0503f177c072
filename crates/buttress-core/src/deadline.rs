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
mod report;
#[cfg(all(test, not(loom)))]
mod tests;
mod valve;

pub use builder::Builder;

use crate::context::CallContext;
use crate::label::Labels;
use crate::shard::{Counter, Sharded, Ticket};
use crate::sync::{AtomicU32, Ordering};
use crate::{Class, Clock, Label, Name, Reason, Rejection, TimeoutKind, timeline};
use std::time::{Duration, Instant};
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

/// The moment at which the result of a call is of no use any more, as an extension of its request.
///
/// It is monotonic and of this process.
///
/// ```
/// use buttress_core::{Clock, ManualClock, deadline::Deadline};
/// use std::time::Duration;
///
/// let now = ManualClock::new().now();
/// let deadline = Deadline(now + Duration::from_secs(2));
/// assert_eq!(deadline.left(now), Duration::from_secs(2));
/// assert_eq!(deadline.left(now + Duration::from_secs(3)), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// Returns the time that is left at `now`, zero if the deadline has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Returns the time that is left on `clock`, which is read precisely only if the deadline is
    /// near. Up to some milliseconds too long if more than 250 ms are left.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, deadline::Deadline};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let deadline = Deadline(clock.now() + Duration::from_secs(2));
    /// clock.advance(Duration::from_secs(1));
    /// assert_eq!(deadline.left_on(&clock), Duration::from_secs(1));
    /// ```
    #[inline]
    pub fn left_on(self, clock: &impl Clock) -> Duration {
        let left = self.left(clock.coarse());
        if left < NEAR { self.left(clock.now()) } else { left }
    }
}

/// What is known of the time of one call.
///
/// ```
/// use buttress_core::deadline::Terms;
/// use std::time::Duration;
///
/// let terms = Terms { asked: Some(Duration::from_secs(60)), max: Some(Duration::from_secs(5)), ..Terms::default() };
/// assert_eq!(terms.limit(), Some(Duration::from_secs(5)));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// The time that the request grants, from now on.
    pub asked: Option<Duration>,
    /// The deadline that the request has as an extension.
    pub until: Option<Instant>,
    /// The limit if the request grants no time. `None`: no limit.
    pub default: Option<Duration>,
    /// The longest time, whatever the request grants. `None`: no limit.
    pub max: Option<Duration>,
    /// The least time for which a call is started.
    pub min_useful: Duration,
}

impl Terms {
    /// Returns the time that the call gets from now on, apart from deadlines that are moments.
    #[inline]
    pub fn limit(&self) -> Option<Duration> {
        earlier(self.asked.or(self.default), self.max)
    }
}

/// Returns the lesser one, where `None` is no limit.
#[inline]
fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
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

    /// Starts a call, and puts its deadline into its context. Returns what is kept of the call until
    /// it ends, and the deadline of a call that [`Mode::Observe`] only observes.
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
            return Ok(Started { ticket, had: UNLIMITED });
        }
        let is_near = limit.is_some_and(|limit| limit < NEAR);
        let now = if is_near { self.clock.now() } else { self.clock.coarse() };
        let deadline = earlier(until, limit.and_then(|limit| now.checked_add(limit)));
        // `None` only if the limit is beyond all time.
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        if left < NEAR || left < terms.min_useful || mode == Mode::Observe {
            return Err(Near { ticket });
        }
        context.deadline = deadline;
        Ok(Started { ticket, had: if deadline.is_some() { nanos(left) } else { UNLIMITED } })
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

/// A call that was counted and not started yet, because its deadline is near, or only observed.
#[derive(Debug)]
#[must_use]
pub struct Near {
    ticket: Ticket<State>,
}

impl Near {
    /// Starts a call whose deadline is near, or is only observed, by the precise clock.
    ///
    /// # Errors
    /// As [`Deadlines::start`].
    #[inline(never)]
    pub fn start<C: Clock>(
        self,
        deadlines: &Deadlines<C>,
        context: &mut CallContext,
        terms: &Terms,
    ) -> Result<(Started, Option<Instant>), Rejection> {
        let (Self { ticket }, clock) = (self, &deadlines.clock);
        let now = clock.now();
        let own = terms.limit().and_then(|limit| now.checked_add(limit));
        let deadline = earlier(earlier(context.deadline, terms.until), own);
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let is_observed = ticket.mode() == Mode::Observe;
        if left.is_zero() || left < terms.min_useful {
            let rejects = match ticket.mode() {
                Mode::Observe => false,
                Mode::Enforce => ticket.valve.rejects(clock, ticket.shard()),
                Mode::EnforceAll => true,
            };
            if rejects {
                ticket.expired.add(1);
                return Err(ticket.labels.reject(if left.is_zero() { &EXPIRED } else { &TOO_SHORT }));
            }
            ticket.observed.add(1);
            if is_observed {
                return Ok((Started { ticket, had: UNLIMITED }, None));
            }
            // With the deadline that has passed, every layer inside would reject the call.
            let limit = earlier(terms.default, terms.max);
            context.deadline = limit.and_then(|limit| now.checked_add(limit));
            let had = context.deadline.and(limit).map_or(UNLIMITED, nanos);
            return Ok((Started { ticket, had }, None));
        }
        if is_observed {
            return Ok((Started { ticket, had: UNLIMITED }, deadline));
        }
        context.deadline = deadline;
        Ok((Started { ticket, had: deadline.map_or(UNLIMITED, |_| nanos(left)) }, None))
    }
}

/// The nanoseconds of a call that has no deadline of this handle.
const UNLIMITED: u64 = u64::MAX;

fn nanos(time: Duration) -> u64 {
    timeline::nanos(time).min(UNLIMITED - 1)
}

/// A call that has started. Made by [`Deadlines::start`].
///
/// Two words, so that it travels in registers: it is moved with every call.
#[derive(Debug)]
#[must_use]
pub struct Started {
    ticket: Ticket<State>,
    /// The nanoseconds that were left at the start.
    had: u64,
}

impl Started {
    /// Returns the time that was left when the call started. `None` if no deadline is enforced.
    #[inline]
    pub fn had(&self) -> Option<Duration> {
        (self.had != UNLIMITED).then(|| Duration::from_nanos(self.had))
    }

    /// Returns the name for rejections, if there is one.
    #[inline]
    pub fn label(&self) -> Option<Label> {
        self.ticket.labels.named()
    }

    /// Counts the call as one whose deadline passed, and returns the rejection for it.
    #[cold]
    pub fn exceed(&self) -> Rejection {
        self.ticket.exceeded.add(1);
        self.ticket.labels.reject(&EXCEEDED).with_limit(self.had().unwrap_or_default())
    }
}
