//! Processes that are killed: no destructor runs and no socket is closed in order.
//!
//! The test starts itself as a process of the order service ([`process`]): coordinator, relay, bus,
//! and a consumer with its inbox. The process ends when all work is done, or by SIGKILL: its own at
//! a chosen boundary, or the test's at a random moment.

mod process;
mod random;
mod stepped;
mod world;

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::support::{Backend, eventually};

/// What a process has to do. Passed in its environment.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Orders {
    /// The database's [`Backend::address`].
    database: String,
    postgres: bool,
    /// Brokers, if the bus is Kafka.
    kafka: Option<String>,
    /// How long the leases of a dead process last.
    lease: Duration,
    /// Ids of the orders to place, except those that exist.
    places: Vec<String>,
    /// The boundary, and its n-th occurrence, at which the process kills itself.
    dies_at: Option<(String, u32)>,
    /// The file for the boundaries that the process met, with their counts.
    census: Option<PathBuf>,
}

/// Returns an RNG with the seed in the environment or a new one, which is printed if the test
/// fails.
fn rng() -> fastrand::Rng {
    const SEED: &str = "BUTTRESS_TEST_SEED";
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED}={seed}");
    fastrand::Rng::with_seed(seed)
}

const VARIABLE: &str = "BUTTRESS_TEST_PROCESS";

/// A process that is killed if the test ends first.
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

    /// Sends SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Returns true if the process completed, false if it was killed. Its standard error is ours.
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
