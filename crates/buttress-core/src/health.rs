//! The health of a service: liveness, readiness and start-up.
//!
//! Indicators report statuses, and a probe is answered from their last reports: it runs no check
//! itself. The status of a group is that of its worst indicator. The groups follow
//! [Kubernetes](https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/):
//!
//! | probe | if it fails | indicators |
//! |---|---|---|
//! | liveness | the process is restarted | must not depend on anything outside the process |
//! | readiness | the instance receives no traffic | what every request needs, such as a database |
//! | start-up | the other two are not probed yet | none: [`Health::started`] decides |

use crate::Clock;
use crate::report::{Metric, Sink, Value};
use crate::sync::{Mutex, lock};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The status of an indicator or a group, from best to worst.
///
/// ```
/// use buttress_core::health::Status;
///
/// assert_eq!([Status::Up, Status::Down, Status::Degraded].into_iter().max(), Some(Status::Down));
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Status {
    /// Works.
    Up,
    /// Works with reduced capacity or function: an open circuit, a missing replica. Still receives
    /// traffic.
    Degraded,
    /// No report yet, or the last one is too old.
    Unknown,
    /// Out of service on purpose: starting or draining.
    OutOfService,
    /// Does not work.
    Down,
}

impl Status {
    /// All statuses, from best to worst.
    pub const ALL: [Self; 5] = [Self::Up, Self::Degraded, Self::Unknown, Self::OutOfService, Self::Down];

    /// Returns whether an instance of this status should receive traffic: [`Up`](Self::Up) or
    /// [`Degraded`](Self::Degraded).
    ///
    /// ```
    /// use buttress_core::health::Status;
    ///
    /// assert!(Status::Degraded.is_serving() && !Status::Unknown.is_serving());
    /// ```
    pub fn is_serving(self) -> bool {
        self <= Self::Degraded
    }

    /// Returns the status as a lower-case word, such as `out-of-service`.
    ///
    /// ```
    /// # use buttress_core::health::Status;
    /// assert_eq!(Status::OutOfService.as_str(), "out-of-service");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::OutOfService => "out-of-service",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The group of an indicator, which decides which probe it affects.
///
/// ```
/// use buttress_core::{ManualClock, health::{Group, Health, Probe, Rules, Status}};
///
/// let health = Health::<ManualClock>::new();
/// health.started();
/// let circuit = health.indicator("payments", Group::Dependencies, Rules::AT_ONCE);
/// circuit.down("circuit open");
/// assert_eq!(health.status(Probe::Readiness), Status::Up);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Group {
    /// Affects liveness: an instance that is not live is restarted. Must not depend on anything
    /// outside the process.
    Liveness,
    /// Affects readiness: an instance that is not ready receives no traffic.
    Readiness,
    /// Affects no probe and is listed in reports, for example a circuit to another service. In
    /// readiness, one service that is down would take all its callers out of rotation.
    Dependencies,
}

/// The kind of a probe.
///
/// ```
/// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
///
/// let health = Health::<ManualClock>::new();
/// assert_eq!(health.status(Probe::Startup), Status::OutOfService);
/// health.started();
/// assert_eq!(health.status(Probe::Startup), Status::Up);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Probe {
    /// Whether the process works: `/livez`.
    Liveness,
    /// Whether the instance should receive traffic: `/readyz`.
    Readiness,
    /// Whether the service has started: `/startupz`.
    Startup,
}

/// The health of one service. A cheap handle; clones share the state.
///
/// A new one is neither started nor ready. `C` is its clock, by which reports become too old.
///
/// ```
/// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
///
/// let health = Health::<ManualClock>::new();
/// let database = health.readiness("database");
/// health.started();
/// assert_eq!(health.status(Probe::Readiness), Status::Unknown);
/// database.up();
/// assert_eq!(health.status(Probe::Readiness), Status::Up);
/// health.drain();
/// assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
/// assert_eq!(health.status(Probe::Liveness), Status::Up, "draining must not cause a restart");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Health<C> {
    state: Arc<State>,
    clock: C,
}

#[derive(Debug, Default)]
struct State {
    started: AtomicBool,
    draining: AtomicBool,
    next: AtomicU64,
    indicators: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    name: String,
    group: Group,
    status: Status,
    detail: Option<String>,
    reported: Option<Instant>,
    rules: Rules,
    /// Consecutive reports that contradict the current status.
    contrary: u32,
}

