use super::*;
use crate::{Criticality, context::CallContext};
use proptest::prelude::*;
use std::{
    future::{Future, pending, poll_fn},
    sync::{
        Mutex as StdMutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

type Of<T = u32> = Participant<&'static str, T, String>;

/// Counts its wake-ups.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// A call that a test ends.
#[derive(Clone, Default)]
struct Backend(Arc<StdMutex<Answer>>);

type Answer = (Option<Landed<u32, String>>, Option<Waker>);

impl Backend {
    fn call(&self) -> impl Future<Output = Landed<u32, String>> + Send + 'static {
        let backend = self.clone();
        poll_fn(move |cx| {
            let mut state = backend.0.lock().unwrap();
            match state.0.take() {
                Some(landed) => Poll::Ready(landed),
                None => {
                    state.1 = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    fn answer(&self, landed: Landed<u32, String>) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0 = Some(landed);
            state.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

fn enter(flights: &Flights) -> Entered<&'static str, u32, String> {
    flights.enter("key", CallContext::default(), 100)
}

fn first(flights: &Flights, backend: &Backend) -> Of {
    let Entered::First(mut first) = enter(flights) else { panic!("a call is under way") };
    first.start(backend.call());
    first
}

fn join(flights: &Flights) -> Of {
    let Entered::Joined(joined) = enter(flights) else { panic!("no call to join") };
    joined
}

fn poll(participant: &mut Of) -> Poll<Arrival<u32, String>> {
    participant.poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_with(participant: &mut Of, woken: &Arc<Woken>) -> Poll<Arrival<u32, String>> {
    participant.poll(&mut Context::from_waker(&Waker::from(woken.clone())))
}

#[test]
fn all_who_come_while_a_call_is_under_way_get_its_result() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let mut all = vec![first(&flights, &backend)];
    all.extend((0..99).map(|_| join(&flights)));
    assert!(all.iter_mut().all(|one| poll(one).is_pending()));
    backend.answer(Landed::Shared(7));
    assert!(all.iter_mut().all(|one| poll(one) == Poll::Ready(Arrival::Shared(7))));
    assert!(flights.is_empty() && !backend.is_held());
}

#[test]
fn the_call_goes_on_when_the_first_caller_leaves() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let mut leader = first(&flights, &backend);
    let mut joined = join(&flights);
    let woken = Arc::new(Woken::default());
    assert!(poll(&mut leader).is_pending());
    assert!(poll_with(&mut joined, &woken).is_pending());
    drop(leader);
    let mut late = join(&flights);
    backend.answer(Landed::Shared(7));
    assert_eq!(woken.take(), 1, "the future wakes who is left");
    assert_eq!(poll_with(&mut joined, &woken), Poll::Ready(Arrival::Shared(7)));
    assert_eq!(poll(&mut late), Poll::Ready(Arrival::Shared(7)));
}

#[test]
fn a_caller_that_is_not_polled_does_not_hold_up_the_others() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let mut idle = first(&flights, &backend);
    assert!(poll(&mut idle).is_pending());
    let mut joined = join(&flights);
    let woken = Arc::new(Woken::default());
    assert!(poll_with(&mut joined, &woken).is_pending());
    backend.answer(Landed::Shared(7));
    assert_eq!(woken.take(), 1);
    assert_eq!(poll(&mut joined), Poll::Ready(Arrival::Shared(7)));
    assert_eq!(poll(&mut idle), Poll::Ready(Arrival::Shared(7)));
}

#[test]
fn when_the_last_caller_leaves_the_call_is_dropped_and_the_next_makes_another() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let (leader, joined) = (first(&flights, &backend), join(&flights));
    drop((leader, joined));
    assert!(!backend.is_held() && flights.is_empty());
    let mut again = first(&flights, &backend);
    backend.answer(Landed::Shared(8));
    assert_eq!(poll(&mut again), Poll::Ready(Arrival::Shared(8)));
}

#[test]
fn a_result_of_its_own_goes_to_the_first_caller_whoever_polled() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let (mut leader, mut joined) = (first(&flights, &backend), join(&flights));
    backend.answer(Landed::Own("stream".to_owned()));
    assert_eq!(poll(&mut joined), Poll::Ready(Arrival::Unshared));
    assert_eq!(poll(&mut leader), Poll::Ready(Arrival::Own("stream".to_owned())));
}

#[test]
fn a_result_of_its_own_is_dropped_when_the_first_caller_has_left() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let (leader, mut joined) = (first(&flights, &backend), join(&flights));
    drop(leader);
    backend.answer(Landed::Own("stream".to_owned()));
    assert_eq!(poll(&mut joined), Poll::Ready(Arrival::Unshared));
    assert!(flights.is_empty());
}

#[test]
fn a_panic_wakes_the_others_and_tells_them() {
    let flights = Flights::new();
    let Entered::First(mut leader) = enter(&flights) else { panic!() };
    leader.start(async { panic!("in the call") });
    let mut joined = join(&flights);
    let woken = Arc::new(Woken::default());
    // Registered while the first polls, as on another thread.
    assert!(joined.look(&Context::from_waker(&Waker::from(woken.clone()))).is_none());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut leader)));
    assert!(panicked.is_err());
    assert_eq!(woken.take(), 1);
    assert_eq!(poll(&mut joined), Poll::Ready(Arrival::Panicked));
    assert!(flights.is_empty());
}

