use super::{Group, Health, Rules, Status};
use std::{future::Future, time::Duration};
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
pub struct Check(AbortHandle);

impl Drop for Check {
    fn drop(&mut self) {
        self.0.abort();
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
        let indicator = self.indicator(name, group, config.rules);
        let task = tokio::spawn(async move {
            loop {
                match timeout(config.timeout, check()).await {
                    Ok(Ok(())) => indicator.up(),
                    Ok(Err(error)) => indicator.report(Status::Down, Some(error.to_string())),
                    Err(_) => indicator.report(Status::Down, Some(format!("no answer within {:?}", config.timeout))),
                }
                sleep(
                    Duration::try_from_secs_f64(config.interval.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()))
                        .unwrap_or(config.interval),
                )
                .await;
            }
        });
        Check(task.abort_handle())
    }
}
