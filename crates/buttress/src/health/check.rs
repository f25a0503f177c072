use super::{Group, Health, Indicator, Rules, Status};
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
#[derive(Clone, Copy, Debug)]
pub struct CheckConfig {
    /// From the end of one check to the start of the next, ±10 % so that replicas do not check together. Default 10 seconds.
    pub interval: Duration,
    /// A check that takes longer has failed. Default 1 second.
    pub timeout: Duration,
    /// When results change the status. Default: well after 1 good one, unwell after 3 bad ones, unknown after three intervals of silence.
    pub rules: Rules,
}

impl CheckConfig {
    /// The defaults, for another interval.
    pub const fn every(interval: Duration) -> Self {
        let timeout = Duration::from_secs(1);
        Self { interval, timeout, rules: Rules::every(interval.saturating_add(timeout)) }
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
    /// Not the task's: an aborted task is dropped some time later, and the answer must not wait for that.
    _indicator: Arc<Indicator>,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Health {
    /// Checks something again and again on a task of its own; requests for health only read the last result.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn check<F, Fut, E>(&self, name: impl Into<String>, group: Group, config: CheckConfig, check: F) -> Check
    where
        F: Fn() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: std::fmt::Display,
    {
        let indicator = Arc::new(self.indicator(name, group, config.rules));
        let reporter = Arc::downgrade(&indicator);
        let task = tokio::spawn(async move {
            loop {
                let running = catch_unwind(AssertUnwindSafe(&check)).ok();
                let failure = match timeout(config.timeout, contained(running)).await {
                    Ok(Some(Ok(()))) => None,
                    Ok(Some(Err(error))) => Some(error.to_string()),
                    Ok(None) => Some("the check panicked".to_owned()),
                    Err(_) => Some(format!("no answer within {:?}", config.timeout)),
                };
                match (reporter.upgrade(), failure) {
                    (None, _) => return,
                    (Some(indicator), None) => indicator.up(),
                    (Some(indicator), why) => indicator.report(Status::Down, why),
                }
                sleep(
                    Duration::try_from_secs_f64(config.interval.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()))
                        .unwrap_or(config.interval),
                )
                .await;
            }
        });
        Check { task: task.abort_handle(), _indicator: indicator }
    }
}

/// `None` when the check panics. One that breaks has failed; if it ended the task, nobody would look any more.
async fn contained<F: Future>(running: Option<F>) -> Option<F::Output> {
    let mut running = pin!(running?);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}
