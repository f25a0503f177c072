use super::{
    Make,
    fixture::{Fixture, poll_ready, request},
};
use crate::{Answer, Plan, subject::Boxed};
use std::task::Poll;
use tokio_test::task;
use tower::Service;

/// Returns a future that calls the service once it is ready. A test polls it by hand and sees
/// whether it is woken.
fn attempt(mut service: Boxed) -> impl Future<Output = ()> {
    let mut call = None;
    std::future::poll_fn(move |cx| {
        if call.is_none() && poll_ready(&mut service, cx) {
            call = Some(service.call(request()));
        }
        match &mut call {
            Some(call) => call.as_mut().poll(cx).map(drop),
            None => Poll::Pending,
        }
    })
}

pub(super) async fn all_services_of_a_layer_share_its_state(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::of(Answer::Never));
    let mut first = task::spawn(attempt(fixture.service()));
    assert!(first.poll().is_pending());
    assert_eq!(fixture.inner.calls(), 1, "the first call is not admitted");

    let mut second = task::spawn(attempt(fixture.service()));
    let rejected = second.poll().is_ready();
    assert_eq!(fixture.inner.calls(), 1, "two services of the layer do not share their bound");

    fixture.inner.follow(Plan::healthy());
    drop(first);
    if !rejected {
        assert!(second.is_woken(), "a waiting call is not woken by the released permit");
        assert!(second.poll().is_ready());
        assert_eq!(fixture.inner.calls(), 2, "a waiting call is not admitted with the released permit");
    }
    drop(second);
    fixture.is_as_before("two calls at once").await;
}

pub(super) async fn a_clone_does_not_copy_the_permit(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::of(Answer::Never));
    let mut original = fixture.ready().await;
    let clone = original.clone();
    let mut first = task::spawn(original.call(request()));
    assert!(first.poll().is_pending());
    let mut second = task::spawn(attempt(clone));
    let _: Poll<()> = second.poll();
    assert_eq!(fixture.inner.calls(), 1, "a clone is admitted with the permit of its original");
    drop((first, second, original));
    fixture.is_as_before("a call of a clone").await;
}

pub(super) async fn a_permit_that_is_not_used_is_passed_on(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::healthy());
    let holder = fixture.ready().await;
    let mut other = task::spawn(attempt(holder.clone()));
    if other.poll().is_pending() {
        assert_eq!(fixture.inner.calls(), 0);
        drop(holder);
        assert!(other.is_woken(), "a waiting call is not woken by a permit that was released unused");
        assert!(other.poll().is_ready());
    }
    assert_eq!(fixture.inner.calls(), 1, "the other call is not admitted");
}
