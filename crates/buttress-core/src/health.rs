//! The health that a service reports: liveness, readiness, start-up.
//!
//! Answers come from the last reports of indicators; a probe checks nothing. The groups follow
//! Kubernetes: *liveness* says whether a restart would help and so must not depend on anything
//! outside the process, *readiness* says whether to send traffic, *start-up* says whether the other
//! two mean anything yet. The status of a group is that of its worst member.

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

/// How well something is, from best to worst.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Status {
    /// Well.
    Up,
    /// Works, with less than it should have: an open circuit, a replica gone. Still takes traffic.
    Degraded,
    /// No report yet, or the last one is too old.
    Unknown,
    /// Taken out on purpose: starting or draining.
    OutOfService,
    /// Broken.
    Down,
}

impl Status {
    /// All of them, from best to worst.
    pub const ALL: [Self; 5] = [Self::Up, Self::Degraded, Self::Unknown, Self::OutOfService, Self::Down];

    /// Whether traffic should come here.
    pub fn is_serving(self) -> bool {
        self <= Self::Degraded
    }

    /// A lower-case word, as in reports.
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

/// Which answer an indicator belongs to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Group {
    /// Would a restart help? Nothing outside the process belongs here.
    Liveness,
    /// Should traffic come here?
    Readiness,
    /// Shown in reports, and changes no answer: circuits to other services belong here. In
    /// readiness, one service that is down would take all its callers out of rotation.
    Dependencies,
}

/// The question of a probe.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Probe {
    /// `/livez`
    Liveness,
    /// `/readyz`
    Readiness,
    /// `/startupz`
    Startup,
}

/// The health of one service. A cheap handle; clones share it.
///
/// It begins as starting: neither started nor ready.
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
/// assert_eq!(health.status(Probe::Liveness), Status::Up, "draining is no reason to be killed");
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
    /// Reports in a row that contradict the status that is shown.
    contrary: u32,
}

/// When an indicator's reports change its status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Good reports in a row after which the status is good. Default 1 (Kubernetes'
    /// successThreshold).
    ///
    /// A report on an indicator whose status is unknown counts at once, good or bad.
    pub rise: u32,
    /// Bad reports in a row after which the status is bad. Default 3 (Kubernetes'
    /// failureThreshold), and 1 for indicators that are set by hand.
    pub fall: u32,
    /// After this time without a report the status is [`Status::Unknown`]. `None` for reports that
    /// stay true.
    pub max_age: Option<Duration>,
}

impl Rules {
    /// Every report counts at once, and until the next one.
    pub const AT_ONCE: Self = Self { rise: 1, fall: 1, max_age: None };

    /// For a check every `interval`: 1 good or 3 bad in a row, unknown after three intervals of
    /// silence.
    pub const fn every(interval: Duration) -> Self {
        Self { rise: 1, fall: 3, max_age: Some(interval.saturating_mul(3)) }
    }
}

impl<C: Clock + Default> Health<C> {
    /// A service that is starting.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C: Clock> Health<C> {
    /// A service that is starting, with a clock for tests and simulations.
    pub fn with_clock(clock: C) -> Self {
        Self { state: Arc::default(), clock }
    }

    /// The service has started. This is final.
    pub fn started(&self) {
        self.state.started.store(true, Ordering::Release);
    }

    /// The service is about to stop: readiness ends now, liveness goes on. This is final: no later
    /// report brings readiness back.
    pub fn drain(&self) {
        self.state.draining.store(true, Ordering::Release);
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::Acquire)
    }

    /// An indicator of readiness that is set by hand.
    pub fn readiness(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Readiness, Rules::AT_ONCE)
    }

    /// An indicator of liveness that is set by hand.
    pub fn liveness(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Liveness, Rules::AT_ONCE)
    }

    /// An indicator of a dependency that is set by hand.
    pub fn dependency(&self, name: impl Into<String>) -> Indicator<C> {
        self.indicator(name, Group::Dependencies, Rules::AT_ONCE)
    }

    /// An indicator with rules of its own. It is unknown until its first report, and gone when it
    /// is dropped.
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

    /// The answer to a probe.
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

    /// All indicators and answers, for people.
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

