//! What every layer has to keep, whatever its policy is.
//!
//! [`check`] runs any layer through it. [`check_bound_of_one`] is for layers that admit one call at a time, like a bulkhead of 1 or a
//! half-open circuit with one probe: there each lost permit shows at once, because the next call does not get through.
//!
//! The layer is made anew for each scenario. Time is virtual: what the layer waits for passes at once, and an hour
//! counts as for ever, so give it timeouts and leases of more than a day.

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

/// Checks a layer.
///
/// # Panics
/// When the layer breaks the contract; the message says where.
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

/// Checks a layer that admits one call at a time: all of [`check`], and that it keeps to its bound.
///
/// # Panics
/// When the layer breaks the contract; the message says where.
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

/// Makes the layer anew.
type Make<'a> = &'a dyn Fn() -> Subject;
