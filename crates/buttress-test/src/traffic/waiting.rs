//! Row 18: services that were ready, or were waiting to be ready, when the circuit opened.

use super::{Field, Row, Traffic, field::PROBES_BY};
use crate::{Ready, subject::Boxed};
use std::{future::poll_fn, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_test::task;
use tower::Service;

/// A service that waits for its backend is woken when the circuit opens, because it would reject a
/// call.
pub(super) fn pending_when_it_opens(traffic: &Traffic) {
    traffic.run(Row::Ready, &"waits for the backend when the circuit opens", async {
        let field = Field::new(traffic);
        let never = field.healthy().ready(Ready::Never);
        field.inner.follow(never.clone());
        let mut early = field.service();
        let mut waits = task::spawn(poll_fn(move |cx| early.poll_ready(cx)));
        if waits.poll().is_ready() {
            // The layer does not wait in `poll_ready`.
            return;
        }
        field.trip().await;
        field.inner.follow(never);
        let mut late = field.service();
        if task::spawn(poll_fn(move |cx| late.poll_ready(cx))).poll().is_ready() {
            assert!(waits.is_woken(), "a new service rejects, and the waiting service is not woken");
            assert!(waits.poll().is_ready(), "a new service rejects, and the woken service is still pending");
        }
    });
}

const AN_HOUR: Duration = Duration::from_secs(3600);

pub(super) fn ready_when_it_opens(traffic: &Traffic) {
    traffic.run(Row::Ready, &"ready when the circuit opens", async {
        let field = Field::new(traffic);
        let (mut early, mut polled_again) = (field.service(), field.service());
        for service in [&mut early, &mut polled_again] {
            poll_fn(|cx| service.poll_ready(cx)).await.expect("the backend is ready");
        }
        field.trip().await;
        field.inner.follow(field.healthy());
        let is_ready = |service: &mut Boxed| task::spawn(poll_fn(|cx| service.poll_ready(cx))).poll().is_ready();
        let late = is_ready(&mut field.service());
        assert_eq!(is_ready(&mut polled_again), late, "poll_ready of a ready service ignores that the circuit opened");
        drop(polled_again);
        let before = field.inner.calls();
        let reply = timeout(AN_HOUR, early.call(field.request().make())).await.expect("the call ends within an hour");
        assert!(field.inner.calls() - before <= 1, "the call reaches the backend more than once: {reply:?}");
        drop(reply);
        // After the call, the service must behave as a new one.
        sleep(PROBES_BY).await;
        for _ in 0..20 {
            let ready = timeout(AN_HOUR, poll_fn(|cx| early.poll_ready(cx)));
            ready.await.expect("the service is ready within an hour").expect("the backend is ready");
            let reply =
                timeout(AN_HOUR, early.call(field.request().make())).await.expect("the call ends within an hour");
            drop(super::field::read(reply, usize::MAX).await);
            sleep(Duration::from_secs(1)).await;
        }
        drop(early);
        field.is_closed().await;
    });
}
