use buttress::policy::Policy;
use tower::ServiceExt;

use super::*;
use crate::launch::Name;
use crate::mesh::PATIENCE;
use crate::stack::{Admission, retry_after, timed_out};

#[test]
fn every_timeout_leaves_time_for_those_inside_it() {
    for limits in [PARTICIPANT, ORDER] {
        assert!(limits.attempt < limits.total && limits.max_wait < limits.attempt, "{limits:?}");
    }
    // Three attempts with their pauses.
    assert!(PARTICIPANT.attempt * PARTICIPANT.attempts < PARTICIPANT.total);
    // The order service fetches prices and waits for the saga.
    assert!(PARTICIPANT.total + PATIENCE < ORDER.attempt);
    assert!(ORDER.total < Admission::new(Name::Order, 1).unwrap().timeout, "the caller gives up first");
}

/// A call to a port on which no socket listens.
async fn refused(dependency: &Dependency) -> HttpError {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    drop(listener);
    let request = Request::get(address.url()).body(Full::default()).unwrap();
    dependency.http().oneshot(request).await.unwrap_err()
}

#[tokio::test]
async fn the_numbers_of_a_client_stack_are_told_apart() {
    let dependency = Dependency::new("order -> payment", PARTICIPANT, 1).unwrap();
    assert_eq!((dependency.name(), dependency.peer), ("order -> payment", "payment"));
    assert!(!timed_out(&refused(&dependency).await));
    // An attempt and two retries, none of them rejected.
    let held = dependency.bulkhead.admit("a call").unwrap();
    let Stats { retries, rejected } = dependency.stats();
    assert_eq!((retries, rejected), (2, 0));
    let shown = dependency.describe();
    assert_eq!(shown["name"], "order -> payment");
    assert_eq!(shown["circuit"]["state"], "closed");
    assert_eq!((&shown["circuit"]["calls"], &shown["circuit"]["failures"]), (&json!(3), &json!(3)));
    assert_eq!((&shown["circuit"]["in_a_row"], &shown["circuit"]["rejected"]), (&json!(3), &json!(0)));
    let bulkhead = json!({ "in_flight": 1, "waiting": 0, "limit": 6, "rejected": 0 });
    assert_eq!(shown["bulkhead"], bulkhead);
    assert_eq!((&shown["retry"]["retries"], &shown["retry"]["out_of_budget"]), (&json!(2), &json!(0)));
    assert!(shown["retry"]["balance"].as_f64().unwrap() > 0.0);
    drop(held);

    dependency.breaker.open_for(Duration::from_secs(5));
    let error = refused(&dependency).await;
    assert!(retry_after(&error).is_some() && !timed_out(&error));
    let shown = dependency.describe();
    assert_eq!((&shown["circuit"]["state"], &shown["circuit"]["rejected"]), (&json!("open"), &json!(1)));
    assert_eq!(shown["circuit"]["changes"][0]["to"], "open");
}
