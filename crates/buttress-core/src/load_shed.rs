//! Rejects calls while a service is overloaded, the least important ones first.
//!
//! # Algorithm
//!
//! [Monitors](Monitor) say how loaded the service is: how long work waits for its turn, how full a
//! bulkhead is, how busy the processor. A level of 1 is the limit. Ten times a second, one of the
//! calls reads them and adjusts the share of the calls that is admitted to the highest level: at 1
//! or above it shrinks by 5 %, below it grows by 1 % of all calls, so that it is back after ten
//! seconds at most. The steps are those of DAGOR, the overload control of WeChat (Zhou et al., SoCC
//! 2018), which takes them once a second.
//!
//! Which calls are rejected depends on their [priority](crate::Priority). The calls of the last
//! second are counted by priority, and the share that is to be rejected is taken from the least
//! important end. Of the calls at the threshold a part is rejected at random, so that the share is
//! kept where all calls have one priority.
//!
//! A call whose deadline cannot be met is rejected at any level: if it is over, or if less time is
//! left than the median of the last calls took. Every tenth of the latter is admitted, or an
//! estimate from before a recovery would never be replaced.
//!
//! # Tenants
//!
//! With a [tenant](Call::tenant), a call is less important the more its tenant asks for: by the
//! tenant's share of the calls of the last 10 to 20 seconds, as a part of the 128 levels of its
//! class. A call does not leave its class. The calls are counted in a count-min sketch of 16 KiB
//! (Cormode and Muthukrishnan, 2005): any number of tenants takes the same memory, and two that
//! share their cells are taken for one.

mod builder;
mod control;
mod monitor;
mod permit;
mod queue_delay;
mod report;
mod tenants;
#[cfg(all(test, not(loom)))]
mod tests;
mod times;

pub use builder::Builder;
pub use monitor::{Monitor, MonitorFn, monitor_fn};
pub use permit::LoadShedPermit;
pub use queue_delay::QueueDelay;

use crate::beat::Beat;
use crate::context::CallContext;
use crate::cut::Cut;
use crate::draws::Draws;
use crate::label::Labels;
use crate::policy::{Policy, Refused};
use crate::shard::{Counter, Sharded};
use crate::sync::{AtomicU64, Ordering};
use crate::timeline::Timeline;
use crate::{Class, Clock, Criticality, Name, Priority, Reason, Rejection};
use control::Control;
use monitor::Watched;
use std::{
    fmt,
    ops::RangeInclusive,
    sync::OnceLock,
    time::{Duration, Instant},
};
use tenants::Tenants;
use times::Times;

/// The service is overloaded, and the call is among its least important ones.
pub static OVERLOADED: Reason = Reason::new("overloaded", "overloaded", Class::Exhausted);
/// The call would end after its deadline.
pub static TOO_LATE: Reason = Reason::new("too_late", "the deadline cannot be met", Class::Deadline);

const POLICY: &str = "load shed";
/// Time between two steps of the control, in nanoseconds.
const STEP: u64 = 100_000_000;
/// Of how many calls of one priority one is timed.
const TIMED: u32 = 8;
/// Of how many calls that are expected to be late one is admitted.
const TRIED: u64 = 10;

/// Rejects a share of the calls while the service is overloaded. A cheap handle; clones share the
/// state.
///
/// The [module](self) describes the algorithm. Without a [monitor](Builder::monitor) it rejects
/// only calls whose deadline cannot be met.
///
/// ```
/// use buttress_core::{Criticality, ManualClock, Policy, Priority, context::CallContext};
/// use buttress_core::load_shed::{LoadShed, monitor_fn};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let shed = LoadShed::<ManualClock>::builder("orders")
///     .clock(clock.clone())
///     .monitor(monitor_fn("pool", || 2.0)) // twice as much as it can do
///     .build()?;
/// let call = |criticality| {
///     let _entered = CallContext::default().with_priority(Priority::new(criticality)).enter();
///     shed.admit("a request").is_ok()
/// };
/// let mut admitted = [0, 0];
/// for _interval in 0..30 {
///     clock.advance(Duration::from_millis(100));
///     for _call in 0..10 {
///         admitted[0] += u32::from(call(Criticality::CriticalPlus));
///         admitted[1] += u32::from(call(Criticality::Sheddable));
///     }
/// }
/// assert!(admitted[0] > 2 * admitted[1], "{admitted:?}");
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
pub struct LoadShed<C>(Sharded<State<C>>);

