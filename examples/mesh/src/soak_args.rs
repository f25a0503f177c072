//! The command line of `mesh soak`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mesh::soak::{NAMES, Options, ServerOptions};

use crate::cli::{BusArgs, ServerArgs};

#[derive(Args, Debug)]
pub(crate) struct Soak {
    /// The troubles, in random order; without one, all that are possible here.
    #[arg(value_name = "TROUBLE", value_parser = NAMES)]
    troubles: Vec<String>,
    /// How long new troubles begin. Each lasts up to 40 seconds.
    #[arg(long, default_value = "10", value_parser = minutes)]
    minutes: Duration,
    /// Random seed. The same seed gives the same troubles, victims and orders.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Orders per second.
    #[arg(long, default_value_t = 10.0, value_parser = crate::cli::rate)]
    rate: f64,
    /// Write the full JSON report to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Directory of the logs, and of SQLite's files. By default a temporary directory, which is
    /// kept if something is wrong.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    /// Shell command that stops the server of --postgres at once.
    #[arg(long, requires = "postgres_start")]
    postgres_stop: Option<String>,
    /// Shell command that starts it again, and returns when it accepts connections.
    #[arg(long, requires = "postgres_stop")]
    postgres_start: Option<String>,
    #[command(flatten)]
    bus: BusArgs,
}

impl Soak {
    pub(crate) fn options(self) -> anyhow::Result<Options> {
        // Checked before anything starts.
        self.server.server()?;
        let Self {
            troubles, minutes: length, seed, rate, data_dir, server, postgres_stop, postgres_start, bus, ..
        } = self;
        let prefix = server.database_prefix;
        let server =
            server.postgres.map(|url| ServerOptions { url, prefix, stop: postgres_stop, start: postgres_start });
        Ok(Options { length, seed, rate, data_dir, server, kafka: bus.kafka, troubles })
    }
}

fn minutes(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (0.1..=10_000.0).contains(&minutes) => Ok(Duration::from_secs_f64(minutes * 60.0)),
        _ => Err("between 0.1 and 10000 minutes".to_owned()),
    }
}