/// Reports on one part of a service's health.
#[derive(Debug)]
#[must_use = "dropping an indicator takes it out of the answer"]
pub struct Indicator<C> {
    health: Health<C>,
    id: u64,
}

impl<C: Clock> Indicator<C> {
    /// Reports [`Status::Up`].
    pub fn up(&self) {
        self.report(Status::Up, None);
    }

    /// Reports [`Status::Down`], and why.
    pub fn down(&self, detail: impl Into<String>) {
        self.report(Status::Down, Some(detail.into()));
    }

    /// Reports a status, and why.
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

/// All that a service's health consists of.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Whether it has started.
    pub started: bool,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Should traffic come here?
    pub readiness: Status,
    /// Would a restart help, if not up?
    pub liveness: Status,
    /// Every indicator, in the order in which they were made.
    pub indicators: Vec<Line>,
}

const SERVING: Metric =
    Metric::gauge("resilience.health.serving", "probes", "1 if the probe is answered with success, else 0")
        .labels(&["probe"]);
const INDICATORS: Metric =
    Metric::gauge("resilience.health.indicators", "indicators", "Indicators that have the status").labels(&["status"]);

/// Its own name is that of the process, so that its metrics have no label `policy`.
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
    /// Its name.
    pub name: String,
    /// Which answer it belongs to.
    pub group: Group,
    /// Its status.
    pub status: Status,
    /// Why.
    pub detail: Option<String>,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ManualClock;

    type Health = super::Health<ManualClock>;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_group_is_as_well_as_its_worst_member() {
        let health = Health::new();
        health.started();
        let (a, b) = (health.readiness("a"), health.readiness("b"));
        a.up();
        b.report(Status::Degraded, None);
        assert_eq!(health.status(Probe::Readiness), Status::Degraded);
        assert!(health.status(Probe::Readiness).is_serving());
        a.down("disk full");
        assert_eq!(health.status(Probe::Readiness), Status::Down);
        assert_eq!(health.status(Probe::Liveness), Status::Up);
        drop(a);
        assert_eq!(health.status(Probe::Readiness), Status::Degraded);
    }

    #[test]
    fn a_dependency_never_takes_a_service_out_of_rotation() {
        let health = Health::new();
        health.started();
        let circuit = health.dependency("payments");
        circuit.down("circuit open");
        assert_eq!(health.status(Probe::Readiness), Status::Up);
        assert_eq!(health.report().indicators[0].status, Status::Down);
    }

    #[test]
    fn one_bad_check_does_not_take_it_out_and_three_do() {
        let health = Health::new();
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(10 * SECOND));
        assert_eq!(health.status(Probe::Readiness), Status::Unknown);
        check.up();
        for expected in [Status::Up, Status::Up, Status::Down] {
            health.clock.advance(10 * SECOND);
            check.down("timeout");
            assert_eq!(health.status(Probe::Readiness), expected);
        }
        check.up();
        assert_eq!(health.status(Probe::Readiness), Status::Up);
    }

    #[test]
    fn a_check_that_falls_silent_becomes_unknown() {
        let health = Health::new();
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(10 * SECOND));
        check.up();
        health.clock.advance(30 * SECOND);
        assert_eq!(health.status(Probe::Readiness), Status::Up);
        health.clock.advance(SECOND);
        assert_eq!(health.status(Probe::Readiness), Status::Unknown);
    }

    #[test]
    fn a_bad_report_after_a_silence_counts_at_once() {
        let health = Health::new();
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(10 * SECOND));
        check.up();
        health.clock.advance(31 * SECOND);
        check.down("gone");
        assert_eq!(health.status(Probe::Readiness), Status::Down);
        assert_eq!(health.report().indicators[0].detail.as_deref(), Some("gone"));
        health.clock.advance(31 * SECOND);
        check.up();
        assert_eq!(health.status(Probe::Readiness), Status::Up);
    }

    #[test]
    fn nothing_undoes_draining() {
        let health = Health::new();
        let database = health.readiness("database");
        database.up();
        health.started();
        health.drain();
        for undo in
            [|health: &Health| health.started(), Health::drain, |health: &Health| drop(health.readiness("late"))]
        {
            undo(&health);
            database.up();
            assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
        }
        database.down("gone");
        database.up();
        assert!(health.is_draining() && health.report().draining);
        assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
    }
}
