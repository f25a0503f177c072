//! What hedging does for the latency, and to the backend: simulations on virtual time.

use super::backend::budget;
use buttress::{
    HedgeLayer, PlainExt, RetryBudget, TimeoutLayer,
    policy::{Clock, TokioClock},
};
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tower::{Service, ServiceBuilder, ServiceExt};

/// A backend that is slow for some attempts.
#[derive(Clone)]
struct Latency {
    attempts: Arc<AtomicU64>,
    rng: Arc<Mutex<fastrand::Rng>>,
    /// In millionths.
    slow_share: Arc<AtomicU64>,
}

const FAST: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(1);

impl Latency {
    fn new(slow_share: f64) -> Self {
        let slow_share = Arc::new(AtomicU64::new((slow_share * 1e6) as u64));
        Self { attempts: Arc::default(), rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(7))), slow_share }
    }

    fn service(&self) -> impl Service<u64, Response = u64, Error = Infallible, Future: Send> + Clone + Send + use<> {
        let this = self.clone();
        tower::service_fn(move |call: u64| {
            this.attempts.fetch_add(1, Relaxed);
            let draw = this.rng.lock().unwrap().u64(..1_000_000);
            let time = if draw < this.slow_share.load(Relaxed) { SLOW } else { FAST };
            async move {
                tokio::time::sleep(time).await;
                Ok(call)
            }
        })
    }
}

/// Makes a call every millisecond, and returns their sorted latencies.
async fn traffic<S>(service: S, calls: u64) -> Vec<Duration>
where
    S: Service<u64, Future: Send> + Clone + Send + 'static,
{
    let mut running = JoinSet::new();
    for call in 0..calls {
        let call = service.clone().oneshot(call);
        running.spawn(async {
            let started = TokioClock.now();
            let _ = call.await;
            TokioClock.now() - started
        });
        tokio::time::sleep(EVERY).await;
    }
    let mut latencies = running.join_all().await;
    latencies.sort_unstable();
    latencies
}

fn percentile(latencies: &[Duration], share: f64) -> Duration {
    latencies[(latencies.len() as f64 * share) as usize]
}

#[tokio::test(start_paused = true)]
async fn one_slow_call_in_a_hundred_costs_two_percent_more_calls_and_a_tenth_of_the_tail() {
    const CALLS: u64 = 40_000;
    let bare = Latency::new(0.01);
    let without = traffic(bare.service(), CALLS).await;
    let hedged = Latency::new(0.01);
    let layer = HedgeLayer::percentile(98.5).unwrap();
    let service = ServiceBuilder::new().layer(layer.plain()).service(hedged.service());
    // Until the percentile is known, no call is hedged.
    traffic(service.clone(), 4_000).await;
    let before = hedged.attempts.load(Relaxed);
    let with = traffic(service, CALLS).await;
    let extra = hedged.attempts.load(Relaxed) - before - CALLS;
    let (worse, better) = (percentile(&without, 0.999), percentile(&with, 0.999));
    println!("p99.9 {worse:?} without, {better:?} with; {extra} extra of {CALLS}");
    assert!(better * 10 <= worse, "{better:?} {worse:?}");
    assert!(extra * 100 <= CALLS * 2, "{extra}");
}

/// All calls become slow at once. The percentile follows after a few seconds; until then the budget
/// bounds the extra calls.
#[tokio::test(start_paused = true)]
async fn when_all_calls_are_slow_the_extra_calls_keep_to_the_budget_and_end() {
    const WARM: u64 = 10_000;
    const CALLS: u64 = 20_000;
    let backend = Latency::new(0.0);
    let budget = RetryBudget::builder().percent(2.0).min_per_second(0.0).burst(20).build().unwrap();
    let layer = HedgeLayer::percentile(95.0).unwrap().budget(budget);
    let stats = layer.stats();
    let service = ServiceBuilder::new().layer(layer.plain()).service(backend.service());
    traffic(service.clone(), WARM).await;
    let hedges = stats.hedges();
    backend.slow_share.store(1_000_000, Relaxed);
    traffic(service.clone(), CALLS).await;
    let extra = stats.hedges() - hedges;
    println!("{extra} extra of {CALLS}; {:?}", stats.delay());
    assert!(extra <= CALLS * 2 / 100 + 20, "{extra}: the budget is 2 % and 20");
    assert!(stats.delay().unwrap() >= SLOW);
    let after = stats.hedges();
    traffic(service, CALLS).await;
    assert_eq!(stats.hedges(), after, "the percentile has followed");
}

/// A timeout around the layer drops all slow calls before they have an answer.
#[tokio::test(start_paused = true)]
async fn the_percentile_follows_also_if_a_timeout_around_drops_all_calls() {
    let backend = Latency::new(0.0);
    let layer = HedgeLayer::percentile(95.0).unwrap().budget(budget(1000));
    let stats = layer.stats();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(SLOW / 2).plain())
        .layer(layer.plain())
        .service(backend.service());
    traffic(service.clone(), 5_000).await;
    backend.slow_share.store(1_000_000, Relaxed);
    traffic(service.clone(), 5_000).await;
    assert!(stats.delay().unwrap() >= SLOW / 2, "{:?}", stats.delay());
    let hedges = stats.hedges();
    traffic(service, 5_000).await;
    assert!(stats.hedges() - hedges < 10, "{}", stats.hedges() - hedges);
}
