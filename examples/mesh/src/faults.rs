//! Fault injection, switched at run time. Only with the feature `faults`, which the demo and the
//! tests need; a program for production is built without it, and then no switch exists and no
//! request is touched.
//!
//! [`inject`] is the innermost middleware of a server's stack, so all layers outside it, on the
//! server and in its callers, see the same as with a real fault. Crashes are in [`crate::process`].
//!
//! Errors and hangs happen *before* or *after* the handler, with equal probability. After the
//! handler is the harder case: the effect exists and the response does not, so a caller must not
//! conclude that nothing happened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buttress_durable::bus::HandlerError;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::problem::{Json, Problem};

/// Whether this program can inject faults.
pub const ENABLED: bool = cfg!(feature = "faults");

/// Which faults to inject. The default injects none.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Share of requests, 0 to 1, that are answered 503, or UNAVAILABLE over gRPC.
    pub error_rate: f64,
    /// Share of requests, 0 to 1, whose response body is reset.
    pub reset_rate: f64,
    /// Mean delay before the handler runs, in milliseconds. Each request draws between 0.5 and 1.5
    /// times the mean.
    pub latency_ms: u64,
    /// Share of requests, 0 to 1, that are never answered. They hang until the plan's `hang_rate`
    /// is 0.
    pub hang_rate: f64,
    /// Whether errors and hangs happen before or after the handler.
    pub strike: Strike,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strike {
    /// Each request draws with equal probability.
    #[default]
    Either,
    /// Before the handler: the request has no effect.
    Before,
    /// After the handler: the request has its effect and the response is lost.
    After,
}

impl Plan {
    /// Returns the first rule that this plan violates.
    pub fn check(&self) -> Result<(), &'static str> {
        for rate in [self.error_rate, self.reset_rate, self.hang_rate] {
            if !(0.0..=1.0).contains(&rate) {
                return Err("rates must lie between 0 and 1");
            }
        }
        if self.latency_ms > 60_000 { Err("latency_ms must be at most 60000") } else { Ok(()) }
    }
}

/// The current plan of one service. Clones share it.
#[derive(Clone, Debug)]
pub struct Faults {
    plan: Arc<watch::Sender<Plan>>,
    /// Seeded, so that a run can be repeated. One generator per service; its lock is held for five
    /// draws.
    rng: Arc<Mutex<fastrand::Rng>>,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self {
            plan: Arc::new(watch::Sender::new(Plan::default())),
            rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        }
    }

    pub fn set(&self, plan: Plan) {
        self.plan.send_replace(plan);
    }

    pub fn clear(&self) {
        self.set(Plan::default());
    }

    pub fn plan(&self) -> Plan {
        self.plan.borrow().clone()
    }

    fn draw(&self, plan: &Plan) -> Draw {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        // Always draws all five values, so that changing one rate does not shift the others.
        Draw {
            error: rng.f64() < plan.error_rate,
            reset: rng.f64() < plan.reset_rate,
            hang: rng.f64() < plan.hang_rate,
            late: match (plan.strike, rng.bool()) {
                (Strike::Either, coin) => coin,
                (strike, _) => strike == Strike::After,
            },
            latency: Duration::from_millis(plan.latency_ms).mul_f64(0.5 + rng.f64()),
        }
    }

    /// Handles an event under the faults of the plan: late, not at all, or with an error before or
    /// after `handle`. There is no response that could be reset.
    pub(crate) async fn around<F>(&self, handle: impl FnOnce() -> F) -> Result<(), HandlerError>
    where
        F: Future<Output = Result<(), HandlerError>>,
    {
        let plan = self.plan();
        if !ENABLED || plan == Plan::default() {
            return handle().await;
        }
        let draw = self.draw(&plan);
        if !draw.latency.is_zero() {
            tokio::time::sleep(draw.latency).await;
        }
        if draw.hang && !draw.late {
            self.until_no_hang().await;
        }
        let injected = || Err(HandlerError::retry("injected fault"));
        if draw.error && !draw.late {
            return injected();
        }
        handle().await?;
        if draw.hang && draw.late {
            self.until_no_hang().await;
        }
        if draw.error { injected() } else { Ok(()) }
    }

    async fn until_no_hang(&self) {
        // `self` holds the sender, so this returns only when the plan changes.
        let _ = self.plan.subscribe().wait_for(|plan| plan.hang_rate == 0.0).await;
    }
}