/// How many reports change the status of an indicator, and how long a report is valid.
///
/// A report on an indicator whose status is unknown changes it at once.
///
/// ```
/// use buttress_core::{ManualClock, health::{Group, Health, Probe, Rules, Status}};
/// use std::time::Duration;
///
/// let health = Health::<ManualClock>::new();
/// health.started();
/// let rules = Rules { fall: 2, ..Rules::every(Duration::from_secs(10)) };
/// let database = health.indicator("database", Group::Readiness, rules);
/// database.up();
/// database.down("timeout");
/// assert_eq!(health.status(Probe::Readiness), Status::Up, "one failed check does not count");
/// database.down("timeout");
/// assert_eq!(health.status(Probe::Readiness), Status::Down);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Consecutive good reports after which a bad status becomes good. 1 in both constructors
    /// (Kubernetes' `successThreshold`).
    pub rise: u32,
    /// Consecutive bad reports after which a good status becomes bad. 3 in [`every`](Self::every)
    /// (Kubernetes' `failureThreshold`), 1 in [`AT_ONCE`](Self::AT_ONCE).
    pub fall: u32,
    /// The time without a report after which the status becomes [`Status::Unknown`]. `None` if a
    /// report is valid until the next one.
    pub max_age: Option<Duration>,
}

impl Rules {
    /// Each report changes the status at once and is valid until the next one.
    pub const AT_ONCE: Self = Self { rise: 1, fall: 1, max_age: None };

    /// Returns the rules of a check that runs every `interval`: 1 good report or 3 consecutive bad
    /// ones change the status, which becomes unknown after three intervals without a report.
    ///
    /// ```
    /// use buttress_core::health::Rules;
    /// use std::time::Duration;
    ///
    /// let rules = Rules::every(Duration::from_secs(10));
    /// assert_eq!((rules.rise, rules.fall, rules.max_age), (1, 3, Some(Duration::from_secs(30))));
    /// ```
    pub const fn every(interval: Duration) -> Self {
        Self { rise: 1, fall: 3, max_age: Some(interval.saturating_mul(3)) }
    }
}

impl<C: Clock + Default> Health<C> {
    /// Creates the health of a service that is starting.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
    /// assert_eq!(health.status(Probe::Liveness), Status::Up);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C: Clock> Health<C> {
    /// Creates the health of a service that is starting, with a clock of its own.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Group, Health, Probe, Rules, Status}};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new();
    /// let health = Health::with_clock(clock.clone());
    /// health.started();
    /// let rules = Rules::every(Duration::from_secs(10));
    /// let database = health.indicator("database", Group::Readiness, rules);
    /// database.up();
    /// clock.advance(Duration::from_secs(31));
    /// assert_eq!(health.status(Probe::Readiness), Status::Unknown);
    /// ```
    pub fn with_clock(clock: C) -> Self {
        Self { state: Arc::default(), clock }
    }

    /// Marks the service as started. This cannot be undone.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// health.started();
    /// assert_eq!(health.status(Probe::Startup), Status::Up);
    /// ```
    pub fn started(&self) {
        self.state.started.store(true, Ordering::Release);
    }

    /// Marks the service as draining, before it stops: it is no longer ready, and still live. This
    /// cannot be undone; no later report makes it ready again.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// health.started();
    /// health.drain();
    /// assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
    /// assert_eq!(health.status(Probe::Liveness), Status::Up);
    /// ```
    pub fn drain(&self) {
        self.state.draining.store(true, Ordering::Release);
    }

