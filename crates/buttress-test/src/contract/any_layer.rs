use super::{
    Make,
    fixture::{Fixture, become_ready, poll_times, reply, request},
};
use crate::{Answer, Part, Plan, Ready, TestBody};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio_test::task;
use tower::Service;

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, "x".parse().expect("a header value"))])
}

/// Returns bodies of every kind: empty, one frame, several frames, with trailers, with an error.
fn bodies() -> [Vec<Part>; 5] {
    [
        vec![],
        vec![Part::Data("whole")],
        vec![Part::Data("one"), Part::Pause, Part::Data("two"), Part::Data("three")],
        vec![Part::Data("one"), Part::Trailers(trailers())],
        vec![Part::Data("one"), Part::Error("broken off")],
    ]
}

pub(super) async fn a_call_goes_through_with_its_body(layer: Make<'_>) {
    let parts = vec![Part::Data("hello "), Part::Pause, Part::Data("world"), Part::Trailers(trailers())];
    let fixture = Fixture::new(layer(), Plan::of(Answer::Body(parts)).after(2));
    let response = reply(fixture.ready().await.call(request())).await.expect("a healthy call succeeds");
    let body = response.into_body().collect().await.expect("a healthy body arrives");
    assert_eq!(body.trailers(), Some(&trailers()), "the trailers are lost");
    assert_eq!(body.to_bytes(), "hello world");
    fixture.is_as_before("a healthy call").await;
}

pub(super) async fn the_ends_and_sizes_of_bodies_are_forwarded(layer: Make<'_>) {
    for parts in bodies() {
        let fixture = Fixture::new(layer(), Plan::of(Answer::Body(parts.clone())));
        let mut bare = TestBody::new(parts);
        let mut body = reply(fixture.ready().await.call(request())).await.expect("a healthy call succeeds").into_body();
        loop {
            let seen = (body.is_end_stream(), body.size_hint().exact());
            let expected = (bare.is_end_stream(), bare.size_hint().exact());
            assert_eq!(seen, expected, "is_end_stream or size_hint is not forwarded");
            let (frame, bare_frame) = (body.frame().await, bare.frame().await);
            let kind =
                |frame: Option<Result<http_body::Frame<_>, _>>| frame.map(|frame| frame.map(|f| f.is_data()).ok());
            let kind = (kind(frame), kind(bare_frame));
            assert_eq!(kind.0, kind.1, "a frame is changed");
            if kind.0.is_none() {
                break;
            }
        }
        drop(body);
        fixture.is_as_before("a whole body").await;
    }
}

pub(super) async fn an_inner_service_that_takes_time_to_be_ready_is_waited_for(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::healthy().ready(Ready::After(2)));
    let response = reply(fixture.ready().await.call(request())).await;
    assert_eq!(response.expect("the inner service becomes ready").status(), 200);
    assert_eq!(fixture.inner.calls(), 1);
    fixture.is_as_before("a call that waited for readiness").await;
}

pub(super) async fn an_inner_service_that_fails_to_become_ready_is_an_error(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::healthy().ready(Ready::Fails));
    let mut service = fixture.service();
    // A layer whose `poll_ready` does not wait for the inner service returns the error from its
    // future.
    let result = match become_ready(&mut service).await {
        Ok(()) => reply(service.call(request())).await.map(drop),
        Err(error) => Err(error),
    };
    let error = result.expect_err("the inner service cannot become ready");
    assert!(error.to_string().contains("cannot become ready"), "another error is returned: {error}");
    // tower: a service must be dropped after an error of `poll_ready`. Until then it must not hold
    // a permit.
    fixture.is_as_before("a failed readiness").await;
    drop(service);
}

pub(super) async fn an_inner_error_comes_out(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::of(Answer::Error).after(1));
    let error = reply(fixture.ready().await.call(request())).await.expect_err("the inner service fails");
    assert!(error.to_string().contains("the inner service fails"), "another error is returned: {error}");
    fixture.is_as_before("a failed call").await;
}

pub(super) async fn a_clone_does_not_inherit_readiness(layer: Make<'_>) {
    let fixture = Fixture::new(layer(), Plan::healthy());
    let original = fixture.ready().await;
    let mut clone = original.clone();
    drop(original);
    become_ready(&mut clone).await.expect("a clone becomes ready without its original");
    // The inner service panics if the clone of it was not polled ready.
    reply(clone.call(request())).await.expect("a clone works");
    let mut original = fixture.ready().await;
    drop(original.clone());
    reply(original.call(request())).await.expect("the original is still ready");
    drop((original, clone));
    fixture.is_as_before("calls of clones").await;
}

pub(super) async fn a_service_can_be_dropped_when_it_is_ready(layer: Make<'_>) {
    for ready in [0, 1] {
        let fixture = Fixture::new(layer(), Plan::healthy().ready(Ready::After(ready)));
        drop(fixture.ready().await);
        fixture.is_as_before("dropping a ready service").await;
    }
}

pub(super) async fn a_future_can_be_dropped_after_any_poll(layer: Make<'_>) {
    let slow_to_be_ready = Plan::healthy().after(1).ready(Ready::After(1));
    for plan in [Plan::healthy().after(3), Plan::of(Answer::Error).after(1), slow_to_be_ready] {
        for polls in 0.. {
            let fixture = Fixture::new(layer(), plan.clone());
            let mut call = task::spawn(fixture.ready().await.call(request()));
            let ended = poll_times(&mut call, polls).await.is_some();
            drop(call);
            fixture.is_as_before(&format!("dropping the future after {polls} polls of {plan:?}")).await;
            if ended {
                break;
            }
            assert!(polls < 100, "the call has not ended after 100 polls: {plan:?}");
        }
    }
}

pub(super) async fn a_body_can_be_dropped_after_any_frame(layer: Make<'_>) {
    for parts in bodies() {
        for frames in 0..=parts.len() {
            let fixture = Fixture::new(layer(), Plan::of(Answer::Body(parts.clone())));
            let response = reply(fixture.ready().await.call(request())).await.expect("a healthy call succeeds");
            let mut body = response.into_body();
            for _ in 0..frames {
                let _: Option<Result<_, _>> = body.frame().await;
            }
            drop(body);
            fixture.is_as_before(&format!("dropping the body after {frames} frames of {parts:?}")).await;
        }
    }
}

pub(super) async fn a_panic_of_the_inner_service_breaks_one_call_only(layer: Make<'_>) {
    for answer in [Answer::PanicInCall, Answer::PanicInPoll] {
        let fixture = Fixture::new(layer(), Plan::of(answer.clone()));
        let mut service = fixture.ready().await;
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let mut call = task::spawn(service.call(request()));
            let _: std::task::Poll<_> = call.poll();
        }));
        assert!(panic.is_err(), "the panic does not unwind to the caller: {answer:?}");
        drop(service);
        fixture.is_as_before(&format!("a {answer:?}")).await;
    }
}
