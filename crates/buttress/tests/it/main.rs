//! Tests of the layers, stepped by hand on a paused clock.

mod backpressure;
mod chaos;
mod context;
mod deadline;
mod dropped;
mod fallback;
mod gate;
mod handles;
mod health;
mod hedge;
mod load_shed;
mod ordering;
mod queue;
mod rate_limit;
mod retry;
mod sharing;
mod throttle;
mod tiers;
mod timeout;
mod wrappers;

use buttress::{Error, Reason};
use std::time::Duration;
use tokio_test::{assert_ready, task::Spawn};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The handle of a mock that answers strings with strings.
type Handle = tower_test::mock::Handle<&'static str, &'static str>;

/// Returns a service behind `layer`, around a mock.
fn layer<L>(layer: L) -> (tower_test::mock::Spawn<L::Service>, Handle)
where
    L: tower::Layer<tower_test::mock::Mock<&'static str, &'static str>>,
{
    tower_test::mock::spawn_layer(layer)
}

/// Returns the reason for which a completed call was rejected.
#[track_caller]
fn refusal<T: std::fmt::Debug>(call: &mut Spawn<impl Future<Output = Result<T, Error>>>) -> &'static Reason {
    match assert_ready!(call.poll()) {
        Err(Error::Rejected(rejection)) => rejection.reason(),
        other => panic!("not rejected: {other:?}"),
    }
}

/// Returns the next request that reached the inner service. Panics if there is none.
#[track_caller]
fn request(handle: &mut Handle) -> (&'static str, tower_test::mock::SendResponse<&'static str>) {
    assert_ready!(handle.poll_request()).expect("the services were dropped")
}

#[track_caller]
fn no_request(handle: &mut Handle) {
    assert!(handle.poll_request().is_pending(), "a request reached the inner service");
}

/// Advances the clock and fires timers.
async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}
