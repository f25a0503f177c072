//! The traces of rate limits: ours, governor and tower-resilience.

#![expect(clippy::disallowed_methods, reason = "tower-resilience runs on the real clock, so this does")]

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Ready;
use std::num::NonZeroU32;
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tower::{Layer, Service};
use tower_resilience_ratelimiter::RateLimiterLayer;

use crate::rate_limit::{Limiter, RateConfig, RateFeature, RateTrace, Taken, ours};
use crate::report::version;
use crate::trace::Basis;

/// Maximum delay of a step on the real clock.
const LATE: Duration = Duration::from_millis(40);
const TRIES: u32 = 5;

struct Implementation {
    name: &'static str,
    /// Its crate, if that is not its name.
    package: &'static str,
    has: fn(RateFeature) -> bool,
    virtual_clock: bool,
    make: fn(RateConfig) -> Box<dyn Limiter>,
}

const IMPLEMENTATIONS: [Implementation; 4] = [
    Implementation { name: "buttress-core", package: "buttress-core", has: |_| true, virtual_clock: true, make: ours },
    Implementation {
        name: "governor",
        package: "governor",
        has: |feature| {
            use RateFeature::{Burst, BurstBelowLimit, Cost, ExactTime, RetryAfter};
            matches!(feature, Burst | BurstBelowLimit | Cost | ExactTime | RetryAfter)
        },
        virtual_clock: true,
        make: Governor::make,
    },
    Implementation {
        name: "tower-resilience-ratelimiter, fixed window",
        package: "tower-resilience-ratelimiter",
        has: |_| false,
        virtual_clock: false,
        make: |config| resilience(config, false),
    },
    Implementation {
        name: "tower-resilience-ratelimiter, token bucket",
        package: "tower-resilience-ratelimiter",
        has: |feature| feature == RateFeature::Burst,
        virtual_clock: false,
        make: |config| resilience(config, true),
    },
];

struct Governor {
    limiter: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    clock: FakeRelativeClock,
    now: Duration,
}

impl Governor {
    fn make(config: RateConfig) -> Box<dyn Limiter> {
        let burst = NonZeroU32::new(config.burst).expect("the traces' configurations are valid");
        let interval = Duration::from_millis(config.period_ms) / config.limit;
        let quota = Quota::with_period(interval).expect("the traces' configurations are valid").allow_burst(burst);
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        Box::new(Self { limiter, clock, now: Duration::ZERO })
    }
}

impl Limiter for Governor {
    fn set_time(&mut self, since_start: Duration) {
        self.clock.advance(since_start - self.now);
        self.now = since_start;
    }

    fn take(&mut self, cost: u32) -> (Taken, Option<Duration>) {
        let Some(cost) = NonZeroU32::new(cost) else { return (Taken::Admitted, None) };
        match self.limiter.check_n(cost) {
            Ok(Ok(())) => (Taken::Admitted, None),
            Ok(Err(until)) => (Taken::Rejected, Some(until.wait_time_from(self.clock.now()))),
            Err(_) => (Taken::Refused, None),
        }
    }
}

#[derive(Clone)]
struct Inner;

impl Service<()> for Inner {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

struct Resilience<S>(S);

/// It has no burst below the limit. Without a timeout it rejects at once, and needs no runtime.
fn resilience(config: RateConfig, bucket: bool) -> Box<dyn Limiter> {
    let mut builder = RateLimiterLayer::builder()
        .limit_for_period(config.limit as usize)
        .refresh_period(Duration::from_millis(config.period_ms))
        .timeout_duration(Duration::ZERO);
    if bucket {
        builder = builder.burst_size(config.burst.saturating_sub(config.limit) as usize);
    }
    let layer = builder.build().expect("the traces' configurations are valid");
    Box::new(Resilience(layer.layer(Inner)))
}

impl<S: Service<()>> Limiter for Resilience<S> {
    fn take(&mut self, _: u32) -> (Taken, Option<Duration>) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(self.0.poll_ready(&mut cx), Poll::Ready(Ok(()))), "it exerts no backpressure by default");
        let call = std::pin::pin!(self.0.call(()));
        match call.poll(&mut cx) {
            Poll::Ready(Ok(_)) => (Taken::Admitted, None),
            Poll::Ready(Err(_)) => (Taken::Rejected, None),
            Poll::Pending => unreachable!("it does not wait without a timeout"),
        }
    }
}

enum Verdict {
    Pass,
    Fail(usize, String),
    NotApplicable,
    Late,
}

fn judge(trace: &RateTrace, implementation: &Implementation) -> Verdict {
    if !trace.requires.iter().all(|feature| (implementation.has)(*feature)) {
        return Verdict::NotApplicable;
    }
    for _ in 0..TRIES {
        if let Some(verdict) = attempt(trace, implementation) {
            return verdict;
        }
    }
    Verdict::Late
}

/// `None`: a step was late.
fn attempt(trace: &RateTrace, implementation: &Implementation) -> Option<Verdict> {
    let (start, mut limiter) = (Instant::now(), (implementation.make)(trace.config));
    for (number, step) in trace.steps.iter().enumerate() {
        let at = Duration::from_millis(step.at_ms);
        if !implementation.virtual_clock {
            thread::sleep(at.saturating_sub(start.elapsed()));
        }
        let result = trace.step(number, &mut *limiter);
        if !implementation.virtual_clock && start.elapsed() > at + LATE {
            return None;
        }
        if let Err(what) = result {
            return Some(Verdict::Fail(number + 1, what));
        }
    }
    Some(Verdict::Pass)
}

/// Runs all traces and returns the results as a page.
pub(crate) fn results(directory: &Path) -> anyhow::Result<String> {
    let traces = RateTrace::read_all(directory)?;
    let verdicts: Vec<Vec<Verdict>> = thread::scope(|scope| {
        let judge = |trace| IMPLEMENTATIONS.iter().map(move |one| scope.spawn(move || judge(trace, one))).collect();
        let runs: Vec<Vec<_>> = traces.iter().map(judge).collect();
        let join = |run: thread::ScopedJoinHandle<'_, _>| run.join().expect("a runner does not panic");
        runs.into_iter().map(|runs| runs.into_iter().map(join).collect()).collect()
    });
    let mut out = format!("{} traces.\n\n| trace | basis |", traces.len());
    for one in &IMPLEMENTATIONS {
        let _ = write!(out, " {} ({}) |", one.name, version(one.package));
    }
    let _ = writeln!(out, "\n|{}", "---|".repeat(2 + IMPLEMENTATIONS.len()));
    let mut failures = String::new();
    for (trace, verdicts) in traces.iter().zip(&verdicts) {
        let documented = matches!(trace.basis, Basis::Documented(_));
        let basis = if documented { "documented" } else { "judgement" };
        let _ = write!(out, "| {} | {basis} |", trace.name);
        for (one, verdict) in IMPLEMENTATIONS.iter().zip(verdicts) {
            let _ = match verdict {
                Verdict::Pass => write!(out, " pass |"),
                Verdict::NotApplicable => write!(out, " n/a |"),
                Verdict::Late => write!(out, " too late |"),
                Verdict::Fail(step, what) => {
                    let _ = writeln!(failures, "- {}, {} ({basis}): step {step}: {what}", one.name, trace.name);
                    if documented {
                        write!(out, " **FAIL at step {step}** |")
                    } else {
                        write!(out, " *fail at step {step}* |")
                    }
                }
            };
        }
        out.push('\n');
    }
    let _ = write!(out, "\n### Failures of rate limits\n\n{failures}");
    Ok(out)
}