    /// Returns whether [`drain`](Self::drain) was called.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, health::Health};
    /// let health = Health::<ManualClock>::new();
    /// health.drain();
    /// assert!(health.is_draining());
    /// ```
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Acquire)
    }

    /// Adds an indicator to the group [`Group::Readiness`], with [`Rules::AT_ONCE`]. Its status is
    /// unknown until its first report. Dropping it removes it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// health.started();
    /// let database = health.readiness("database");
    /// assert_eq!(health.status(Probe::Readiness), Status::Unknown);
    /// database.up();
    /// assert_eq!(health.status(Probe::Readiness), Status::Up);
    /// ```
    pub fn readiness(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Readiness, Rules::AT_ONCE)
    }

    /// Adds an indicator to the group [`Group::Liveness`], with [`Rules::AT_ONCE`]. Its status is
    /// unknown until its first report. Dropping it removes it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// let event_loop = health.liveness("event loop");
    /// event_loop.down("no tick for 60 s");
    /// assert_eq!(health.status(Probe::Liveness), Status::Down);
    /// ```
    pub fn liveness(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Liveness, Rules::AT_ONCE)
    }

    /// Adds an indicator to the group [`Group::Dependencies`], with [`Rules::AT_ONCE`]. Its status
    /// is unknown until its first report. Dropping it removes it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// health.started();
    /// let payments = health.dependency("payments");
    /// payments.down("circuit open");
    /// assert_eq!(health.status(Probe::Readiness), Status::Up);
    /// assert_eq!(health.report().indicators[0].status, Status::Down);
    /// ```
    pub fn dependency(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Dependencies, Rules::AT_ONCE)
    }

    /// Adds an indicator with the given rules. Its status is unknown until its first report.
    /// Dropping it removes it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Group, Health, Rules}};
    /// use std::time::Duration;
    ///
    /// let health = Health::<ManualClock>::new();
    /// let rules = Rules::every(Duration::from_secs(10));
    /// let disk = health.indicator("disk", Group::Readiness, rules);
    /// disk.down("90 % full");
    /// assert_eq!(health.report().indicators[0].detail.as_deref(), Some("90 % full"));
    /// ```
    pub fn indicator(&self, name: impl Into<String>, group: Group, rules: Rules) -> Indicator<C> {
        let id = self.state.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.state.indicators).push(Entry {
            id,
            name: name.into(),
            group,
            status: Status::Unknown,
            detail: None,
            reported: None,
            rules,
            contrary: 0,
        });
        Indicator { health: self.clone(), id }
    }

    /// Returns the status for a probe.
    ///
    /// A service that has not started, or that is draining, is [`Status::OutOfService`] for
    /// readiness. A group without indicators is [`Status::Up`].
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::{Health, Probe}};
    ///
    /// let health = Health::<ManualClock>::new();
    /// let code = if health.status(Probe::Readiness).is_serving() { 200 } else { 503 };
    /// assert_eq!(code, 503);
    /// ```
    pub fn status(&self, probe: Probe) -> Status {
        let worst = |group| {
            let now = self.clock.now();
            lock(&self.state.indicators)
                .iter()
                .filter(|entry| entry.group == group)
                .map(|entry| entry.status(now))
                .max()
                .unwrap_or(Status::Up)
        };
        let started = self.state.started.load(Ordering::Acquire);
        match probe {
            Probe::Liveness => worst(Group::Liveness),
            Probe::Startup if started => Status::Up,
            Probe::Readiness if started && !self.is_draining() => worst(Group::Readiness),
            Probe::Startup | Probe::Readiness => Status::OutOfService,
        }
    }

    /// Returns all indicators and statuses, for operators.
    ///
    /// ```
    /// use buttress_core::{ManualClock, health::Health};
    ///
    /// let health = Health::<ManualClock>::new();
    /// let _database = health.readiness("database");
    /// let report = health.report();
    /// assert_eq!((report.started, report.indicators[0].name.as_str()), (false, "database"));
    /// ```
    pub fn report(&self) -> Report {
        let now = self.clock.now();
        let indicators = lock(&self.state.indicators)
            .iter()
            .map(|entry| Line {
                name: entry.name.clone(),
                group: entry.group,
                status: entry.status(now),
                detail: entry.detail.clone(),
            })
            .collect();
        Report {
            started: self.state.started.load(Ordering::Acquire),
            draining: self.is_draining(),
            readiness: self.status(Probe::Readiness),
            liveness: self.status(Probe::Liveness),
            indicators,
        }
    }
}

impl Entry {
    fn status(&self, now: Instant) -> Status {
        let old = |max_age| self.reported.is_some_and(|reported| now.saturating_duration_since(reported) > max_age);
        if self.rules.max_age.is_some_and(old) { Status::Unknown } else { self.status }
    }

    fn report(&mut self, status: Status, detail: Option<String>, now: Instant) {
        let unknown = self.status(now) == Status::Unknown;
        self.reported = Some(now);
        let turns = status.is_serving() != self.status.is_serving();
        self.contrary = if turns { self.contrary.saturating_add(1) } else { 0 };
        let needed = if status.is_serving() { self.rules.rise } else { self.rules.fall };
        if unknown || !turns || self.contrary >= needed {
            self.status = status;
            self.detail = detail;
            self.contrary = 0;
        }
    }
}

