use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A task that is aborted when dropped, and that [`shutdown`](Self::shutdown) lets finish its work.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Signals a worker to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Worker {
    pub(crate) fn spawn<F>(run: impl FnOnce(Stop) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(run(Stop(stopped))) }
    }

    pub(crate) async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // The panic hook has reported a panic of the task; there is nothing left to stop.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stop {
    pub(crate) fn channel() -> (watch::Sender<bool>, Self) {
        let (stop, stopped) = watch::channel(false);
        (stop, Self(stopped))
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the worker should stop, or when the sender was dropped.
    pub(crate) async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
