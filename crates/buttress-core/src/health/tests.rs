use super::*;
use crate::ManualClock;
use proptest::prelude::*;

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
    for undo in [|health: &Health| health.started(), Health::drain, |health: &Health| drop(health.readiness("late"))] {
        undo(&health);
        database.up();
        assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
    }
    database.down("gone");
    database.up();
    assert!(health.is_draining() && health.report().draining);
    assert_eq!(health.status(Probe::Readiness), Status::OutOfService);
}

/// A naive model of an indicator: all its reports, from which its status is worked out each time.
#[derive(Debug)]
struct Model {
    group: Group,
    rules: Rules,
    /// The second of each report, and its status.
    reports: Vec<(u64, Status)>,
}

impl Model {
    fn status(&self, now: u64) -> Status {
        let is_old = |from: u64, to: u64| self.rules.max_age.is_some_and(|age| Duration::from_secs(to - from) > age);
        // The report that set the status.
        let mut set = 0;
        for (n, (at, status)) in self.reports.iter().enumerate().skip(1) {
            let current = self.reports[set].1;
            let is_known = current != Status::Unknown && !is_old(self.reports[n - 1].0, *at);
            let turns = |status: Status| status.is_serving() != current.is_serving();
            let needed = if status.is_serving() { self.rules.rise } else { self.rules.fall };
            let in_a_row = self.reports[set + 1..=n].iter().rev().take_while(|(_, status)| turns(*status)).count();
            if !is_known || !turns(*status) || in_a_row >= needed as usize {
                set = n;
            }
        }
        match self.reports.last() {
            Some((at, _)) if !is_old(*at, now) => self.reports[set].1,
            _ => Status::Unknown,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(Group, Rules),
    Remove(usize),
    Report(usize, Status),
    Wait(u64),
    Start,
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let group = prop_oneof![Just(Group::Liveness), Just(Group::Readiness), Just(Group::Dependencies)];
    let max_age = prop_oneof![Just(None), (1u64..20).prop_map(|seconds| Some(Duration::from_secs(seconds)))];
    let rules = (0u32..4, 0u32..4, max_age).prop_map(|(rise, fall, max_age)| Rules { rise, fall, max_age });
    prop_oneof![
        3 => (group, rules).prop_map(|(group, rules)| Step::Add(group, rules)),
        1 => (0usize..4).prop_map(Step::Remove),
        12 => (0usize..4, 0usize..Status::ALL.len()).prop_map(|(n, status)| Step::Report(n, Status::ALL[status])),
        3 => (0u64..10).prop_map(Step::Wait),
        1 => Just(Step::Start),
        1 => prop_oneof![9 => Just(Step::Wait(0)), 1 => Just(Step::Drain)],
    ]
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
        let health = Health::new();
        let (mut indicators, mut now, mut started, mut draining) = (Vec::new(), 0, false, false);
        for step in steps {
            match step {
                Step::Add(group, rules) => {
                    let model = Model { group, rules, reports: Vec::new() };
                    indicators.push((health.indicator("an indicator", group, rules), model));
                }
                Step::Remove(n) if n < indicators.len() => drop(indicators.remove(n)),
                Step::Report(n, status) if n < indicators.len() => {
                    let (indicator, model) = &mut indicators[n];
                    indicator.report(status, None);
                    model.reports.push((now, status));
                }
                Step::Remove(_) | Step::Report(..) => {}
                Step::Wait(seconds) => {
                    health.clock.advance(Duration::from_secs(seconds));
                    now += seconds;
                }
                Step::Start => {
                    health.started();
                    started = true;
                }
                Step::Drain => {
                    health.drain();
                    draining = true;
                }
            }
            let statuses: Vec<_> = indicators.iter().map(|(_, model)| (model.group, model.status(now))).collect();
            let worst = |group| {
                let severest = [Status::Down, Status::OutOfService, Status::Unknown, Status::Degraded];
                severest.into_iter().find(|status| statuses.contains(&(group, *status))).unwrap_or(Status::Up)
            };
            let out = Status::OutOfService;
            prop_assert_eq!(health.status(Probe::Liveness), worst(Group::Liveness));
            prop_assert_eq!(health.status(Probe::Startup), if started { Status::Up } else { out });
            let readiness = if started && !draining { worst(Group::Readiness) } else { out };
            prop_assert_eq!(health.status(Probe::Readiness), readiness);
            let lines: Vec<_> = health.report().indicators.iter().map(|line| (line.group, line.status)).collect();
            prop_assert_eq!(lines, statuses);
        }
    }
}

#[test]
fn the_status_of_each_probe_and_the_number_of_indicators_are_reported() {
    let health = Health::new();
    let values = || {
        let gauge = |value| if let crate::report::Value::Gauge(x) = value { x } else { f64::NAN };
        let reported = crate::testing::reported(&health);
        let (serving, indicators): (Vec<_>, Vec<_>) =
            reported.into_iter().partition(|(name, ..)| *name == "resilience.health.serving");
        let pairs = |part: Vec<(_, [&'static str; 2], _)>| {
            part.into_iter().map(|(_, [label, _], value)| (label, gauge(value))).collect::<Vec<_>>()
        };
        let indicators = pairs(indicators).into_iter().filter(|(_, count)| *count > 0.0).collect::<Vec<_>>();
        (pairs(serving), indicators)
    };
    let serving =
        |liveness, readiness, startup| vec![("liveness", liveness), ("readiness", readiness), ("startup", startup)];
    assert_eq!(values(), (serving(1.0, 0.0, 0.0), vec![]));
    health.started();
    let loops = health.liveness("event loop");
    loops.down("stuck");
    assert_eq!(values(), (serving(0.0, 1.0, 1.0), vec![("down", 1.0)]));
    loops.up();
    let stores = ["a", "b", "c"].map(|name| health.readiness(name));
    stores.iter().for_each(|store| store.down("gone"));
    assert_eq!(values(), (serving(1.0, 0.0, 1.0), vec![("up", 1.0), ("down", 3.0)]));
    stores.iter().for_each(Indicator::up);
    health.drain();
    assert_eq!(values(), (serving(1.0, 0.0, 1.0), vec![("up", 4.0)]));
    assert_eq!(<Health as crate::report::Report>::name(&health), None);
}

#[test]
fn good_reports_count_in_a_row_too() {
    let health = Health::new();
    health.started();
    let rules = Rules { rise: 3, fall: 1, max_age: None };
    let check = health.indicator("db", Group::Readiness, rules);
    check.down("gone");
    for report in [Status::Up, Status::Up, Status::Down, Status::Up, Status::Up, Status::Degraded] {
        assert_eq!(health.status(Probe::Readiness), Status::Down);
        check.report(report, None);
    }
    assert_eq!(health.status(Probe::Readiness), Status::Degraded);
    assert_eq!(health.report().indicators[0].name, "db");
}

#[test]
fn indicators_are_told_apart_whatever_their_names() {
    let health = Health::new();
    let twins = [(); 3].map(|()| health.dependency("twin"));
    twins[1].down("gone");
    let statuses = || health.report().indicators.iter().map(|line| line.status).collect::<Vec<_>>();
    assert_eq!(statuses(), [Status::Unknown, Status::Down, Status::Unknown]);
    let [first, second, third] = twins;
    third.up();
    drop(first);
    assert_eq!(statuses(), [Status::Down, Status::Up]);
    drop(second);
    assert_eq!(statuses(), [Status::Up]);
}
