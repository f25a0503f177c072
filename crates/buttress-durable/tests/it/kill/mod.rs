//! Processes that are really killed: no destructor runs, no socket is closed politely.
//!
//! The test starts itself again as a process of the order service ([`process`]): coordinator, relay, bus, a consumer with
//! its inbox. It ends by itself when all is done, or by SIGKILL: its own at a chosen boundary, or the test's at a random
//! moment.

mod process;
mod random;
mod stepped;
mod world;

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::support::{Backend, eventually};

/// What a process is to do, in its environment.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Orders {
    /// The database as [`Backend::address`] says it.
    database: String,
    postgres: bool,
    /// Brokers, if the bus is Kafka's.
    kafka: Option<String>,
    /// How long a dead process keeps what it had.
    lease: Duration,
    /// Places these orders; those that are there already are left alone.
    places: Vec<String>,
    /// Kills itself at this boundary, when it comes to it for the n-th time.
    dies_at: Option<(String, u32)>,
    /// Writes down which boundaries it came to, and how often.
    census: Option<PathBuf>,
}

/// The seed in the environment, or a new one. It is shown when the test fails.
fn rng() -> fastrand::Rng {
    const SEED: &str = "BUTTRESS_TEST_SEED";
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED}={seed}");
    fastrand::Rng::with_seed(seed)
}

const VARIABLE: &str = "BUTTRESS_TEST_PROCESS";

/// Killed when the test ends before it does.
struct Process(Child);

impl Process {
    fn start(orders: &Orders) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "kill::process::a_process_that_may_be_killed", "--nocapture", "--test-threads", "1"])
            .env(VARIABLE, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, from outside.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// True if it came through, false if it was killed. Everything else it says on standard error, which is ours.
    async fn wait(mut self) -> bool {
        let mut status = None;
        eventually("the process ends", || {
            status = self.has_ended();
            std::future::ready(status.is_some())
        })
        .await;
        let status = status.unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert!(status.success() || killed, "the process failed: {status}");
        status.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Orders {
    fn new<D: Backend>(home: &D::Home, lease: Duration, places: &[&str]) -> Self {
        let places = places.iter().map(|&id| id.to_owned()).collect();
        let (database, postgres) = (D::address(home), D::SERVER);
        Self { database, postgres, kafka: None, lease, places, dies_at: None, census: None }
    }
}
