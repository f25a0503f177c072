//! The log of changes of state.

use super::*;
use std::{collections::BTreeMap, fmt, sync::Mutex};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// The level and the fields of each event.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, Fields)>>>);

impl Lines {
    /// A subscriber that stores each event here.
    fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let lines = self.clone();
        OnEvent(move |event: &Event<'_>| {
            let mut fields = Fields::default();
            event.record(&mut fields);
            lines.0.lock().unwrap().push((*event.metadata().level(), fields));
        })
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), format!("number {value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name(), format!("number {value}"));
    }
}

/// A subscriber that passes each event to a function.
struct OnEvent<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Subscriber for OnEvent<F> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        (self.0)(event);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn the_log_line_of_a_trip_says_what_failed_and_its_numbers_are_numbers() {
    let lines = Lines::default();
    let bench = Bench::consecutive(1, |builder| builder.open_time(5 * SECOND..=5 * SECOND));
    tracing::subscriber::with_default(lines.subscriber(), || {
        bench.call(Failure::new(FailureKind::Http(503)).into());
    });
    let lines = lines.0.lock().unwrap();
    let (level, fields) = &lines[0];
    assert_eq!(*level, Level::WARN);
    assert_eq!(fields.get("resilience.policy.name"), Some("test"));
    assert_eq!(fields.get("open_for_ms"), Some("number 5000"));
    assert_eq!(fields.get("generation"), Some("number 1"));
    assert_eq!(fields.get("failure.kind"), Some("http"));
    assert_eq!(fields.get("failure.status"), Some("number 503"));
    assert_eq!(fields.get("cause"), Some("1 failure"));
}

#[test]
fn every_change_is_logged_once_and_only_what_opens_it_is_a_warning() {
    let lines = Lines::default();
    let bench = Bench::consecutive(1, |builder| builder);
    tracing::subscriber::with_default(lines.subscriber(), || {
        bench.call(FAILURE);
        bench.wait_open();
        bench.call(Outcome::Success);
        bench.breaker.force_open();
    });
    let lines = lines.0.lock().unwrap();
    let changes: Vec<_> = lines.iter().map(|(level, fields)| (*level, fields.get("to").unwrap())).collect();
    let expected =
        [(Level::WARN, "open"), (Level::INFO, "half-open"), (Level::INFO, "closed"), (Level::WARN, "forced-open")];
    assert_eq!(changes, expected);
    assert_eq!(lines[1].1.get("failure.kind"), None);
}

#[test]
fn a_subscriber_that_panics_does_not_end_the_call_that_changed_the_state() {
    let broken = OnEvent(|_: &Event<'_>| panic!("a subscriber panics"));
    let bench = Bench::consecutive(1, |builder| builder);
    tracing::subscriber::with_default(broken, || bench.call(FAILURE));
    assert_eq!(bench.state(), State::Open);
}
