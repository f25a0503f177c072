//! Row 18: a service that was made ready before the circuit opened.

use super::{Field, Row, Traffic, field::PROBES_BY};
use std::{future::poll_fn, time::Duration};
use tokio::time::{sleep, timeout};
use tower::Service;

const AN_HOUR: Duration = Duration::from_secs(3600);

pub(super) fn ready_when_it_opens(traffic: &Traffic) {
    traffic.run(Row::Ready, &"ready when the circuit opens", async {
        let field = Field::new(traffic);
        let mut early = field.service();
        poll_fn(|cx| early.poll_ready(cx)).await.expect("the backend is ready");
        field.trip().await;
        field.inner.follow(field.healthy());
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