/// `GET` and `PUT /admin/faults`, on the operators' listener. Empty without the feature `faults`.
pub fn routes(service: &'static str, faults: &Faults) -> Router {
    if !ENABLED {
        return Router::new();
    }
    let change = async move |State(faults): State<Faults>, Json(plan): Json<Plan>| {
        plan.check().map_err(|rule| Problem::from_status(StatusCode::UNPROCESSABLE_ENTITY, rule))?;
        tracing::warn!(service, ?plan, "faults changed");
        faults.set(plan.clone());
        Ok::<_, Problem>(Json(plan))
    };
    let show = async |State(faults): State<Faults>| Json(faults.plan());
    Router::new().route("/admin/faults", get(show).put(change)).with_state(faults.clone())
}

/// The faults drawn for one request.
struct Draw {
    error: bool,
    reset: bool,
    hang: bool,
    /// After the handler instead of before it.
    late: bool,
    latency: Duration,
}

/// Middleware that injects the faults of the plan.
pub async fn inject(State(faults): State<Faults>, request: Request, next: Next) -> Response {
    let plan = faults.plan();
    if !ENABLED || plan == Plan::default() {
        return next.run(request).await;
    }
    let draw = faults.draw(&plan);
    let grpc = is_grpc(&request);
    if !draw.latency.is_zero() {
        tokio::time::sleep(draw.latency).await;
    }
    if draw.hang && !draw.late {
        faults.until_no_hang().await;
    }
    if draw.error && !draw.late {
        return unavailable(grpc);
    }
    let response = next.run(request).await;
    if draw.hang && draw.late {
        faults.until_no_hang().await;
    }
    if draw.error {
        unavailable(grpc)
    } else if draw.reset {
        broken_off(response)
    } else {
        response
    }
}

fn is_grpc(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn unavailable(grpc: bool) -> Response {
    if grpc {
        tonic::Status::unavailable("injected fault").into_http()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "injected fault").into_response()
    }
}

