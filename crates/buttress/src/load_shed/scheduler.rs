use super::{Monitor, QueueDelay, task::AbortOnDrop};
use crate::clock::TokioClock;
use buttress_core::Clock;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::sleep_until;

/// Time between two measurements. CoDel needs several in its interval of 100 ms.
const PERIOD: Duration = Duration::from_millis(10);

/// How late the runtime polls its tasks: a task wakes every 10 ms, and sees how long it waited for
/// a thread. The task ends when the last clone of the monitor is dropped, or with its runtime; the
/// level is then 0.
///
/// A runtime whose tasks wait long is overloaded, or blocked by tasks that do not yield. Either way
/// a new call would wait as well.
///
/// With a paused clock, on which nothing is late, the task makes tests of long times slow: leave
/// the monitor out there.
///
/// ```
/// use buttress::{LoadShed, load_shed::{Monitor, SchedulerDelay}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
/// let delay = SchedulerDelay::start();
/// let shed = LoadShed::builder("orders").monitor(delay.clone()).build()?;
/// assert_eq!(delay.name(), "scheduler_delay");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SchedulerDelay {
    delay: QueueDelay,
    due: Arc<Mutex<Instant>>,
    task: Arc<AbortOnDrop>,
}

impl SchedulerDelay {
    /// Starts the monitor on the current runtime, with a target of 20 ms (DAGOR) and an interval of
    /// 100 ms (RFC 8289).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start() -> Self {
        let delay = QueueDelay::new(Duration::from_millis(20), Duration::from_millis(100));
        Self::watch(delay.expect("20 ms and 100 ms are in range"))
    }

    /// Starts the monitor on the current runtime, with a target and an interval of your own.
    ///
    /// ```
    /// use buttress::load_shed::{QueueDelay, SchedulerDelay};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
    /// let slow = QueueDelay::new(Duration::from_millis(100), Duration::from_secs(1))?;
    /// let delay = SchedulerDelay::watch(slow);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn watch(delay: QueueDelay) -> Self {
        let due = Arc::new(Mutex::new(TokioClock.now() + PERIOD));
        let task = tokio::spawn(measure(delay.clone(), due.clone()));
        Self { delay, due, task: Arc::new(AbortOnDrop::new(task.abort_handle())) }
    }
}

async fn measure(delay: QueueDelay, due: Arc<Mutex<Instant>>) {
    loop {
        let next = *lock(&due);
        sleep_until(next.into()).await;
        let now = TokioClock.now();
        delay.observe(now.saturating_duration_since(next));
        *lock(&due) = now + PERIOD;
    }
}

fn lock(due: &Mutex<Instant>) -> std::sync::MutexGuard<'_, Instant> {
    due.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Monitor for SchedulerDelay {
    fn name(&self) -> &'static str {
        "scheduler_delay"
    }

    /// A measurement that is overdue counts before its task is polled: the longest delays would
    /// otherwise be seen last.
    fn level(&self) -> f64 {
        if self.task.has_ended() {
            return 0.0;
        }
        let overdue = TokioClock.now().saturating_duration_since(*lock(&self.due));
        if overdue > 2 * PERIOD {
            self.delay.observe(overdue);
        }
        self.delay.level()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_polls_in_time_has_no_delay_and_a_jump_of_the_clock_is_no_overload() {
        let delay = SchedulerDelay::start();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(delay.level(), 0.0);
        advance(Duration::from_secs(60)).await;
        assert!(delay.level() < 1.0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(delay.level(), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_are_polled_late_for_a_whole_interval_are_overload() {
        let delay = SchedulerDelay::start();
        for _late in 0..4 {
            advance(Duration::from_millis(50)).await;
            tokio::task::yield_now().await;
        }
        assert!(delay.level() >= 1.0, "{}", delay.level());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_not_polled_at_all_is_seen_by_who_asks() {
        let mut delay = SchedulerDelay::start();
        delay.task = Arc::new(AbortOnDrop::new(tokio::spawn(std::future::pending::<()>()).abort_handle()));
        advance(Duration::from_millis(50)).await;
        assert!(delay.level() < 1.0);
        advance(Duration::from_millis(100)).await;
        assert!(delay.level() >= 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_monitor_whose_task_has_ended_with_its_runtime_measures_nothing() {
        let delay = SchedulerDelay::start();
        delay.task.abort();
        tokio::task::yield_now().await;
        for _asked in 0..10 {
            advance(Duration::from_millis(100)).await;
            assert_eq!(delay.level(), 0.0, "no task is polled late any more");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_last_clone() {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let delay = SchedulerDelay::start();
        let clone = delay.clone();
        drop(delay);
        assert_eq!(tasks(), before + 1);
        drop(clone);
        tokio::task::yield_now().await;
        assert_eq!(tasks(), before);
    }
}
