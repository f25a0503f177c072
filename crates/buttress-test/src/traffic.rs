//! The traffic that every layer and every stack has to survive.
//!
//! A layer that keeps the [contract](crate::contract) can still fail in production: on calls that
//! come every ten minutes, on streams of two minutes, on bodies that no caller reads, on callers
//! that hang up. [`Traffic`] sends these shapes through a layer or a stack, on virtual time, and
//! checks from outside what has to hold.
//!
//! ```
//! use buttress_http::prelude::*;
//! use buttress_test::traffic::Traffic;
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! Traffic::through("payments client", || {
//!     ServiceBuilder::new()
//!         .layer(CircuitBreakerLayer::new("payments").http_client())
//!         .layer(BulkheadLayer::new(10).http_client())
//!         .layer(TimeoutLayer::attempt(Duration::from_millis(500)).http_client())
//! })
//! .opens()                                      // it contains a circuit breaker,
//! .at_once(10)                                  // a bound on calls in flight,
//! .attempt_within(Duration::from_millis(500))   // and a timeout
//! .check();
//! ```
//!
//! Say what the layer promises, and [`check`](Traffic::check) runs every row that applies. What is
//! not promised must not happen: a layer that does not [open](Traffic::opens) must not refuse a
//! call, whatever the backend does.
//!
//! # How a row is checked
//!
//! A [`Shape`] is one kind of call: what the backend does, what the caller does, how often it
//! comes, and what it [means](Means) for the backend. Each shape is sent a number of times through
//! a new layer:
//!
//! | it means | around a closed circuit, or no circuit | around a half-open circuit |
//! |---|---|---|
//! | [`Success`](Means::Success) | every call reaches the backend and its answer arrives whole | these calls close it |
//! | [`Nothing`](Means::Nothing) | afterwards a call gets through at once | afterwards a probe gets through at once, and it closes |
//! | [`Failure`](Means::Failure) | the circuit opens | the circuit opens again |
//! | [`Anything`](Means::Anything) | afterwards a call gets through, 15 minutes later | the same, and it closes |
//!
//! After each shape nothing of the backend's calls may be left, and the next call has to get
//! through: a permit that is lost now and then shows, because shapes are repeated. Rows that are
//! more than a sequence of calls (random errors, outages, crowds, timeouts) are functions of their
//! own.
//!
//! # A shape of your own
//!
//! ```
//! use buttress_http::prelude::*;
//! use buttress_test::{Answer, Plan, traffic::{Means, Row, Shape, Traffic}};
//! use http::Response;
//!
//! let mut busy = Response::new(vec![]);
//! *busy.status_mut() = http::StatusCode::CONFLICT;
//! let conflict = Shape::new(Row::Empty, "a conflict").backend(Plan::of(Answer::Response(busy)));
//! Traffic::through("orders", || CircuitBreakerLayer::new("orders").http()).opens().send(&conflict.means(Means::Success));
//! ```
//!
//! A failure names the row, the shape and the layer, and does not keep the other rows from being
//! checked:
//!
//! ```text
//! row 7 (hang-ups), "the caller hangs up after 1 polls", through orders: no call gets through any more ...
//! ```

mod crowds;
mod field;
mod outages;
mod repeats;
mod row;
mod sequence;
mod shape;
mod table;
mod timeouts;
mod waiting;

pub use row::Row;
pub use shape::{Caller, Means, Protocol, Shape};

use field::Field;

use crate::{
    BoxError, Inner, TestBody,
    subject::{Subject, on_virtual_time},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::{
    any::Any,
    cell::RefCell,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use tower::{Layer, Service};

/// A layer or a stack, what it promises, and the traffic to send through it. See the
/// [module](self).
#[must_use = "`check` sends the traffic"]
pub struct Traffic {
    name: String,
    layer: Box<dyn Fn() -> Subject>,
    protocol: Protocol,
    opens: bool,
    at_once: Option<usize>,
    attempts: usize,
    attempt_within: Option<Duration>,
    answers_within: Option<Duration>,
    frame_within: Option<Duration>,
    waits_within: Option<Duration>,
    probe_within: Duration,
    bears: u32,
    between_calls: Box<dyn Fn()>,
    leaves_out: Vec<Row>,
    failures: RefCell<Vec<String>>,
}

/// The default lease of a probe is 30 seconds.
const PROBE_WITHIN: Duration = Duration::from_secs(20);

impl Traffic {
    /// Sends HTTP requests through what `layer` makes. It is called for each shape, and has to make
    /// a new layer each time.
    pub fn through<L, B>(name: impl Into<String>, layer: impl Fn() -> L + 'static) -> Self
    where
        L: Layer<Inner> + 'static,
        L::Service: Service<Request<TestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        L::Service: Clone + Send + Sync + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self {
            name: name.into(),
            layer: Box::new(move || Subject::new(layer())),
            protocol: Protocol::Http,
            opens: false,
            at_once: None,
            attempts: 1,
            attempt_within: None,
            answers_within: None,
            frame_within: None,
            waits_within: None,
            probe_within: PROBE_WITHIN,
            bears: 20,
            between_calls: Box::new(|| ()),
            leaves_out: Vec::new(),
            failures: RefCell::default(),
        }
    }

    /// What the calls speak, and what outcomes are read from: HTTP by default.
    pub fn speaking(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// It stops calling a backend that fails, and probes its way back.
    pub fn opens(self) -> Self {
        Self { opens: true, ..self }
    }

    /// At most so many calls are in flight; more are rejected, or wait.
    pub fn at_once(self, calls: usize) -> Self {
        Self { at_once: Some(calls), ..self }
    }

    /// It repeats what is safe to repeat, up to so many attempts, the first included.
    pub fn attempts(self, attempts: usize) -> Self {
        Self { attempts, ..self }
    }

    /// An attempt that has no head after this time fails. Under a circuit breaker that is a
    /// failure.
    pub fn attempt_within(self, time: Duration) -> Self {
        Self { attempt_within: Some(time), ..self }
    }

    /// The caller has a head or an error after this time.
    pub fn answers_within(self, time: Duration) -> Self {
        Self { answers_within: Some(time), ..self }
    }

    /// A body that stops breaks after this time.
    pub fn frame_within(self, time: Duration) -> Self {
        Self { frame_within: Some(time), ..self }
    }

    /// A call that finds every place taken is rejected after this time.
    pub fn waits_within(self, time: Duration) -> Self {
        Self { waits_within: Some(time), ..self }
    }

    /// How long a probe of its half-open circuit may take to the head. Default 20 seconds.
    pub fn probe_within(self, time: Duration) -> Self {
        Self { probe_within: time, ..self }
    }

    /// The highest share of random errors, in percent, of which its circuit makes no outage.
    /// Default 20.
    pub fn bears(self, percent: u32) -> Self {
        Self { bears: percent, ..self }
    }

    /// Calls a function before each call, for example one that reloads the same configuration: that
    /// must change nothing.
    pub fn between_calls(self, act: impl Fn() + 'static) -> Self {
        Self { between_calls: Box::new(act), ..self }
    }

    /// Leaves a row out, with the reason why it does not apply.
    pub fn without(mut self, row: Row, _reason: &str) -> Self {
        self.leaves_out.push(row);
        self
    }

    /// Sends the traffic of every row.
    ///
    /// # Panics
    /// When something does not hold; the message names every row, shape and layer that failed.
    pub fn check(&self) {
        Row::ALL.iter().for_each(|row| self.send_row(*row));
        self.report();
    }

    /// Sends the traffic of one row.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn check_row(&self, row: Row) {
        self.send_row(row);
        self.report();
    }

    /// Sends one shape.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn send(&self, shape: &Shape) {
        sequence::send(self, shape);
        self.report();
    }

    fn send_row(&self, row: Row) {
        if self.leaves_out.contains(&row) {
            return;
        }
        let shapes = table::shapes(self.protocol);
        shapes.iter().filter(|shape| shape.row == row).for_each(|shape| sequence::send(self, shape));
        match row {
            Row::Streams if self.protocol != Protocol::Plain => crowds::places(self),
            Row::Uploads => repeats::all(self),
            Row::RandomErrors => outages::random_errors(self),
            Row::Outage if self.opens => outages::outage(self),
            Row::Hung => timeouts::all(self),
            Row::Ready if self.opens => {
                waiting::ready_when_it_opens(self);
                waiting::pending_when_it_opens(self);
            }
            Row::Crowds => crowds::waiting_tasks(self),
            _ => {}
        }
    }

    /// Runs a scenario, and keeps where it failed.
    fn run(&self, row: Row, what: &dyn fmt::Display, scenario: impl Future<Output = ()>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| on_virtual_time(scenario))) {
            let failure = format!("{row}, \"{what}\", through {}: {}", self.name, message(&*panic));
            self.failures.borrow_mut().push(failure);
        }
    }

    fn report(&self) {
        let failures = self.failures.take();
        assert!(failures.is_empty(), "{} of the scenarios fail:\n{}", failures.len(), failures.join("\n"));
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").field("name", &self.name).finish_non_exhaustive()
    }
}
