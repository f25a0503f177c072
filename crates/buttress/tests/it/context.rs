//! Tests of the context as a layer.

use crate::{MS, pass};
use buttress::{
    ContextLayer, PlainExt, RetryLayer, context,
    policy::{CallContext, Criticality, Priority},
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tokio_test::task::spawn;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

fn sheddable() -> Priority {
    Criticality::Sheddable.into()
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_called_and_polled_in_the_context_and_others_are_not() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let see = move |seen: &Mutex<Vec<Option<Priority>>>| seen.lock().unwrap().push(context::current().priority);
    let inner = {
        let seen = seen.clone();
        service_fn(move |_: &'static str| {
            see(&seen);
            let seen = seen.clone();
            async move {
                see(&seen);
                tokio::time::sleep(MS).await;
                see(&seen);
                Ok::<_, Infallible>(())
            }
        })
    };
    let mut service = ContextLayer::new().priority_by(|_: &&str| Some(sheddable())).plain().layer(inner);
    let mut call = spawn(service.call("a request"));
    assert!(call.poll().is_pending());
    assert_eq!(context::current(), CallContext::default());
    pass(2 * MS).await;
    assert!(call.poll().is_ready());
    assert_eq!(*seen.lock().unwrap(), [Some(sheddable()); 3]);
    assert_eq!(context::current(), CallContext::default());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_inner_service_restores_the_context() {
    let inner = service_fn(async |_: ()| -> Result<(), Infallible> { panic!("in the call") });
    let mut service = ContextLayer::new().priority_by(|_: &()| Some(sheddable())).plain().layer(inner);
    let mut call = spawn(service.call(()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.poll())).is_err());
    assert_eq!(context::current(), CallContext::default());
}

#[tokio::test(start_paused = true)]
async fn every_attempt_of_a_retry_is_made_in_the_context() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = {
        let seen = seen.clone();
        service_fn(move |_: ()| {
            let seen = seen.clone();
            async move {
                seen.lock().unwrap().push(context::current().priority);
                Err::<(), _>(std::io::Error::other("down"))
            }
        })
    };
    let client = ServiceBuilder::new()
        .layer(ContextLayer::new().priority_by(|_: &()| Some(sheddable())).plain())
        .layer(RetryLayer::new(3).plain())
        .service(inner);
    client.oneshot(()).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [Some(sheddable()); 3]);
}

#[tokio::test(start_paused = true)]
async fn an_inner_layer_that_chooses_nothing_keeps_what_an_outer_one_chose() {
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new().priority_by(|_: &()| Some(sheddable())).plain())
        .layer(ContextLayer::new().priority_by(|_: &()| None).plain())
        .service_fn(async |_: ()| Ok::<_, Infallible>(context::current().priority));
    assert_eq!(service.oneshot(()).await.unwrap(), Some(sheddable()));
}
