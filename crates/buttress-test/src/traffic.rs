//! A harness that sends the traffic of production through a layer or a stack.
//!
//! A layer that keeps the [contract](crate::contract) can still fail in production: on calls that
//! arrive every ten minutes, on streams of minutes, on bodies that no caller reads, on callers that
//! hang up. [`Traffic`] sends such shapes of traffic through a layer or a stack, on tokio's paused
//! clock, and checks from outside the rules that must hold.
//!
//! ```
//! use buttress::{BulkheadLayer, CircuitBreakerLayer, PlainExt, TimeoutLayer};
//! use buttress_test::traffic::{Protocol, Traffic};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! Traffic::through("payments client", || {
//!     ServiceBuilder::new()
//!         .layer(CircuitBreakerLayer::new("payments").plain())
//!         .layer(BulkheadLayer::new(10).plain())
//!         .layer(TimeoutLayer::attempt(Duration::from_millis(500)).plain())
//! })
//! .speaking(Protocol::Plain)                    // the plain endings read no HTTP status,
//! .opens()                                      // the stack contains a circuit breaker,
//! .at_once(10)                                  // a bound on calls in flight,
//! .attempt_within(Duration::from_millis(500))   // and a timeout
//! .check();
//! ```
//!
//! With the endings of `buttress-http` the protocol is [`Http`](Protocol::Http), the default, or
//! [`Grpc`](Protocol::Grpc).
//!
//! State the promises of the layer, and [`check`](Traffic::check) sends every row that applies. The
//! layer must not do more than it promises: a layer without [`opens`](Traffic::opens) must admit
//! every call, whatever the backend does.
//!
//! # When to use it
//!
//! In one test for each layer or stack, after its [contract](crate::contract). A `check` sends
//! every row that applies; [`check_row`](Traffic::check_row) sends one row, and
//! [`send`](Traffic::send) one shape.
//!
//! # How a row is checked
//!
//! A [`Shape`] is one kind of call: the behaviour of the backend and of the caller, the interval,
//! and the [meaning](Means) for the backend. Each shape is sent 60 times by default through a new
//! layer:
//!
//! | meaning | through a closed circuit, or no circuit | through a half-open circuit |
//! |---|---|---|
//! | [`Success`](Means::Success) | every call reaches the backend once, and its response arrives whole | the calls close the circuit |
//! | [`Nothing`](Means::Nothing) | the next call is admitted at once | the next probes are admitted at once and close the circuit |
//! | [`Failure`](Means::Failure) | the circuit opens | the circuit opens again |
//! | [`Anything`](Means::Anything) | a call is admitted 15 minutes later | probes are admitted 15 minutes later and close the circuit |
//!
//! After each call of a shape no future and no body of the backend may be held, and after the shape
//! the next call must be admitted. Rows that are more than a sequence of calls (random errors,
//! outages, crowds, timeouts) are functions of their own.
//!
//! # A shape of your own
//!
//! ```
//! use buttress::{CircuitBreakerLayer, PlainExt};
//! use buttress_test::{Answer, Plan, traffic::{Means, Protocol, Row, Shape, Traffic}};
//! use http::{Response, StatusCode};
//!
//! let mut conflict = Response::new(vec![]);
//! *conflict.status_mut() = StatusCode::CONFLICT;
//! let conflict = Shape::new(Row::Empty, "a conflict")
//!     .backend(Plan::of(Answer::Response(conflict)))
//!     .means(Means::Success);
//! Traffic::through("orders", || CircuitBreakerLayer::new("orders").plain())
//!     .speaking(Protocol::Plain)
//!     .opens()
//!     .send(&conflict);
//! ```
//!
//! A failure names the row, the shape and the layer. The other rows are checked all the same, and
//! one panic reports all failures:
//!
//! ```text
//! row 7 (hang-ups), "the caller hangs up after 1 polls", through orders: the next call is not admitted: ...
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

/// A layer or a stack under test, with its promises.
///
/// See the [module](self) for the rules that are checked.
///
/// ```
/// use buttress_test::traffic::Traffic;
/// use tower::limit::GlobalConcurrencyLimitLayer;
///
/// // A layer of tower. It releases its permits at the head of a response.
/// Traffic::through("10 at once", || GlobalConcurrencyLimitLayer::new(10)).check();
/// ```
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

