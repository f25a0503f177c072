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
