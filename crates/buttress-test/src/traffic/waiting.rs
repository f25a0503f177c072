//! Row 18: services that were made ready, or were waiting for it, before the circuit opened.

use super::{Field, Row, Traffic, field::PROBES_BY};
use crate::{Ready, subject::Boxed};
use std::{future::poll_fn, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_test::task;
use tower::Service;

/// A service whose backend never becomes ready does not wait for it once its calls would be
/// rejected.
pub(super) fn pending_when_it_opens(traffic: &Traffic) {
    traffic.run(Row::Ready, &"waits for the backend when the circuit opens", async {
        let field = Field::new(traffic);
        let never = field.healthy().ready(Ready::Never);
        field.inner.follow(never.clone());
        let mut early = field.service();
        let mut waits = task::spawn(poll_fn(move |cx| early.poll_ready(cx)));
        if waits.poll().is_ready() {
            // It waits in the future of the call, or calls are not held up by a backend that is not
            // ready.
            return;
        }
        field.trip().await;
        field.inner.follow(never);
        let mut late = field.service();
        if task::spawn(poll_fn(move |cx| late.poll_ready(cx))).poll().is_ready() {
            assert!(waits.is_woken(), "a new service rejects, and the one that waits is not woken");
            assert!(waits.poll().is_ready(), "a new service rejects, and the one that waits goes on waiting");
        }
    });
}

const AN_HOUR: Duration = Duration::from_secs(3600);

pub(super) fn ready_when_it_opens(traffic: &Traffic) {
    traffic.run(Row::Ready, &"ready when the circuit opens", async {
        let field = Field::new(traffic);
        let (mut early, mut asked_again) = (field.service(), field.service());
        for service in [&mut early, &mut asked_again] {
            poll_fn(|cx| service.poll_ready(cx)).await.expect("the backend is ready");
        }
        field.trip().await;
        field.inner.follow(field.healthy());
        let is_ready = |service: &mut Boxed| task::spawn(poll_fn(|cx| service.poll_ready(cx))).poll().is_ready();
        let late = is_ready(&mut field.service());
        assert_eq!(is_ready(&mut asked_again), late, "a service that was ready does not see that the circuit opened");
        drop(asked_again);
        let before = field.inner.calls();
        let reply = timeout(AN_HOUR, early.call(field.request().make())).await.expect("the call never ends");
        assert!(field.inner.calls() - before <= 1, "the call arrives more than once: {reply:?}");
        drop(reply);
        // It is a service like any other afterwards.
        sleep(PROBES_BY).await;
        for _ in 0..20 {
            let ready = timeout(AN_HOUR, poll_fn(|cx| early.poll_ready(cx)));
            ready.await.expect("the service never becomes ready").expect("the backend is ready");
            let reply = timeout(AN_HOUR, early.call(field.request().make())).await.expect("the call never ends");
            drop(super::field::read(reply, usize::MAX).await);
            sleep(Duration::from_secs(1)).await;
        }
        drop(early);
        field.is_closed().await;
    });
}
