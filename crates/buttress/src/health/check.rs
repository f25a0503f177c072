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

/// How a check runs: off the request path, one at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckConfig {
    /// From the end of one check to the start of the next, ±10 % so that replicas do not check
    /// together. At least 1 ms. Default 10 seconds.
    pub interval: Duration,
    /// A check that takes longer has failed. Default 1 second.
    pub timeout: Duration,
    /// Good results in a row after which the status is good. Default 1.
    pub rise: u32,
    /// Bad results in a row after which the status is bad. Default 3.
    pub fall: u32,
    /// After this time without a result the status is unknown. Default `None`: three times interval
    /// and timeout.
    pub max_age: Option<Duration>,
}

impl CheckConfig {
    /// The defaults, for another interval.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, timeout: Duration::from_secs(1), rise: 1, fall: 3, max_age: None }
    }

    fn rules(&self) -> Rules {
        let max_age = self.max_age.or(Rules::every(self.interval.saturating_add(self.timeout)).max_age);
        Rules { rise: self.rise, fall: self.fall, max_age }
    }

    /// The next interval, with its jitter.
    fn pause(&self) -> Duration {
        let jittered = Duration::try_from_secs_f64(self.interval.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()));
        // Without a lower bound, an interval of zero keeps a core busy.
        jittered.unwrap_or(self.interval).max(Duration::from_millis(1))
    }
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self::every(Duration::from_secs(10))
    }
}

/// Owns a running check. Dropping it stops the check and takes its indicator out of the answer.
#[derive(Debug)]
#[must_use = "dropping it stops the check"]
pub struct Check {
    task: AbortHandle,
    /// Not the task's: an aborted task is dropped some time later, and the answer must not wait for
    /// that.
    _indicator: Arc<Indicator>,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks that run on tasks of their own.
pub trait HealthExt {
    /// Runs `check` again and again on a task of its own; probes only read the last result.
    ///
    /// A check that panics, wherever it does, has failed, and runs again after the interval.
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

/// One run of a check. All of it that may panic is in here: polling it, dropping it, and showing
/// its error.
async fn run<E: std::fmt::Display>(
    running: impl Future<Output = Result<(), E>>,
    limit: Duration,
) -> Result<(), String> {
    match timeout(limit, running).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// `None` when `running` panics. If a panic ended the task, the last result would stay.
async fn contained<F: Future>(running: F) -> Option<F::Output> {
    let mut running = pin!(running);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}
