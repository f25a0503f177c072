use super::{Group, Health, Indicator, Rules};
use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};

/// Settings of a check. Runs of one check do not overlap.
///
/// ```
/// use buttress::health::CheckConfig;
/// use std::time::Duration;
///
/// let config = CheckConfig { timeout: Duration::from_millis(200), ..CheckConfig::every(Duration::from_secs(5)) };
/// assert_eq!(config.fall, 3);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckConfig {
    /// Time from the end of one run to the start of the next, ±10 % so that replicas do not check
    /// at the same time. At least 1 ms. Default 10 s.
    pub interval: Duration,
    /// Maximum time of a run. A run that takes longer has failed. Default 1 s.
    pub timeout: Duration,
    /// Number of successes in a row after which the status is up. Default 1.
    pub rise: u32,
    /// Number of failures in a row after which the status is down. Default 3.
    pub fall: u32,
    /// Age of the last result after which the status is unknown. Default `None`: three times the
    /// sum of `interval` and `timeout`.
    pub max_age: Option<Duration>,
}

impl CheckConfig {
    /// Returns the defaults with the given interval.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, timeout: Duration::from_secs(1), rise: 1, fall: 3, max_age: None }
    }

    fn rules(&self) -> Rules {
        let max_age = self.max_age.or(Rules::every(self.interval.saturating_add(self.timeout)).max_age);
        Rules { rise: self.rise, fall: self.fall, max_age }
    }

    /// Returns the next interval with its jitter.
    fn pause(&self) -> Duration {
        let jittered = Duration::try_from_secs_f64(self.interval.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()));
        // An interval of zero would keep a core busy.
        jittered.unwrap_or(self.interval).max(Duration::from_millis(1))
    }
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self::every(Duration::from_secs(10))
    }
}

/// A running check. Dropping it stops the check and removes its indicator from the health.
///
/// ```
/// use buttress::health::{CheckConfig, Group, Health, HealthExt};
/// use std::io;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let health = Health::new();
/// let check = health.check("cache", Group::Dependencies, CheckConfig::default(), || async { Ok::<(), io::Error>(()) });
/// assert_eq!(health.report().indicators.len(), 1);
/// drop(check);
/// assert!(health.report().indicators.is_empty());
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it stops the check"]
pub struct Check {
    task: AbortHandle,
    /// Held here and not by the task: an aborted task is dropped later, and the indicator must be
    /// removed at once.
    _indicator: Arc<Indicator>,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs checks in the background.
pub trait HealthExt {
    /// Spawns a task that runs `check` at intervals. Probes read the last result and run nothing.
    ///
    /// A panic in `check`, in its future or in the `Display` of its error is a failure. The check
    /// runs again after the interval.
    ///
    /// ```
    /// use buttress::health::{CheckConfig, Group, Health, HealthExt, Probe, Status};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let health = Health::new();
    /// health.started();
    /// let _check = health.check("database", Group::Readiness, CheckConfig::default(), || async { Err("no connection") });
    /// tokio::time::sleep(Duration::from_secs(60)).await;
    /// assert_eq!(health.status(Probe::Readiness), Status::Down);
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside a tokio runtime.
    fn check<F, Fut, E>(&self, name: impl Into<String>, group: Group, config: CheckConfig, check: F) -> Check
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: std::fmt::Display;
}

impl HealthExt for Health {
    fn check<F, Fut, E>(&self, name: impl Into<String>, group: Group, config: CheckConfig, check: F) -> Check
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: std::fmt::Display,
    {
        let indicator = Arc::new(self.indicator(name, group, config.rules()));
        let reporter = Arc::downgrade(&indicator);
        let task = tokio::spawn(async move {
            loop {
                let result = match catch_unwind(AssertUnwindSafe(&check)) {
                    Ok(running) => contained(run(running, config.timeout)).await,
                    Err(_) => None,
                };
                let Some(indicator) = reporter.upgrade() else { return };
                match result {
                    Some(Ok(())) => indicator.up(),
                    Some(Err(why)) => indicator.down(why),
                    None => indicator.down("the check panicked"),
                }
                drop(indicator);
                sleep(config.pause()).await;
            }
        });
        Check { task: task.abort_handle(), _indicator: indicator }
    }
}

/// Runs a check once. The future contains everything that may panic: polling `running`, dropping
/// it, and formatting its error.
async fn run<E: std::fmt::Display>(
    running: impl Future<Output = Result<(), E>>,
    limit: Duration,
) -> Result<(), String> {
    match timeout(limit, running).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Returns `None` if `running` panics. Without this a panic would end the task, and the last result
/// would stay until its maximum age.
async fn contained<F: Future>(running: F) -> Option<F::Output> {
    let mut running = pin!(running);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_result_is_valid_for_three_times_the_interval_and_the_timeout_unless_an_age_is_set() {
        let config = CheckConfig { rise: 4, fall: 5, ..CheckConfig::every(10 * SECOND) };
        assert_eq!(config.rules(), Rules { rise: 4, fall: 5, max_age: Some(33 * SECOND) });
        assert_eq!(CheckConfig::default(), CheckConfig::every(10 * SECOND));
        let config = CheckConfig { max_age: Some(SECOND), timeout: 2 * SECOND, ..CheckConfig::default() };
        assert_eq!(config.rules(), Rules { rise: 1, fall: 3, max_age: Some(SECOND) });
    }

    #[test]
    fn pauses_differ_by_a_tenth_in_both_directions() {
        let config = CheckConfig::every(10 * SECOND);
        let pauses: Vec<_> = (0..1000).map(|_| config.pause()).collect();
        assert!(pauses.iter().all(|pause| (9 * SECOND..=11 * SECOND).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause < 9 * SECOND + SECOND / 2));
        assert!(pauses.iter().any(|pause| *pause > 10 * SECOND + SECOND / 2));
        assert_eq!(CheckConfig::every(Duration::ZERO).pause(), Duration::from_millis(1));
        assert!(CheckConfig::every(Duration::MAX).pause() > 3600 * 24 * 365 * SECOND);
    }
}
