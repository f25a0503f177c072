//! The health that a service reports: liveness, readiness, start-up.
//!
//! Answers come from the last reports of indicators; a probe checks nothing. The groups follow
//! Kubernetes: *liveness* says whether a restart would help and so must not depend on anything
//! outside the process, *readiness* says whether to send traffic, *start-up* says whether the other
//! two mean anything yet. The status of a group is that of its worst member.

use crate::Clock;
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
/// use buttress_core::health::{Health, Probe, Status};
///
/// let now = std::time::Instant::now();
/// let health = Health::new();
/// let database = health.readiness("database");
/// health.started();
/// assert_eq!(health.status(Probe::Readiness, &now), Status::Unknown);
/// database.up(&now);
/// assert_eq!(health.status(Probe::Readiness, &now), Status::Up);
/// health.drain();
/// assert_eq!(health.status(Probe::Readiness, &now), Status::OutOfService);
/// assert_eq!(health.status(Probe::Liveness, &now), Status::Up, "draining is no reason to be killed");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

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

impl Health {
    /// A service that is starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The service has started. This is final.
    pub fn started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// The service is about to stop: readiness ends now, liveness goes on. This is final: no later
    /// report brings readiness back.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// An indicator of readiness that is set by hand.
    pub fn readiness(&self, name: impl Into<String>) -> Indicator {
        self.indicator(name, Group::Readiness, Rules::AT_ONCE)
    }

    /// An indicator of liveness that is set by hand.
    pub fn liveness(&self, name: impl Into<String>) -> Indicator {
        self.indicator(name, Group::Liveness, Rules::AT_ONCE)
    }

    /// An indicator of a dependency that is set by hand.
    pub fn dependency(&self, name: impl Into<String>) -> Indicator {
        self.indicator(name, Group::Dependencies, Rules::AT_ONCE)
    }

    /// An indicator with rules of its own. It is unknown until its first report, and gone when it
    /// is dropped.
    pub fn indicator(&self, name: impl Into<String>, group: Group, rules: Rules) -> Indicator {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.indicators).push(Entry {
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
    pub fn status(&self, probe: Probe, clock: &impl Clock) -> Status {
        let worst = |group| {
            let now = clock.now();
            lock(&self.0.indicators)
                .iter()
                .filter(|entry| entry.group == group)
                .map(|entry| entry.status(now))
                .max()
                .unwrap_or(Status::Up)
        };
        let started = self.0.started.load(Ordering::Acquire);
        match probe {
            Probe::Liveness => worst(Group::Liveness),
            Probe::Startup if started => Status::Up,
            Probe::Readiness if started && !self.is_draining() => worst(Group::Readiness),
            Probe::Startup | Probe::Readiness => Status::OutOfService,
        }
    }

    /// All indicators and answers, for people.
    pub fn report(&self, clock: &impl Clock) -> Report {
        let now = clock.now();
        let indicators = lock(&self.0.indicators)
            .iter()
            .map(|entry| Line {
                name: entry.name.clone(),
                group: entry.group,
                status: entry.status(now),
                detail: entry.detail.clone(),
            })
            .collect();
        Report {
            started: self.0.started.load(Ordering::Acquire),
            draining: self.is_draining(),
            readiness: self.status(Probe::Readiness, &now),
            liveness: self.status(Probe::Liveness, &now),
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
pub struct Indicator {
    health: Health,
    id: u64,
}

impl Indicator {
    /// Reports [`Status::Up`].
    pub fn up(&self, clock: &impl Clock) {
        self.report(Status::Up, None, clock);
    }

    /// Reports [`Status::Down`], and why.
    pub fn down(&self, detail: impl Into<String>, clock: &impl Clock) {
        self.report(Status::Down, Some(detail.into()), clock);
    }

    /// Reports a status, and why.
    pub fn report(&self, status: Status, detail: Option<String>, clock: &impl Clock) {
        let now = clock.now();
        let mut indicators = lock(&self.health.0.indicators);
        if let Some(entry) = indicators.iter_mut().find(|entry| entry.id == self.id) {
            entry.report(status, detail, now);
        }
    }
}

impl Drop for Indicator {
    fn drop(&mut self) {
        lock(&self.health.0.indicators).retain(|entry| entry.id != self.id);
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
    use crate::testing::start;

    #[test]
    fn a_group_is_as_well_as_its_worst_member() {
        let (health, now) = (Health::new(), start());
        health.started();
        let (a, b) = (health.readiness("a"), health.readiness("b"));
        a.up(&now);
        b.report(Status::Degraded, None, &now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Degraded);
        assert!(health.status(Probe::Readiness, &now).is_serving());
        a.down("disk full", &now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Down);
        assert_eq!(health.status(Probe::Liveness, &now), Status::Up);
        drop(a);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Degraded);
    }

    #[test]
    fn a_dependency_never_takes_a_service_out_of_rotation() {
        let (health, now) = (Health::new(), start());
        health.started();
        let circuit = health.dependency("payments");
        circuit.down("circuit open", &now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Up);
        assert_eq!(health.report(&now).indicators[0].status, Status::Down);
    }

    #[test]
    fn one_bad_check_does_not_take_it_out_and_three_do() {
        let (health, mut now) = (Health::new(), start());
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(Duration::from_secs(10)));
        assert_eq!(health.status(Probe::Readiness, &now), Status::Unknown);
        check.up(&now);
        for expected in [Status::Up, Status::Up, Status::Down] {
            now += Duration::from_secs(10);
            check.down("timeout", &now);
            assert_eq!(health.status(Probe::Readiness, &now), expected);
        }
        check.up(&now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Up);
    }

    #[test]
    fn a_check_that_falls_silent_becomes_unknown() {
        let (health, now) = (Health::new(), start());
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(Duration::from_secs(10)));
        check.up(&now);
        assert_eq!(health.status(Probe::Readiness, &(now + Duration::from_secs(30))), Status::Up);
        assert_eq!(health.status(Probe::Readiness, &(now + Duration::from_secs(31))), Status::Unknown);
    }

    #[test]
    fn a_bad_report_after_a_silence_counts_at_once() {
        let (health, mut now) = (Health::new(), start());
        health.started();
        let check = health.indicator("db", Group::Readiness, Rules::every(Duration::from_secs(10)));
        check.up(&now);
        now += Duration::from_secs(31);
        check.down("gone", &now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Down);
        assert_eq!(health.report(&now).indicators[0].detail.as_deref(), Some("gone"));
        now += Duration::from_secs(31);
        check.up(&now);
        assert_eq!(health.status(Probe::Readiness, &now), Status::Up);
    }

    #[test]
    fn nothing_undoes_draining() {
        let (health, now) = (Health::new(), start());
        let database = health.readiness("database");
        database.up(&now);
        health.started();
        health.drain();
        for undo in
            [|health: &Health| health.started(), Health::drain, |health: &Health| drop(health.readiness("late"))]
        {
            undo(&health);
            database.up(&now);
            assert_eq!(health.status(Probe::Readiness, &now), Status::OutOfService);
        }
        database.down("gone", &now);
        database.up(&now);
        assert!(health.is_draining() && health.report(&now).draining);
        assert_eq!(health.status(Probe::Readiness, &now), Status::OutOfService);
    }
}
