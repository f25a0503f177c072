//! The subjects: rows of the table, each of which creates workers that repeat one call.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Waker};

use serde::Serialize;

use crate::caller::{self, Caller, Task, Worker, Wraps};
use crate::family::Family;
use crate::inner::Bare;
use crate::situation::{Cloned, FAIL, HOLD, Kept, Pending, Rejecting, Situation};

pub(crate) struct Subject {
    /// The layer, without its situation.
    pub(crate) layer: String,
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) situation: &'static str,
    /// The name of the subject whose time is subtracted to get the added cost.
    pub(crate) baseline: String,
    worker: Box<dyn Fn() -> Worker>,
    task: Box<dyn Fn(Arc<AtomicBool>) -> Task>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Ours,
    Peer,
    /// A peer that wraps a closure, not a service.
    Wrapper,
    Floor,
}

/// The subject whose time is subtracted in the plain situation.
pub(crate) const BARE: &str = "floor/bare_service";

/// The name of a layer in a situation.
pub(crate) fn name(layer: &str, situation: &str) -> String {
    if situation.is_empty() { layer.to_owned() } else { format!("{layer}, {situation}") }
}

// === impl Subject ===

impl Subject {
    pub(crate) fn new<T: Situation>(
        layer: &str,
        kind: Kind,
        family: Family,
        situation: T,
        caller: impl Caller,
    ) -> Self {
        let (full, other) = (name(layer, T::NAME), caller.clone());
        let again = full.clone();
        Self {
            layer: layer.to_owned(),
            kind,
            family,
            situation: T::NAME,
            baseline: name(BARE, T::BASELINE),
            worker: Box::new(move || caller::worker(full.clone(), caller.clone(), situation)),
            task: Box::new(move |stop| caller::task(again.clone(), other.clone(), situation, stop)),
        }
    }

    pub(crate) fn baseline(mut self, name: &str) -> Self {
        name.clone_into(&mut self.baseline);
        self
    }

    pub(crate) fn name(&self) -> String {
        name(&self.layer, self.situation)
    }

    /// What it is compared within: its family in its situation. Empty: nothing.
    pub(crate) fn group(&self) -> String {
        if self.family.is_empty() { String::new() } else { name(self.family, self.situation) }
    }

    pub(crate) fn worker(&self) -> Worker {
        (self.worker)()
    }

    pub(crate) fn task(&self, stop: Arc<AtomicBool>) -> Task {
        (self.task)(stop)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("name", &self.name()).finish_non_exhaustive()
    }
}

// === collecting ===

/// Collects subjects.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<Subject>);

/// Adds the rows of one layer.
#[derive(Debug)]
pub(crate) struct Of<'a> {
    rows: &'a mut Rows,
    kind: Kind,
    layer: String,
    family: Family,
}

impl Rows {
    pub(crate) fn of(&mut self, kind: Kind, layer: impl Into<String>, family: Family) -> Of<'_> {
        Of { rows: self, kind, layer: layer.into(), family }
    }

    pub(crate) fn push(&mut self, subject: Subject) {
        self.0.push(subject);
    }

    pub(crate) fn into_inner(self) -> Vec<Subject> {
        self.0
    }
}

impl Of<'_> {
    /// Adds the row of one situation. `layer` makes a layer with a state of its own.
    pub(crate) fn when<T: Situation, L: Wraps<Bare<T>>>(self, situation: T, layer: impl Fn() -> L) -> Self {
        self.caller(situation, layer().layer(Bare::new()))
    }

    /// Adds the rows in which all calls succeed: kept, cloned per call, and pending once.
    pub(crate) fn healthy<L>(self, layer: impl Fn() -> L) -> Self
    where
        L: Wraps<Bare<Kept>> + Wraps<Bare<Cloned>> + Wraps<Bare<Pending>>,
    {
        self.when(Kept, &layer).when(Cloned, &layer).when(Pending, &layer)
    }

    /// Adds the row of a breaker that was opened by failures, not by hand.
    pub(crate) fn open<L: Wraps<Bare<Rejecting>>>(self, layer: impl Fn() -> L) -> Self {
        let mut caller = layer().layer(Bare::new());
        for _ in 0..1_000 {
            caller::call(&mut caller, FAIL);
        }
        self.caller(Rejecting, caller)
    }

    /// Adds the row of a bulkhead with one place, which a call holds that does not end.
    pub(crate) fn full<L: Wraps<Bare<Rejecting>>>(self, layer: impl Fn() -> L) -> Self {
        let caller = layer().layer(Bare::new());
        let mut held = caller.clone();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(held.poll_ready(&mut cx).is_ready(), "{}", self.layer);
        let mut call = Box::pin(async move { held.start(HOLD).await.is_ok() });
        assert!(call.as_mut().poll(&mut cx).is_pending(), "{}", self.layer);
        std::mem::forget(call);
        self.caller(Rejecting, caller)
    }

    pub(crate) fn caller<T: Situation>(self, situation: T, caller: impl Caller) -> Self {
        self.rows.push(Subject::new(&self.layer, self.kind, self.family, situation, caller));
        self
    }
}
