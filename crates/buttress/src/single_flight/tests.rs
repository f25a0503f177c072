use super::*;
use crate::{
    BoxError, Error, PlainExt, TimeoutLayer,
    clock::TokioClock,
    context,
    ending::Plain,
    error::{outcome, sources},
};
use buttress_core::{Clock, Criticality, Rejection, context::CallContext};
use std::{
    collections::HashMap,
    future::{Future, pending},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

const S: Duration = Duration::from_secs(1);

/// Counts the calls that began, and those that are under way.
#[derive(Clone, Default)]
struct Calls(Arc<(AtomicUsize, AtomicUsize)>);

struct UnderWay(Calls);

impl Calls {
    fn begin(&self) -> UnderWay {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.0.1.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    fn made(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }

    fn under_way(&self) -> usize {
        self.0.1.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.1.fetch_sub(1, Ordering::Relaxed);
    }
}

type ByItself = SingleFlightLayer<Each<fn(&u32) -> u32>, Plain>;

fn layer() -> ByItself {
    SingleFlightLayer::new((|key| *key) as fn(&u32) -> u32).plain()
}

/// A service whose calls take a second.
fn slow(
    calls: &Calls,
) -> impl Service<u32, Response = u32, Error = io::Error, Future: Send + 'static> + Clone + Send + 'static {
    let calls = calls.clone();
    service_fn(move |key: u32| {
        let under_way = calls.begin();
        async move {
            sleep(S).await;
            drop(under_way);
            if key == 0 { Err(io::Error::from(io::ErrorKind::ConnectionReset)) } else { Ok(key) }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_of_one_key_make_one_call() {
    let (calls, layer) = (Calls::default(), layer());
    let stats = layer.stats();
    let (start, mut all) = (TokioClock.now(), Vec::new());
    for _ in 0..100 {
        // Each with a service of its own, as of axum's connections.
        all.push(tokio::spawn(layer.layer(slow(&calls)).oneshot(7)));
    }
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), 7);
    }
    assert_eq!((calls.made(), TokioClock.now() - start), (1, S));
    assert_eq!((stats.made(), stats.joined(), stats.unshared(), stats.rejected()), (1, 99, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_of_other_keys_and_calls_after_the_end_are_made() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let (one, two) = tokio::join!(service.clone().oneshot(1), service.clone().oneshot(2));
    assert_eq!((one.unwrap(), two.unwrap(), calls.made()), (1, 2, 2));
    assert_eq!((service.oneshot(1).await.unwrap(), calls.made()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn the_call_goes_on_when_the_first_caller_is_dropped() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let (start, leader) = (TokioClock.now(), tokio::spawn(service.clone().oneshot(7)));
    tokio::task::yield_now().await;
    let joined = tokio::spawn(service.clone().oneshot(7));
    sleep(S / 2).await;
    leader.abort();
    assert_eq!(joined.await.unwrap().unwrap(), 7);
    assert_eq!((calls.made(), TokioClock.now() - start), (1, S), "no work is lost");
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_shorter_timeout_leaves_alone() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let (leader, hasty, patient) = tokio::join!(
        timeout(S / 4, service.clone().oneshot(7)),
        timeout(S / 2, service.clone().oneshot(7)),
        timeout(2 * S, service.clone().oneshot(7)),
    );
    assert!(leader.is_err() && hasty.is_err());
    assert_eq!((patient.unwrap().unwrap(), calls.made()), (7, 1));
}

#[tokio::test(start_paused = true)]
async fn the_call_is_dropped_with_its_last_caller() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let both = async { tokio::join!(service.clone().oneshot(7), service.clone().oneshot(7)) };
    assert!(timeout(S / 2, both).await.is_err());
    assert_eq!((calls.made(), calls.under_way()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_held_and_not_polled_does_not_hold_up_others() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let mut held = tokio_test::task::spawn(service.clone().oneshot(7));
    assert!(held.poll().is_pending());
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
    assert!(matches!(held.poll(), std::task::Poll::Ready(Ok(7))));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_shared_and_keeps_its_type_and_meaning() {
    let calls = Calls::default();
    let service = layer().layer(slow(&calls));
    let (one, other) = tokio::join!(service.clone().oneshot(0), service.clone().oneshot(0));
    for error in [one.unwrap_err(), other.unwrap_err()] {
        let io = sources(&error).find_map(|source| source.downcast_ref::<io::Error>());
        assert_eq!(io.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset));
        assert!(outcome(&error).is_failure());
    }
    assert_eq!(calls.made(), 1);
    let Err(Error::Inner(alone)) = service.oneshot(0).await else { panic!() };
    assert!(alone.is::<io::Error>(), "an error of one caller is not wrapped");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_copied() {
    let inner = TimeoutLayer::attempt(S).plain().layer(service_fn(|_: u32| pending::<Result<u32, io::Error>>()));
    let service = layer().layer(inner);
    let (one, other) = tokio::join!(service.clone().oneshot(7), service.clone().oneshot(7));
    for error in [one.unwrap_err(), other.unwrap_err()] {
        assert!(matches!(error, Error::Rejected(ref rejection) if rejection.reason() == &crate::timeout::ATTEMPT));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_of_the_others_and_the_next_call_is_made() {
    let calls = Calls::default();
    let counted = calls.clone();
    let service = layer().layer(service_fn(move |key: u32| {
        let nth = counted.begin().0.made();
        async move {
            sleep(S).await;
            assert!(nth > 1, "the first call panics");
            Ok::<_, io::Error>(key)
        }
    }));
    let (leader, joined) = (tokio::spawn(service.clone().oneshot(7)), tokio::spawn(service.clone().oneshot(7)));
    let results = [leader.await, joined.await];
    let panicked = results.iter().filter(|result| result.is_err()).count();
    let told = results
        .iter()
        .flatten()
        .filter(|result| result.as_ref().is_err_and(|error| sources(error).any(|source| source.is::<CallPanicked>())));
    assert_eq!((panicked, told.count()), (1, 1));
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn callers_over_the_bound_are_rejected() {
    let calls = Calls::default();
    let layer = layer().max_waiters(1).named("rows");
    let stats = layer.stats();
    let service = layer.layer(slow(&calls));
    let call = || service.clone().oneshot(7);
    let (first, second, third) = tokio::join!(call(), call(), call());
    assert_eq!((first.unwrap(), second.unwrap(), stats.rejected()), (7, 7, 1));
    let rejection = third.unwrap_err().rejection().cloned().unwrap();
    assert_eq!((rejection.reason(), rejection.name()), (&TOO_MANY_WAITERS, Some("rows")));
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_key_are_not_shared() {
    let calls = Calls::default();
    let layer = SingleFlightLayer::filtered(|_: &u32| None::<u32>);
    let stats = layer.stats();
    let service = layer.plain().layer(slow(&calls));
    let (one, other) = tokio::join!(service.clone().oneshot(7), service.clone().oneshot(7));
    assert_eq!((one.unwrap(), other.unwrap(), calls.made(), stats.unshared()), (7, 7, 2, 2));
}

/// A service that answers with the context in which it was polled after a second.
fn contexts()
-> impl Service<u32, Response = CallContext, Error = BoxError, Future: Send + 'static> + Clone + Send + 'static {
    service_fn(async |_: u32| {
        sleep(S).await;
        Ok::<_, BoxError>(context::current())
    })
}

#[tokio::test(start_paused = true)]
async fn the_call_keeps_the_context_of_its_first_caller_whoever_polls_it() {
    let service = layer().layer(contexts());
    let of = |class: Criticality| CallContext::default().with_priority(class.into());
    let leader = tokio::spawn(context::with(of(Criticality::Critical), service.clone().oneshot(7)));
    tokio::task::yield_now().await;
    let joined = tokio::spawn(context::with(of(Criticality::Sheddable), service.clone().oneshot(7)));
    tokio::task::yield_now().await;
    leader.abort();
    assert_eq!(joined.await.unwrap().unwrap(), of(Criticality::Critical));
}

#[tokio::test(start_paused = true)]
async fn a_more_important_call_is_not_made_as_a_less_important_one() {
    let service = layer().layer(contexts());
    let of = |class: Criticality| CallContext::default().with_priority(class.into());
    let call = |class| context::with(of(class), service.clone().oneshot(7));
    let (batch, checkout) = tokio::join!(call(Criticality::Sheddable), call(Criticality::Critical));
    assert_eq!((batch.unwrap(), checkout.unwrap()), (of(Criticality::Sheddable), of(Criticality::Critical)));
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_later_deadline_does_not_share_the_rejection_of_an_earlier_one() {
    static TOO_LATE: Reason = Reason::new("too_late", "too little time is left", Class::Deadline);
    let service = layer().layer(service_fn(async |_: u32| {
        sleep(S).await;
        match context::current().deadline {
            Some(end) if end <= TokioClock.now() => Err(Error::from(Rejection::new("test", &TOO_LATE))),
            _ => Ok(7),
        }
    }));
    let call = |context| context::with(context, service.clone().oneshot(7));
    let soon = CallContext::default().with_deadline(TokioClock.now() + S);
    let start = TokioClock.now();
    let (early, same, later) = tokio::join!(call(soon), call(soon), call(CallContext::default()));
    assert_eq!(early.unwrap_err().rejection().map(Rejection::reason), Some(&TOO_LATE));
    assert_eq!(same.unwrap_err().rejection().map(Rejection::reason), Some(&TOO_LATE));
    assert_eq!((later.unwrap(), TokioClock.now() - start), (7, 2 * S));
}

/// Callers come at random and wait for a random time. Each that waits long enough gets its result,
/// and at no time are two calls of a key under way.
#[tokio::test(start_paused = true)]
async fn random_callers_never_hang_and_never_make_two_calls_of_a_key_at_once() {
    let busy: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let counted = busy.clone();
    let service = layer().layer(service_fn(move |key: u32| {
        struct Done(Arc<Mutex<HashMap<u32, u32>>>, u32);
        impl Drop for Done {
            fn drop(&mut self) {
                *self.0.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
            }
        }
        let now = {
            let mut busy = counted.lock().unwrap();
            let now = busy.entry(key).or_default();
            *now += 1;
            *now
        };
        let done = Done(counted.clone(), key);
        async move {
            sleep(S).await;
            drop(done);
            assert_eq!(now, 1, "two calls of a key at once");
            Ok::<_, io::Error>(key)
        }
    }));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut all = Vec::new();
    for _ in 0..2_000 {
        let (key, patience) = (rng.u32(0..5), S.mul_f64(2.0 * rng.f64()));
        let call = service.clone().oneshot(key);
        all.push(tokio::spawn(async move { (patience, timeout(patience, call).await) }));
        sleep(S.mul_f64(rng.f64() / 50.0)).await;
    }
    for one in all {
        let (patience, result) = one.await.unwrap();
        assert!(result.is_ok() || patience <= S, "a call took longer than a second");
        if let Ok(result) = result {
            result.unwrap();
        }
    }
    assert!(busy.lock().unwrap().values().all(|now| *now == 0));
}

#[test]
fn the_future_is_send() {
    fn is_send<F: Future + Send>(_: F) {}
    is_send(layer().layer(slow(&Calls::default())).oneshot(7));
}
