//! The contract of a layer: rules that hold whatever its policy is.
//!
//! [`check`] checks any layer:
//!
//! * A response body leaves unchanged: data, frames, trailers, `is_end_stream`, `size_hint`.
//! * The layer waits for the readiness of the inner service, and returns its errors of `poll_ready`
//!   and `call`.
//! * A clone is called only after its own `poll_ready` returned ready.
//! * A service, a future after any number of polls, and a body after any number of frames can be
//!   dropped. A panic of the inner service unwinds through the caller.
//! * After each of these, nothing of the inner service is held, and the next call reaches it: no
//!   permit was lost.
//!
//! [`check_bound_of_one`] is for a layer that admits one call at a time, such as a bulkhead of 1 or
//! a half-open circuit with one probe. A single lost permit rejects the next call there. It also
//! checks that all services of the layer share the bound, that a clone does not copy a permit, and
//! that an unused permit is passed on and its waiter woken.
//!
//! # When to use it
//!
//! In one test for each layer and each mode of it. [`traffic`](crate::traffic) checks whole stacks
//! and takes longer.
//!
//! # Time
//!
//! Each scenario makes a new layer and runs on tokio's paused clock, which advances when every task
//! waits. A call that has not ended after an hour counts as hung. Set the timeouts and leases of
//! the layer to more than a day, so that they do not expire within a scenario.
//!
//! # Example
//!
//! A layer that adds a header:
//!
//! ```
//! use buttress_test::contract;
//! use http::{HeaderValue, Request};
//! use std::task::{Context, Poll};
//! use tower::{Service, layer::layer_fn};
//!
//! #[derive(Clone)]
//! struct SetTenant<S>(S);
//!
//! impl<S: Service<Request<B>>, B> Service<Request<B>> for SetTenant<S> {
//!     type Response = S::Response;
//!     type Error = S::Error;
//!     type Future = S::Future;
//!
//!     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
//!         self.0.poll_ready(cx)
//!     }
//!
//!     fn call(&mut self, mut request: Request<B>) -> S::Future {
//!         request.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
//!         self.0.call(request)
//!     }
//! }
//!
//! contract::check(|| layer_fn(SetTenant));
//! ```

mod any_layer;
mod bound_of_one;
mod fixture;

use crate::{
    BoxError, Inner, TestBody,
    subject::{Subject, on_virtual_time as run},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{Layer, Service};

/// Checks the contract of a layer. See the [module](self) for its rules.
///
/// `layer` makes a new layer for each scenario.
///
/// ```
/// use buttress::{PlainExt, TimeoutLayer};
/// use buttress_test::contract;
/// use std::time::Duration;
///
/// // Two days: no timeout expires within a scenario.
/// contract::check(|| TimeoutLayer::total(Duration::from_secs(2 * 24 * 3600)).plain());
/// ```
///
/// # Panics
///
/// Panics if the layer breaks the contract. The message says after which step and how.
pub fn check<L, B>(layer: impl Fn() -> L)
where
    L: Layer<Inner> + 'static,
    L::Service: Service<Request<TestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    L::Service: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let layer = || Subject::new(layer());
    run(any_layer::a_call_goes_through_with_its_body(&layer));
    run(any_layer::the_ends_and_sizes_of_bodies_are_forwarded(&layer));
    run(any_layer::an_inner_service_that_takes_time_to_be_ready_is_waited_for(&layer));
    run(any_layer::an_inner_service_that_fails_to_become_ready_is_an_error(&layer));
    run(any_layer::an_inner_error_comes_out(&layer));
    run(any_layer::a_clone_does_not_inherit_readiness(&layer));
    run(any_layer::a_service_can_be_dropped_when_it_is_ready(&layer));
    run(any_layer::a_future_can_be_dropped_after_any_poll(&layer));
    run(any_layer::a_body_can_be_dropped_after_any_frame(&layer));
    run(any_layer::a_panic_of_the_inner_service_breaks_one_call_only(&layer));
}

/// Checks the contract of a layer that admits one call at a time: all rules of [`check`], and the
/// bound.
///
/// All services that one layer makes must share the bound: a server such as axum makes one for each
/// connection.
///
/// ```
/// use buttress::{BulkheadLayer, PlainExt};
/// use buttress_test::contract;
///
/// contract::check_bound_of_one(|| BulkheadLayer::new(1).plain());
/// ```
///
/// # Panics
///
/// Panics if the layer breaks the contract. The message says after which step and how.
pub fn check_bound_of_one<L, B>(layer: impl Fn() -> L)
where
    L: Layer<Inner> + 'static,
    L::Service: Service<Request<TestBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    L::Service: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    check(&layer);
    let layer = || Subject::new(layer());
    run(bound_of_one::all_services_of_a_layer_share_its_state(&layer));
    run(bound_of_one::a_clone_does_not_copy_the_permit(&layer));
    run(bound_of_one::a_permit_that_is_not_used_is_passed_on(&layer));
}

/// Makes a new layer.
type Make<'a> = &'a dyn Fn() -> Subject;