#[test]
fn a_call_that_never_starts_is_told_to_those_who_joined() {
    let flights = Flights::new();
    let Entered::First(leader) = enter(&flights) else { panic!() };
    let mut joined = join(&flights);
    let woken = Arc::new(Woken::default());
    assert!(poll_with(&mut joined, &woken).is_pending());
    drop(leader);
    assert_eq!((woken.take(), poll(&mut joined)), (1, Poll::Ready(Arrival::Panicked)));
}

#[test]
fn those_who_looked_before_the_start_are_woken_by_it() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let Entered::First(mut leader) = enter(&flights) else { panic!() };
    let mut joined = join(&flights);
    let woken = Arc::new(Woken::default());
    assert!(poll_with(&mut joined, &woken).is_pending());
    leader.start(backend.call());
    assert_eq!(woken.take(), 1);
    backend.answer(Landed::Shared(7));
    assert_eq!(poll(&mut joined), Poll::Ready(Arrival::Shared(7)));
}

#[test]
fn no_more_than_the_bound_join_a_call() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let leader = first(&flights, &backend);
    let enter = || flights.enter::<_, u32, String>("key", CallContext::default(), 2);
    let Entered::Joined(one) = enter() else { panic!() };
    let Entered::Joined(_two) = enter() else { panic!() };
    assert!(matches!(enter(), Entered::Full));
    drop(one);
    assert!(matches!(enter(), Entered::Joined(_)));
    drop(leader);
}

#[test]
fn a_call_does_not_join_one_that_is_less_important() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let of = |class: Criticality| CallContext::default().with_priority(class.into());
    let enter = |class| flights.enter::<_, u32, String>("key", of(class), 100);
    let Entered::First(mut batch) = enter(Criticality::Sheddable) else { panic!() };
    batch.start(backend.call());
    let Entered::First(mut checkout) = enter(Criticality::Critical) else { panic!("it joined a batch job") };
    checkout.start(pending());
    assert!(matches!(enter(Criticality::Sheddable), Entered::Joined(_)), "the later ones join the newest");
    backend.answer(Landed::Shared(7));
    assert_eq!(poll(&mut batch), Poll::Ready(Arrival::Shared(7)));
    assert_eq!(flights.len(), 1, "the end of the first call leaves the second in its place");
}

#[test]
fn equal_keys_of_other_types_of_results_do_not_meet() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let _leader = first(&flights, &backend);
    assert!(matches!(flights.enter::<_, u64, String>("key", CallContext::default(), 9), Entered::First(_)));
}

#[test]
fn a_participant_that_is_polled_after_its_end_does_not_panic() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let (mut leader, mut joined) = (first(&flights, &backend), join(&flights));
    backend.answer(Landed::Shared(7));
    for one in [&mut leader, &mut joined] {
        assert_eq!(poll(one), Poll::Ready(Arrival::Shared(7)));
        assert_eq!(poll(one), Poll::Ready(Arrival::Unshared));
    }
}

#[test]
fn a_missed_wake_up_is_made_up_for() {
    let (flights, backend) = (Flights::new(), Backend::default());
    let (mut leader, joined) = (first(&flights, &backend), join(&flights));
    let joined = Arc::new(StdMutex::new(joined));
    let woken = Arc::new(Woken::default());
    // The other participant is polled while the first one polls, as on another thread.
    let (other, waker) = (joined.clone(), woken.clone());
    *lock(&leader.flight.work) = Some(Box::pin(poll_fn(move |_| {
        assert!(poll_with(&mut other.lock().unwrap(), &waker).is_pending());
        Poll::Pending
    })));
    assert!(poll(&mut leader).is_pending());
    assert_eq!(woken.take(), 1, "it found the call locked and has to look again");
}

proptest! {
    /// Callers come, poll and leave at random while calls end. Each gets the result of the call it
    /// joined, none hangs, and nothing is left.
    #[test]
    fn every_caller_that_stays_gets_the_result_of_its_call(steps in prop::collection::vec((0u8..5, 0usize..8), 1..200)) {
        let (flights, mut backend) = (Flights::new(), Backend::default());
        let mut callers: Vec<(Of, Arc<Woken>, u32)> = Vec::new();
        let mut generation = 0;
        for (step, index) in steps {
            match step {
                0 | 1 => {
                    let caller = match enter(&flights) {
                        Entered::First(mut first) => {
                            generation += 1;
                            backend = Backend::default();
                            first.start(backend.call());
                            first
                        }
                        Entered::Joined(joined) => joined,
                        other => panic!("{other:?}"),
                    };
                    callers.push((caller, Arc::default(), generation));
                }
                2 if index < callers.len() => {
                    let (caller, woken, joined) = &mut callers[index];
                    if let Poll::Ready(arrival) = poll_with(caller, woken) {
                        prop_assert_eq!(arrival, Arrival::Shared(*joined));
                        drop(callers.remove(index));
                    }
                }
                3 if index < callers.len() => drop(callers.remove(index)),
                4 => backend.answer(Landed::Shared(generation)),
                _ => {}
            }
        }
        backend.answer(Landed::Shared(generation));
        for (mut caller, woken, joined) in callers {
            prop_assert_eq!(poll_with(&mut caller, &woken), Poll::Ready(Arrival::Shared(joined)));
        }
        prop_assert!(flights.is_empty());
    }
}