impl<C> Clone for LoadShed<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What a [`LoadShed`] uses of a call, apart from its [context](CallContext).
///
/// ```
/// use buttress_core::{ManualClock, load_shed::{Call, LoadShed}};
///
/// let shed = LoadShed::<ManualClock>::new("orders");
/// let mut probe = Call::default();
/// probe.is_exempt = true;
/// assert!(shed.admit_call(probe).is_ok());
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Call {
    /// Whether it is admitted in any case and not counted, as a probe of health is.
    pub is_exempt: bool,
    /// The hash of the tenant that makes it, if tenants are told apart. Hash with a secret, so that
    /// nobody can choose a name that counts as another tenant's.
    pub tenant: Option<u64>,
    /// How long it has waited before it came to the layer, if that is known.
    pub waited: Option<Duration>,
}

/// Reads no monitor: they are code of users.
impl<C> fmt::Debug for LoadShed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShed")
            .field("name", &self.0.labels.name())
            .field("share", &self.0.control.share())
            .finish_non_exhaustive()
    }
}

/// Takes the waits of calls. Erased, so that the monitor may have a clock of its own.
struct Waits(Box<dyn Fn(Duration) + Send + Sync>);

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waits")
    }
}

#[derive(Debug)]
struct State<C> {
    labels: Labels,
    clock: C,
    time: Timeline,
    beat: Beat,
    cut: Cut,
    draws: Draws,
    monitors: Box<[Watched]>,
    waits: Option<Waits>,
    /// Made by the first call with a tenant.
    tenants: OnceLock<Box<Tenants>>,
    times: Times,
    control: Control,
    retry_after: RangeInclusive<Duration>,
    /// Rejected calls by class.
    shed: [Counter; 4],
    late: Counter,
    /// Calls that were expected to be late.
    expected_late: AtomicU64,
}

impl<C: Clock + Default> LoadShed<C> {
    /// Creates a handle without monitors.
    ///
    /// ```
    /// use buttress_core::{ManualClock, load_shed::LoadShed};
    ///
    /// assert_eq!(LoadShed::<ManualClock>::new("orders").share(), 0.0);
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        Builder::new(name.into()).into_load_shed()
    }

    /// Returns a builder without monitors.
    ///
    /// ```
    /// use buttress_core::{ManualClock, bulkhead::Bulkhead, load_shed::LoadShed};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(64);
    /// let shed = LoadShed::<ManualClock>::builder("orders").monitor_at(0.9, bulkhead.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder(name: impl Into<Name>) -> Builder<C> {
        Builder::new(name.into())
    }
}

impl<C: Clock> LoadShed<C> {
    /// Returns the name.
    pub fn name(&self) -> &str {
        self.0.labels.name().map_or("", |name| name)
    }

