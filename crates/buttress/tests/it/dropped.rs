//! Calls that are dropped at any poll, through every admission layer.

use crate::{MS, SECOND};
use buttress::{
    AdaptiveLimit, AdaptiveRate, Bulkhead, BulkheadLayer, CircuitBreaker, Error, LoadShed, LoadShedLayer, PlainExt,
    RateLimit, Throttle,
    bulkhead::Discipline,
    context,
    gate::GateLayer,
    keyed::Keyed,
    policy::{AllOf, CallContext, Clock, Criticality, Idle, TokioClock},
};
use proptest::prelude::*;
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, ServiceExt};

/// A service that is pending for some polls before it is ready, and before it answers.
#[derive(Clone, Debug)]
struct Slow {
    ready_in: u8,
    until_ready: u8,
}

/// A request that says after how many polls it is answered, and whether by an error.
#[derive(Clone, Copy, Debug)]
struct Request {
    answer_in: u8,
    fails: bool,
}

impl Service<Request> for Slow {
    type Response = ();
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<(), std::io::Error>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        if self.until_ready == 0 {
            return Poll::Ready(Ok(()));
        }
        self.until_ready -= 1;
        Poll::Pending
    }

    fn call(&mut self, Request { mut answer_in, fails }: Request) -> Self::Future {
        self.until_ready = self.ready_in;
        Box::pin(poll_fn(move |_| {
            if answer_in == 0 {
                return Poll::Ready(if fails { Err(std::io::ErrorKind::ConnectionReset.into()) } else { Ok(()) });
            }
            answer_in -= 1;
            Poll::Pending
        }))
    }
}

type Call = Pin<Box<dyn Future<Output = ()>>>;
type Make = Box<dyn Fn(Slow, Request) -> Call>;

/// A layer, as a function that makes calls, and one that tells whether its policies hold nothing.
struct Subject {
    name: &'static str,
    make: Make,
    is_idle: Box<dyn Fn() -> bool>,
}

fn subject<L>(name: &'static str, layer: L, is_idle: impl Fn() -> bool + 'static) -> Subject
where
    L: Layer<Slow> + 'static,
    L::Service: Service<Request, Error = Error> + Clone + 'static,
{
    let make = move |slow, request| -> Call {
        let service = layer.layer(slow);
        Box::pin(async move { _ = service.oneshot(request).await })
    };
    Subject { name, make: Box::new(make), is_idle: Box::new(is_idle) }
}

fn subjects() -> Vec<Subject> {
    let bulkhead = || Bulkhead::new(2);
    let rate = || RateLimit::per_second(50).burst(3);
    let (first, second, third, fourth) = (bulkhead(), bulkhead(), bulkhead(), bulkhead());
    let (limit, waiting, slower) = (rate(), rate(), RateLimit::per_second(20).burst(1));
    let adaptive = AdaptiveLimit::builder("x").limits(1..=3).initial(2).build().unwrap();
    let throttle = Throttle::new("x");
    let breaker = CircuitBreaker::builder("x").probes(1).build().unwrap();
    let queued = BulkheadLayer::from(second.clone()).queue(2, 30 * MS).discipline(Discipline::Adaptive);
    let queued = queued.reserve(Criticality::Sheddable, 0.5).unwrap();
    let all = AllOf::new(limit.clone(), fourth.clone()).and(breaker.clone()).and(throttle.clone());
    let waits = AllOf::new(waiting.clone(), slower.clone()).and(AdaptiveRate::new());
    let keyed = Keyed::new(|request: &Request| request.answer_in, move |_: &u8| Bulkhead::new(1));
    let keys = keyed.clone();
    let nothing_of = |bulkhead: Bulkhead| move || bulkhead.is_idle();
    let (idle_adaptive, shed) = (adaptive.clone(), LoadShed::builder("x").monitor(third.clone()).build().unwrap());
    vec![
        subject("bulkhead", BulkheadLayer::from(first.clone()).plain(), nothing_of(first)),
        subject("queue", queued.plain(), nothing_of(second)),
        subject("backpressure", BulkheadLayer::from(third.clone()).backpressure().plain(), nothing_of(third)),
        subject("adaptive limit", GateLayer::with_policy(adaptive).plain(), move || idle_adaptive.is_idle()),
        subject("load shed", LoadShedLayer::from(shed).plain(), || true),
        subject("wait", GateLayer::with_policy(waits).wait(100 * MS).plain(), move || {
            waiting.is_idle() && slower.is_idle()
        }),
        subject("all of", GateLayer::with_policy(all).plain(), move || {
            fourth.is_idle() && limit.is_idle() && breaker.in_flight() == 0 && throttle.is_idle()
        }),
        subject("keyed", GateLayer::with_policy(keyed).plain(), move || {
            keys.policies().iter().all(|(_, bulkhead)| bulkhead.is_idle())
        }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Call { ready_in: u8, answer_in: u8, fails: bool, priority: usize, deadline: Option<u64> },
    Poll(usize),
    Drop(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let call = (0..3_u8, 0..4_u8, any::<bool>(), 0..4_usize, prop::option::of(0..50_u64));
    prop_oneof![
        4 => call.prop_map(|(ready_in, answer_in, fails, priority, deadline)| Step::Call { ready_in, answer_in, fails, priority, deadline }),
        8 => (0..12_usize).prop_map(Step::Poll),
        3 => (0..12_usize).prop_map(Step::Drop),
        2 => (0..40_u64).prop_map(Step::Pass),
    ]
}

async fn run(subject: &Subject, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut calls: Vec<Call> = Vec::new();
    let poll = |call: &mut Call| call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    for step in steps {
        match *step {
            Step::Call { ready_in, answer_in, fails, priority, deadline } => {
                let mut call = CallContext::default().with_priority(Criticality::ALL[priority].into());
                if let Some(left) = deadline {
                    call = call.with_deadline(TokioClock.now() + Duration::from_millis(left));
                }
                let slow = Slow { ready_in, until_ready: ready_in };
                calls.push(Box::pin(context::with(call, (subject.make)(slow, Request { answer_in, fails }))));
            }
            Step::Poll(call) if call < calls.len() => {
                if poll(&mut calls[call]) {
                    drop(calls.swap_remove(call));
                }
            }
            Step::Drop(call) if call < calls.len() => drop(calls.swap_remove(call)),
            Step::Pass(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
            Step::Poll(_) | Step::Drop(_) => {}
        }
    }
    drop(calls);
    prop_assert_eq!(context::current(), CallContext::default(), "no context is left on the thread");
    tokio::time::advance(300 * SECOND).await;
    prop_assert!((subject.is_idle)(), "{}", subject.name);
    // And it admits a call as a new one would.
    let slow = Slow { ready_in: 0, until_ready: 0 };
    let mut call = (subject.make)(slow, Request { answer_in: 0, fails: false });
    prop_assert!(poll(&mut call), "{}", subject.name);
    Ok(())
}

proptest! {
    #[test]
    fn calls_that_are_dropped_at_any_poll_leave_nothing_behind(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            for subject in subjects() {
                run(&subject, &steps).await?;
            }
            Ok::<_, TestCaseError>(())
        })?;
    }
}
