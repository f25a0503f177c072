//! Tests of the load shed as a layer.

use crate::{MS, SECOND, pass};
use buttress::{
    BoxError, Bulkhead, BulkheadLayer, LoadShed, LoadShedLayer, PlainExt, context,
    load_shed::{OVERLOADED, TOO_LATE, monitor_fn},
    policy::{CallContext, Clock, Criticality, TokioClock},
};
use std::{
    convert::Infallible,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::task::{JoinSet, coop};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// Sends calls until nearly all of them are rejected.
async fn overload(shed: &LoadShed) {
    let service = LoadShedLayer::from(shed.clone()).plain().layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
    for _interval in 0..100 {
        pass(100 * MS).await;
        for _call in 0..20 {
            let _rejected_or_not = service.clone().oneshot(()).await;
        }
    }
    assert!(shed.share() > 0.85);
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_service_rejects_and_says_when_to_come_back() {
    let shed = LoadShed::builder("orders").monitor(monitor_fn("pool", || 1.0)).seed(7).build().unwrap();
    overload(&shed).await;
    let service = LoadShedLayer::from(shed).plain().layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
    let call = context::with(CallContext::default().with_priority(Criticality::Sheddable.into()), service.oneshot(()));
    let error = call.await.unwrap_err();
    let rejection = error.rejection().unwrap();
    assert_eq!(rejection.reason(), &OVERLOADED);
    assert!((SECOND..=3 * SECOND).contains(&rejection.retry_after().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn probes_and_important_calls_are_admitted_while_others_are_not() {
    let shed = LoadShed::builder("orders").monitor(monitor_fn("pool", || 1.0)).max_share(0.9).seed(7).build().unwrap();
    overload(&shed).await;
    let service = LoadShedLayer::from(shed.clone())
        .exempt(|path: &&str| *path == "/livez")
        .plain()
        .layer(service_fn(async |_: &'static str| Ok::<_, Infallible>(())));
    for _call in 0..100 {
        service.clone().oneshot("/livez").await.unwrap();
    }
    let critical = CallContext::default().with_priority(Criticality::CriticalPlus.into());
    for _call in 0..20 {
        context::with(critical, service.clone().oneshot("/orders")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_is_over_does_not_reach_the_handler() {
    let service =
        LoadShedLayer::new("orders").plain().layer(service_fn(async |_: ()| Err::<(), BoxError>("it did".into())));
    let late = CallContext::default().with_deadline(TokioClock.now());
    let error = context::with(late, service.oneshot(())).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &TOO_LATE);
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_inside_makes_it_reject_unimportant_calls_first() {
    let bulkhead = Bulkhead::new(10);
    let shed = LoadShed::builder("orders").monitor_at(0.9, bulkhead.clone()).seed(7).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(LoadShedLayer::from(shed.clone()).plain())
        .layer(BulkheadLayer::from(bulkhead.clone()).plain())
        .service_fn(async |_: ()| {
            tokio::time::sleep(SECOND).await;
            Ok::<_, Infallible>(())
        });
    for n in 0..600 {
        let class = if n % 3 == 0 { Criticality::Critical } else { Criticality::Sheddable };
        let call = service.clone().oneshot(());
        tokio::spawn(context::with(CallContext::default().with_priority(class.into()), call));
        tokio::time::sleep(25 * MS).await;
    }
    let (sheddable, critical) = (shed.shed(Criticality::Sheddable), shed.shed(Criticality::Critical));
    assert!(sheddable > 5 * critical.max(1) && critical < 60, "{sheddable} {critical}");
    assert!(bulkhead.rejected() < 200, "without it 400 are: {}", bulkhead.rejected());
}

#[derive(Clone, Copy, Eq, Hash, PartialEq)]
enum Tenant {
    Greedy,
    Small,
    Probe,
}

/// Sends calls of a tenant one after another until 8 s, with a pause after each rejection, and
/// returns how many were answered and rejected after the first 3 s.
async fn keeps_calling<S>(service: S, tenant: Tenant, pause: Duration) -> (u32, u32)
where
    S: Service<Tenant> + Clone,
{
    let start = TokioClock.now();
    let (mut answered, mut rejected) = (0, 0);
    while TokioClock.now() < start + 8 * SECOND {
        let result = service.clone().oneshot(tenant).await;
        let count = if result.is_ok() { &mut answered } else { &mut rejected };
        *count += u32::from(TokioClock.now() >= start + 3 * SECOND);
        tokio::time::sleep(if result.is_ok() { pause } else { 20 * MS }).await;
    }
    (answered, rejected)
}

#[tokio::test(start_paused = true)]
async fn with_a_queue_inside_a_tenant_that_floods_crowds_out_neither_others_nor_probes() {
    let bulkhead = Bulkhead::new(8);
    let shed = LoadShed::builder("orders").monitor_at(0.9, bulkhead.clone()).seed(7).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(
            LoadShedLayer::from(shed)
                .exempt(|tenant: &Tenant| *tenant == Tenant::Probe)
                .fair_by(|tenant: &Tenant| *tenant)
                .plain(),
        )
        .layer(BulkheadLayer::from(bulkhead).queue(16, 50 * MS).plain())
        .service_fn(async |_: Tenant| {
            tokio::time::sleep(20 * MS).await;
            Ok::<_, Infallible>(())
        });
    let mut greedy = JoinSet::new();
    for _caller in 0..30 {
        greedy.spawn(keeps_calling(service.clone(), Tenant::Greedy, Duration::ZERO));
    }
    let small = tokio::spawn(keeps_calling(service.clone(), Tenant::Small, 20 * MS));
    let probe = keeps_calling(service, Tenant::Probe, 20 * MS).await;
    let small = small.await.unwrap();
    let greedy = greedy.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(probe.1 == 0 && probe.0 > 50, "{probe:?}");
    assert!(small.1 * 20 <= small.0 && small.0 > 50, "{small:?}");
    assert!(greedy.0 > 1_000 && greedy.1 > greedy.0, "{greedy:?}");
}

/// Uses tokio's budget of the task to be ready, as every resource of tokio does.
#[derive(Clone)]
struct Cooperative;

impl Service<()> for Cooperative {
    type Response = ();
    type Error = BoxError;
    type Future = std::future::Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(coop::poll_proceed(cx)).made_progress();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

/// Uses up the budget of the task, and polls the readiness of a service.
async fn ready_without_budget<S: Service<()>>(service: &mut S) -> bool {
    let mut is_first = true;
    poll_fn(|cx| {
        if !std::mem::take(&mut is_first) {
            return Poll::Ready(true);
        }
        while let Poll::Ready(progress) = coop::poll_proceed(cx) {
            progress.made_progress();
        }
        match service.poll_ready(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending => Poll::Ready(false),
        }
    })
    .await
}

#[tokio::test]
async fn a_service_that_is_pending_for_tokios_budget_is_not_overloaded() {
    let shed = LoadShed::builder("orders").monitor(monitor_fn("idle", || 0.0)).build().unwrap();
    let mut service = LoadShedLayer::from(shed.clone()).plain().layer(Cooperative);
    assert!(!ready_without_budget(&mut service).await, "the inner service is pending, so the layer is");
    service.ready().await.unwrap().call(()).await.unwrap();
    assert_eq!((shed.share(), shed.shed(Criticality::Critical)), (0.0, 0));

    let mut towers = tower::load_shed::LoadShedLayer::new().layer(Cooperative);
    assert!(ready_without_budget(&mut towers).await);
    assert!(towers.call(()).await.unwrap_err().is::<tower::load_shed::error::Overloaded>(), "tower's rejects then");
}