    /// Admits or rejects a call.
    ///
    /// # Errors
    /// [`OVERLOADED`] or [`TOO_LATE`].
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, context::CallContext};
    /// use buttress_core::load_shed::{Call, LoadShed, TOO_LATE};
    ///
    /// let clock = ManualClock::new();
    /// let shed = LoadShed::<ManualClock>::builder("orders").clock(clock.clone()).build()?;
    /// let _entered = CallContext::default().with_deadline(clock.now()).enter();
    /// assert_eq!(shed.admit_call(Call::default()).unwrap_err().reason(), &TOO_LATE);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[inline]
    pub fn admit_call(&self, call: Call) -> Result<LoadShedPermit<C>, Rejection> {
        let state = &*self.0;
        if let (Some(waits), Some(waited)) = (&state.waits, call.waited) {
            (waits.0)(waited);
        }
        if call.is_exempt {
            return Ok(LoadShedPermit::untimed());
        }
        let context = CallContext::current();
        let priority = context.priority.unwrap_or_default();
        let rank = match call.tenant {
            Some(tenant) => state.tenants.get_or_init(Tenants::new).demote(priority, tenant).rank(),
            None => priority.rank(),
        };
        let nth = state.cut.arrive(rank);
        state.roll();
        if state.cut.rejects(rank, &state.draws) {
            return Err(state.shed(priority));
        }
        if let Some(deadline) = context.deadline
            && state.is_late(deadline)
        {
            return Err(state.too_late());
        }
        Ok(if nth.is_multiple_of(TIMED) { LoadShedPermit::timed(self.0.ticket()) } else { LoadShedPermit::untimed() })
    }

    /// Returns the share of the calls that is rejected now, between 0 and 1.
    pub fn share(&self) -> f64 {
        self.0.roll();
        self.0.control.share()
    }

    /// Returns the priority of which a share is rejected; less important calls are all rejected.
    /// `None` while none are.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, load_shed::LoadShed};
    /// assert_eq!(LoadShed::<ManualClock>::new("orders").threshold(), None);
    /// ```
    pub fn threshold(&self) -> Option<Priority> {
        self.0.roll();
        self.0.cut.threshold()
    }

    /// Returns the name and the level of each monitor. 1 is the limit.
    ///
    /// ```
    /// use buttress_core::{ManualClock, load_shed::{LoadShed, monitor_fn}};
    ///
    /// let builder = LoadShed::<ManualClock>::builder("orders").monitor(monitor_fn("pool", || 0.5));
    /// assert_eq!(builder.build()?.levels(), [("pool", 0.5)]);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn levels(&self) -> Vec<(&'static str, f64)> {
        self.0.monitors.iter().map(|watched| (watched.name(), watched.level())).collect()
    }

    /// Returns the median of how long the last calls took, to the head of their response. `None`
    /// if there were too few.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, load_shed::LoadShed};
    /// assert_eq!(LoadShed::<ManualClock>::new("orders").median_time(), None);
    /// ```
    pub fn median_time(&self) -> Option<Duration> {
        self.0.roll();
        self.0.times.median().map(Duration::from_nanos)
    }

    /// Returns the number of calls of a class that were rejected for overload.
    ///
    /// ```
    /// # use buttress_core::{Criticality, ManualClock, load_shed::LoadShed};
    /// assert_eq!(LoadShed::<ManualClock>::new("orders").shed(Criticality::Critical), 0);
    /// ```
    pub fn shed(&self, class: Criticality) -> u64 {
        self.0.shed[class as usize].sum()
    }

    /// Returns the number of calls that were rejected because their deadline could not be met.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, load_shed::LoadShed};
    /// assert_eq!(LoadShed::<ManualClock>::new("orders").too_late(), 0);
    /// ```
    pub fn too_late(&self) -> u64 {
        self.0.late.sum()
    }
}

impl<C: Clock> State<C> {
    /// Lets one of the callers take the steps that are due.
    #[inline]
    fn roll(&self) {
        if let Some(steps) = self.beat.ended(self.time.coarse_nanos(&self.clock)) {
            self.step(steps);
        }
    }

    #[cold]
    fn step(&self, steps: u64) {
        let level = self.monitors.iter().map(Watched::level).fold(0.0, f64::max);
        self.cut.set(self.control.step(level, steps), steps);
        self.times.refresh(steps);
        if let Some(tenants) = self.tenants.get() {
            tenants.refresh(steps);
        }
    }

    #[cold]
    fn is_late(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(self.clock.now());
        if left.is_zero() {
            return true;
        }
        let is_short = self.times.median().is_some_and(|median| left < Duration::from_nanos(median));
        is_short && !(self.expected_late.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(TRIED)
    }

    #[cold]
    fn shed(&self, priority: Priority) -> Rejection {
        self.shed[priority.criticality() as usize].add(1);
        self.labels.reject(&OVERLOADED).after(Some(self.draws.between(&self.retry_after)))
    }

    #[cold]
    fn too_late(&self) -> Rejection {
        self.late.add(1);
        self.labels.reject(&TOO_LATE)
    }
}

impl<C: Clock, Req: ?Sized> Policy<Req> for LoadShed<C> {
    type Permit = LoadShedPermit<C>;

    #[inline]
    fn admit(&self, _: &Req) -> Result<LoadShedPermit<C>, Rejection> {
        self.admit_call(Call::default())
    }

    fn unready(&self) -> Option<Result<LoadShedPermit<C>, Refused>> {
        Some(Ok(LoadShedPermit::untimed()))
    }
}