/// Reports the status of one part of a service. Dropping it removes it from its [`Health`].
///
/// ```
/// use buttress_core::{ManualClock, health::{Health, Probe, Status}};
///
/// let health = Health::<ManualClock>::new();
/// health.started();
/// let cache = health.readiness("cache");
/// cache.report(Status::Degraded, Some("one of two nodes".to_owned()));
/// assert!(health.status(Probe::Readiness).is_serving());
/// drop(cache);
/// assert_eq!(health.status(Probe::Readiness), Status::Up);
/// ```
#[derive(Debug)]
#[must_use = "dropping an indicator removes it"]
pub struct Indicator<C> {
    health: Health<C>,
    id: u64,
}

impl<C: Clock> Indicator<C> {
    /// Reports [`Status::Up`].
    ///
    /// ```
    /// # use buttress_core::{ManualClock, health::{Health, Status}};
    /// # let health = Health::<ManualClock>::new();
    /// let database = health.readiness("database");
    /// database.up();
    /// assert_eq!(health.report().indicators[0].status, Status::Up);
    /// ```
    pub fn up(&self) {
        self.report(Status::Up, None);
    }

    /// Reports [`Status::Down`] with its cause.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, health::Health};
    /// # let health = Health::<ManualClock>::new();
    /// let database = health.readiness("database");
    /// database.down("connection refused");
    /// assert_eq!(health.report().indicators[0].detail.as_deref(), Some("connection refused"));
    /// ```
    pub fn down(&self, detail: impl Into<String>) {
        self.report(Status::Down, Some(detail.into()));
    }

    /// Reports a status with its cause.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, health::{Health, Status}};
    /// # let health = Health::<ManualClock>::new();
    /// let replicas = health.dependency("replicas");
    /// replicas.report(Status::Degraded, Some("2 of 3".to_owned()));
    /// assert_eq!(health.report().indicators[0].status, Status::Degraded);
    /// ```
    pub fn report(&self, status: Status, detail: Option<String>) {
        let now = self.health.clock.now();
        let mut indicators = lock(&self.health.state.indicators);
        if let Some(entry) = indicators.iter_mut().find(|entry| entry.id == self.id) {
            entry.report(status, detail, now);
        }
    }
}

impl<C> Drop for Indicator<C> {
    fn drop(&mut self) {
        lock(&self.health.state.indicators).retain(|entry| entry.id != self.id);
    }
}

/// The health of a service at one moment, from [`Health::report`].
///
/// ```
/// use buttress_core::{ManualClock, health::{Health, Report}};
///
/// let health = Health::<ManualClock>::new();
/// health.readiness("database").down("gone"); // dropped, so it is not listed
/// let Report { started, draining, indicators, .. } = health.report();
/// assert!(!started && !draining && indicators.is_empty());
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Whether the service has started.
    pub started: bool,
    /// Whether the service is draining.
    pub draining: bool,
    /// The status for [`Probe::Readiness`].
    pub readiness: Status,
    /// The status for [`Probe::Liveness`].
    pub liveness: Status,
    /// All indicators, in the order of their creation.
    pub indicators: Vec<Line>,
}

const SERVING: Metric =
    Metric::gauge("resilience.health.serving", "probes", "1 if the probe is answered with success, else 0")
        .labels(&["probe"]);
const INDICATORS: Metric =
    Metric::gauge("resilience.health.indicators", "indicators", "Indicators that have the status").labels(&["status"]);

/// The metrics have no label `policy`: there is one health per process.
impl<C: Clock> crate::report::Report for Health<C> {
    fn metrics() -> Vec<Metric> {
        vec![SERVING, INDICATORS]
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, sink: &mut dyn Sink) {
        for (word, probe) in
            [("liveness", Probe::Liveness), ("readiness", Probe::Readiness), ("startup", Probe::Startup)]
        {
            let serving = f64::from(u8::from(self.status(probe).is_serving()));
            sink.value(&SERVING, [word, ""], Value::Gauge(serving));
        }
        let indicators = self.report().indicators;
        for status in Status::ALL {
            let count = indicators.iter().filter(|line| line.status == status).count();
            sink.value(&INDICATORS, [status.as_str(), ""], Value::Gauge(count as f64));
        }
    }
}

/// One indicator in a [`Report`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Line {
    /// The name of the indicator.
    pub name: String,
    /// Its group.
    pub group: Group,
    /// Its status, by its [`Rules`].
    pub status: Status,
    /// The cause of the status, if it was reported.
    pub detail: Option<String>,
}

#[cfg(all(test, not(loom)))]
mod tests;