/// Sends the headers and resets the stream instead of the body.
fn broken_off(response: Response) -> Response {
    let (parts, _) = response.into_parts();
    let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let broken = futures_util::stream::iter([Err::<bytes::Bytes, _>(reset)]);
    Response::from_parts(parts, Body::from_stream(broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(seed: u64, plan: &Plan) -> Vec<(bool, bool)> {
        let faults = Faults::new(seed);
        (0..1000).map(|_| faults.draw(plan)).map(|draw| (draw.error, draw.late)).collect()
    }

    #[test]
    fn the_same_seed_tosses_the_same_coins() {
        let plan = Plan { error_rate: 0.3, ..Plan::default() };
        assert_eq!(draws(7, &plan), draws(7, &plan));
        assert_ne!(draws(7, &plan), draws(8, &plan));
    }

    #[test]
    fn rates_are_met_on_both_sides_of_the_handler() {
        let plan = Plan { error_rate: 0.3, ..Plan::default() };
        let errors: Vec<_> = draws(7, &plan).into_iter().filter(|(error, _)| *error).collect();
        assert!((250..350).contains(&errors.len()), "{}", errors.len());
        let late = errors.iter().filter(|(_, late)| *late).count();
        assert!((100..200).contains(&late), "{late}");
    }

    #[test]
    fn a_side_can_be_chosen() {
        let plan = Plan { error_rate: 1.0, strike: Strike::After, ..Plan::default() };
        assert!(draws(7, &plan).into_iter().all(|draw| draw == (true, true)));
    }

    #[test]
    fn a_rate_is_a_share() {
        for rate in [-0.1, 1.1, f64::NAN] {
            assert!(Plan { hang_rate: rate, ..Plan::default() }.check().is_err());
        }
        assert!(Plan { hang_rate: 1.0, ..Plan::default() }.check().is_ok());
    }

    #[test]
    fn every_rate_draws_its_own_fault() {
        let drawn = |plan: &Plan| {
            let draw = Faults::new(7).draw(plan);
            (draw.error, draw.reset, draw.hang, draw.latency.is_zero())
        };
        assert_eq!(drawn(&Plan::default()), (false, false, false, true));
        assert_eq!(drawn(&Plan { error_rate: 1.0, ..Plan::default() }), (true, false, false, true));
        assert_eq!(drawn(&Plan { reset_rate: 1.0, ..Plan::default() }), (false, true, false, true));
        assert_eq!(drawn(&Plan { hang_rate: 1.0, ..Plan::default() }), (false, false, true, true));
        assert_eq!(drawn(&Plan { latency_ms: 1, ..Plan::default() }), (false, false, false, false));
    }

    #[test]
    fn one_rate_does_not_shift_the_draws_of_another() {
        let (few, many) = (
            Plan { error_rate: 0.3, ..Plan::default() },
            Plan { error_rate: 0.3, reset_rate: 0.9, latency_ms: 5, ..Plan::default() },
        );
        assert_eq!(draws(7, &few), draws(7, &many));
    }

    #[test]
    fn delays_lie_around_their_mean() {
        let faults = Faults::new(7);
        let plan = Plan { latency_ms: 100, ..Plan::default() };
        let delays: Vec<_> = (0..1000).map(|_| faults.draw(&plan).latency.as_millis()).collect();
        assert!(delays.iter().all(|delay| (50..150).contains(delay)), "{delays:?}");
        assert!((95..105).contains(&(delays.iter().sum::<u128>() / 1000)));
    }

    #[test]
    fn a_plan_has_bounds() {
        for wrong in [
            Plan { error_rate: 1.1, ..Plan::default() },
            Plan { reset_rate: -0.1, ..Plan::default() },
            Plan { latency_ms: 60_001, ..Plan::default() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        let most = Plan { error_rate: 1.0, reset_rate: 1.0, hang_rate: 1.0, latency_ms: 60_000, strike: Strike::After };
        assert_eq!(most.check(), Ok(()));
    }

    /// Sends a request through the faults. Returns the answer, if there was one within a day, and
    /// whether the handler has run.
    async fn send(faults: &Faults, grpc: bool) -> (Option<Response>, bool) {
        use std::sync::atomic::{AtomicBool, Ordering};
        use tower::ServiceExt;

        let ran = Arc::new(AtomicBool::new(false));
        let handler = {
            let ran = ran.clone();
            async move || {
                ran.store(true, Ordering::SeqCst);
                "done"
            }
        };
        let app = Router::new().route("/", get(handler));
        let app = app.layer(axum::middleware::from_fn_with_state(faults.clone(), inject));
        let mut request = Request::new(Body::empty());
        if grpc {
            request.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
        }
        let answer = tokio::time::timeout(Duration::from_secs(86_400), app.oneshot(request)).await;
        (answer.ok().map(|answer| answer.unwrap()), ran.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn errors_and_hangs_happen_on_the_chosen_side_of_the_handler() {
        let faults = Faults::new(7);
        for (strike, runs) in [(Strike::Before, false), (Strike::After, true)] {
            faults.set(Plan { error_rate: 1.0, strike, ..Plan::default() });
            let (answer, ran) = send(&faults, false).await;
            assert_eq!((answer.unwrap().status(), ran), (StatusCode::SERVICE_UNAVAILABLE, runs), "{strike:?}");
            let (answer, ran) = send(&faults, true).await;
            let answer = answer.unwrap();
            assert_eq!(
                (answer.status(), &answer.headers()["grpc-status"], ran),
                (StatusCode::OK, &"14".parse().unwrap(), runs)
            );
            faults.set(Plan { hang_rate: 1.0, strike, ..Plan::default() });
            let (answer, ran) = send(&faults, false).await;
            assert!(answer.is_none() && ran == runs, "{strike:?}");
        }
        faults.clear();
        assert_eq!(faults.plan(), Plan::default());
        let (answer, ran) = send(&faults, false).await;
        assert_eq!((answer.unwrap().status(), ran), (StatusCode::OK, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hang_ends_with_its_plan_and_a_delay_by_itself() {
        let faults = Faults::new(7);
        faults.set(Plan { hang_rate: 1.0, strike: Strike::Before, ..Plan::default() });
        let sending = tokio::spawn({
            let faults = faults.clone();
            async move { send(&faults, false).await }
        });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!sending.is_finished());
        faults.clear();
        let (answer, ran) = sending.await.unwrap();
        assert_eq!((answer.unwrap().status(), ran), (StatusCode::OK, true));
        faults.set(Plan { latency_ms: 1_000, ..Plan::default() });
        let start = crate::clock::now();
        let (answer, _) = send(&faults, false).await;
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
        assert!((500..=1_500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_breaks_the_body_after_a_good_head() {
        use http_body_util::BodyExt;

        let faults = Faults::new(7);
        faults.set(Plan { reset_rate: 1.0, ..Plan::default() });
        let (answer, ran) = send(&faults, false).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status(), ran), (StatusCode::OK, true));
        assert!(answer.into_body().collect().await.is_err());
    }
}
