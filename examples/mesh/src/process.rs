//! A service as a unit that can crash.
//!
//! `mesh up` and `mesh demo` run all services in one process, but each must be able to crash alone.
//! So each service has its own thread and runtime. Dropping a runtime drops all its tasks, timers
//! and connections at their current `.await`: transactions are left half done and responses unsent,
//! as after `kill -9`. The service does not have to cooperate.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::service::StartError;
use crate::telemetry::Telemetry;

/// A running service. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    /// Starts a graceful stop.
    stop: CancellationToken,
    /// Ends it at once.
    kill: CancellationToken,
    /// The result, once it has ended.
    exit: watch::Receiver<Option<Exit>>,
}

/// How a process ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Exit {
    #[error("without an error")]
    Finished,
    #[error(transparent)]
    Failed(Arc<StartError>),
    #[error("killed")]
    Killed,
    /// Its thread ended without a result.
    #[error("by a panic")]
    Panicked,
}

impl Process {
    /// Runs `main` on its own thread and runtime. `main` should return soon after its token is
    /// cancelled.
    pub fn spawn<F, Fut>(name: &'static str, telemetry: Telemetry, main: F) -> io::Result<Self>
    where
        F: FnOnce(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), StartError>>,
    {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (exited, exit) = watch::channel(None);
        let (stopped, killed) = (stop.clone(), kill.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let run = async {
                tokio::select! {
                    biased;
                    () = killed.cancelled() => Exit::Killed,
                    result = main(stopped) => match result {
                        Ok(()) => Exit::Finished,
                        Err(error) => Exit::Failed(Arc::new(error)),
                    },
                }
            };
            // Spans, logs and metrics of this thread belong to the service.
            let how = telemetry.enter(|| runtime.block_on(run));
            // Dropped before the exit is reported: when `crash` returns, the port is free and all
            // tasks are gone.
            drop(runtime);
            tracing::debug!(service = name, ?how, "process ended");
            exited.send_replace(Some(how));
        })?;
        Ok(Self { name, stop, kill, exit })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Stops it gracefully and waits. The service limits the time itself: see
    /// [`crate::service::Service::serve`].
    pub async fn stop(mut self) -> Exit {
        self.stop.cancel();
        ended(&mut self.exit).await
    }

    /// Kills it and waits until all its tasks are dropped.
    pub async fn crash(mut self) -> Exit {
        self.kill.cancel();
        ended(&mut self.exit).await
    }

    /// Waits until it ends.
    pub async fn ended(&self) -> Exit {
        ended(&mut self.exit.clone()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await {
        Ok(how) => how.clone().unwrap_or(Exit::Panicked),
        Err(_) => Exit::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::launch::Name;
    use crate::stack::Admission;

    fn telemetry() -> Telemetry {
        Telemetry::new("test", &Admission::new(Name::Order, 1).unwrap(), Vec::new(), &Default::default()).unwrap()
    }

    #[tokio::test]
    async fn a_crash_drops_every_task_and_closes_the_port() {
        let (ready, mut is_ready) = watch::channel(None);
        let process = Process::spawn("test", telemetry(), move |_stop| async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            ready.send_replace(Some(listener.local_addr()?));
            tokio::spawn(async move {
                let _connection = listener.accept().await;
                std::future::pending::<()>().await;
            });
            std::future::pending().await
        })
        .unwrap();
        let addr = is_ready.wait_for(Option::is_some).await.unwrap().unwrap();
        // The first one is accepted, and the second one waits in the listener.
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        assert!(matches!(process.crash().await, Exit::Killed));
        for mut client in clients {
            assert!(!matches!(client.read(&mut [0]).await, Ok(1..)));
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_exit() {
        let process = Process::spawn("test", telemetry(), |_stop| async { panic!("on purpose") }).unwrap();
        assert!(matches!(process.ended().await, Exit::Panicked));
    }
}