/// Default time in which a probe must have its head: less than the default lease of a probe in
/// Buttress's circuit breaker, which is 30 seconds.
const PROBE_WITHIN: Duration = Duration::from_secs(20);

impl Traffic {
    /// Makes a harness that sends HTTP requests through `layer`, without any promise.
    ///
    /// `layer` is called for each shape and must make a new layer each time. `name` appears in the
    /// message of a failure.
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

    /// Sets the protocol of the calls, from which the layer reads outcomes. Default
    /// [`Protocol::Http`].
    pub fn speaking(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// Promises a circuit breaker: the layer rejects calls to a backend that fails, and probes
    /// until it has recovered.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, PlainExt};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    ///
    /// Traffic::through("payments", || CircuitBreakerLayer::new("payments").plain())
    ///     .speaking(Protocol::Plain)
    ///     .opens()
    ///     .check_row(Row::Outage);
    /// ```
    pub fn opens(self) -> Self {
        Self { opens: true, ..self }
    }

    /// Promises a bound on the calls in flight. Further calls are rejected or wait.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, PlainExt};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    ///
    /// Traffic::through("bulkhead", || BulkheadLayer::new(10).plain())
    ///     .speaking(Protocol::Plain)
    ///     .at_once(10)
    ///     .check_row(Row::Crowds);
    /// ```
    pub fn at_once(self, calls: usize) -> Self {
        Self { at_once: Some(calls), ..self }
    }

    /// Promises retries: a call that is safe to repeat is sent up to `attempts` times, the first
    /// included. Default 1.
    ///
    /// ```
    /// use buttress::{PlainExt, RetryLayer};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    ///
    /// Traffic::through("retry", || RetryLayer::new(3).plain())
    ///     .speaking(Protocol::Plain)
    ///     .attempts(3)
    ///     .check_row(Row::Uploads);
    /// ```
    pub fn attempts(self, attempts: usize) -> Self {
        Self { attempts, ..self }
    }

    /// Promises that an attempt fails if it has no head after this time. A circuit breaker around
    /// it counts a failure.
    ///
    /// ```
    /// use buttress::{PlainExt, TimeoutLayer};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    /// use std::time::Duration;
    ///
    /// const ATTEMPT: Duration = Duration::from_millis(500);
    /// Traffic::through("timeout", || TimeoutLayer::attempt(ATTEMPT).plain())
    ///     .speaking(Protocol::Plain)
    ///     .attempt_within(ATTEMPT)
    ///     .check_row(Row::Hung);
    /// ```
    pub fn attempt_within(self, time: Duration) -> Self {
        Self { attempt_within: Some(time), ..self }
    }

    /// Promises that the caller has a head or an error after this time.
    ///
    /// ```
    /// use buttress::{PlainExt, TimeoutLayer};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    /// use std::time::Duration;
    ///
    /// const TOTAL: Duration = Duration::from_secs(2);
    /// Traffic::through("total timeout", || TimeoutLayer::total(TOTAL).plain())
    ///     .speaking(Protocol::Plain)
    ///     .answers_within(TOTAL)
    ///     .check_row(Row::Hung);
    /// ```
    pub fn answers_within(self, time: Duration) -> Self {
        Self { answers_within: Some(time), ..self }
    }

    /// Promises that a response body without a frame for this time ends with an error.
    pub fn frame_within(self, time: Duration) -> Self {
        Self { frame_within: Some(time), ..self }
    }

    /// Promises that a call is rejected after this time if every permit is taken.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, PlainExt};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    /// use std::time::Duration;
    ///
    /// const WAIT: Duration = Duration::from_secs(2);
    /// Traffic::through("queue", || BulkheadLayer::new(10).queue(100, WAIT).plain())
    ///     .speaking(Protocol::Plain)
    ///     .at_once(10)
    ///     .waits_within(WAIT)
    ///     .check_row(Row::Hung);
    /// ```
    pub fn waits_within(self, time: Duration) -> Self {
        Self { waits_within: Some(time), ..self }
    }

    /// Sets the time to the head that a probe of its half-open circuit may take. Default 20
    /// seconds.
    ///
    /// Shapes that take longer are not sent through a half-open circuit.
    pub fn probe_within(self, time: Duration) -> Self {
        Self { probe_within: time, ..self }
    }

    /// Sets the highest share of random errors, in percent, at which its circuit rejects at most 2
    /// % of the calls. Default 20.
    ///
    /// Checked at 1, 5, 10, 20, 30 and 40 %, up to this share.
    pub fn bears(self, percent: u32) -> Self {
        Self { bears: percent, ..self }
    }

    /// Sets a function that is called before each call. It must not change the behaviour of the
    /// layer; for example, it reloads an equal configuration.
    ///
    /// ```
    /// use buttress::{CircuitBreaker, CircuitBreakerLayer, PlainExt};
    /// use buttress_test::traffic::{Protocol, Row, Traffic};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let newest = Arc::new(Mutex::new(None::<CircuitBreaker>));
    /// let reloaded = newest.clone();
    /// let layer = move || {
    ///     let breaker = CircuitBreaker::new("payments");
    ///     *newest.lock().unwrap() = Some(breaker.clone());
    ///     CircuitBreakerLayer::from(breaker).plain()
    /// };
    /// let reload = move || {
    ///     if let Some(breaker) = &*reloaded.lock().unwrap() {
    ///         breaker.reload(&CircuitBreaker::builder("payments")).unwrap();
    ///     }
    /// };
    /// let traffic = Traffic::through("payments", layer).speaking(Protocol::Plain).opens();
    /// traffic.between_calls(reload).check_row(Row::Rare);
    /// ```
    pub fn between_calls(self, act: impl Fn() + 'static) -> Self {
        Self { between_calls: Box::new(act), ..self }
    }

    /// Leaves out a row that does not apply. `_reason` documents why, and is not used.
    ///
    /// ```
    /// use buttress_test::traffic::{Row, Traffic};
    /// use tower::limit::GlobalConcurrencyLimitLayer;
    ///
    /// Traffic::through("10 at once", || GlobalConcurrencyLimitLayer::new(10))
    ///     .at_once(10)
    ///     .without(Row::Streams, "tower's limit releases its permit at the head of a response")
    ///     .check();
    /// ```
    pub fn without(mut self, row: Row, _reason: &str) -> Self {
        self.leaves_out.push(row);
        self
    }

    /// Sends the traffic of every row that applies.
    ///
    /// # Panics
    ///
    /// Panics if a rule does not hold. The message names the row, the shape and the layer of every
    /// failure.
    pub fn check(&self) {
        Row::ALL.iter().for_each(|row| self.send_row(*row));
        self.report();
    }

    /// Sends the traffic of one row.
    ///
    /// ```
    /// use buttress_test::traffic::{Row, Traffic};
    /// use tower::layer::util::Identity;
    ///
    /// Traffic::through("no layer", Identity::new).check_row(Row::HangUps);
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if a rule does not hold, as [`check`](Self::check) does.
    pub fn check_row(&self, row: Row) {
        self.send_row(row);
        self.report();
    }

    /// Sends the calls of one shape.
    ///
    /// ```
    /// use buttress_test::{Plan, traffic::{Caller, Means, Row, Shape, Traffic}};
    /// use std::time::Duration;
    /// use tower::layer::util::Identity;
    ///
    /// let impatient = Shape::new(Row::HangUps, "the caller leaves after 10 ms")
    ///     .backend(Plan::healthy().slow(Duration::from_secs(1)))
    ///     .caller(Caller::HangsUpAfter(Duration::from_millis(10)))
    ///     .means(Means::Nothing);
    /// Traffic::through("no layer", Identity::new).send(&impatient);
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if a rule does not hold, as [`check`](Self::check) does.
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

    /// Runs a scenario, and records its failure.
    fn run(&self, row: Row, what: &dyn fmt::Display, scenario: impl Future<Output = ()>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| on_virtual_time(scenario))) {
            let failure = format!("{row}, \"{what}\", through {}: {}", self.name, message(&*panic));
            self.failures.borrow_mut().push(failure);
        }
    }

    fn report(&self) {
        let failures = self.failures.take();
        assert!(failures.is_empty(), "{} scenarios failed:\n{}", failures.len(), failures.join("\n"));
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").field("name", &self.name).finish_non_exhaustive()
    }
}
