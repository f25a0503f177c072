//! Throughput of tasks on a multi-threaded runtime. A task that meets a lock leaves its thread to
//! another task, as in a server, where a thread of the spinning measurement must wait.

#![expect(clippy::disallowed_methods, reason = "measures real time; no layer is involved")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::subject::Subject;

/// Tasks at a time: many more than workers.
const TASKS: usize = 64;

/// A runtime with one worker, and one with two.
#[derive(Debug)]
pub(crate) struct Runtimes {
    one: Runtime,
    two: Runtime,
}

impl Runtimes {
    pub(crate) fn new() -> Self {
        let of = |workers| {
            let runtime = Builder::new_multi_thread().worker_threads(workers).enable_time().build();
            runtime.expect("a runtime without IO needs nothing from the system")
        };
        Self { one: of(1), two: of(2) }
    }

    /// Calls per second with two workers over those with one.
    pub(crate) fn speedup(&self, subject: &Subject, window: Duration) -> f64 {
        let one = rate(&self.one, subject, window);
        rate(&self.two, subject, window) / one
    }
}

fn rate(runtime: &Runtime, subject: &Subject, window: Duration) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(subject.task(Arc::clone(&stop)))).collect();
        tokio::time::sleep(window).await;
        stop.store(true, Ordering::Relaxed);
        let mut calls = 0;
        for task in tasks {
            calls += task.await.expect("a task panicked");
        }
        calls as f64 / start.elapsed().as_secs_f64()
    })
}
