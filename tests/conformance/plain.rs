//! Our breaker as the layer around a service that is not HTTP.

use crate::{
    future::{Backend, Failed, begin, call},
    ours::{self, Ours, outcome_of},
    run::Breaker,
    trace::{self, Feature, Trace},
};
use buttress::{CircuitBreaker, CircuitBreakerLayer, Ending, Error, Rejection, ending::Plain};
use buttress_core::Outcome;
use std::{cell::Cell, rc::Rc};
use tower::Layer;

type Classify = fn(Result<&(), &Error>) -> Outcome;

/// It sees no parts of a response.
pub(crate) fn has(feature: Feature) -> bool {
    feature != Feature::Progress && ours::has(feature)
}

pub(crate) fn make(trace: &Trace) -> Box<dyn Breaker> {
    let breaker = trace::configure!(CircuitBreaker::builder(trace.name.clone()), &trace.config);
    let breaker = breaker.build().expect("the traces' configurations are valid");
    let classify: Classify = |result| match result {
        Ok(()) => Outcome::Success,
        Err(Error::Inner(error)) => outcome_of(error.downcast_ref::<Failed>().expect("the backend's error").0),
        Err(other) => unreachable!("an ending classifies no rejection: {other}"),
    };
    let layer = CircuitBreakerLayer::from(breaker.clone()).end(Plain::new().classify(classify));
    let mut service = layer.layer(Backend);
    Box::new(Ours::new(breaker, move || {
        let rejected = Rc::new(Cell::new(None));
        let told = Rc::clone(&rejected);
        let begun = begin(|place| {
            let call = call(&mut service, place);
            async move {
                if let Err(error) = call.await {
                    told.set(error.rejection().and_then(Rejection::retry_after));
                }
            }
        });
        begun.map(|call| Box::new(call) as _).ok_or_else(|| rejected.get())
    }))
}
