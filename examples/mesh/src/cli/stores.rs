//! Where a mesh keeps its state: databases and the bus.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use mesh::bus::Bus;
use mesh::db::{Databases, Files, Server};

/// Where a running mesh keeps its state.
#[derive(Args, Debug)]
pub(crate) struct StoreArgs {
    /// Directory of the SQLite files. They are kept.
    #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
}

/// Databases on a server instead of in SQLite files.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// URL of a PostgreSQL server, such as postgres://user:password@host:5432. Each service gets
    /// its own database there.
    #[arg(long, env = "MESH_POSTGRES", hide_env_values = true)]
    pub(crate) postgres: Option<String>,
    /// Prefix of the names of those databases.
    #[arg(long, env = "MESH_DATABASE_PREFIX", default_value = "mesh_")]
    pub(crate) database_prefix: String,
}

#[derive(Args, Debug)]
pub(crate) struct BusArgs {
    /// Kafka brokers, such as host:9092,host:9092, instead of the embedded event log. `demo`,
    /// `load` and `soak` also accept "mock".
    #[arg(long, env = "MESH_KAFKA")]
    pub(crate) kafka: Option<String>,
}

impl StoreArgs {
    /// Returns the server, or the directory, which must exist.
    pub(crate) fn existing(&self) -> anyhow::Result<Databases> {
        if let Some(server) = self.server.server()? {
            return Ok(server);
        }
        anyhow::ensure!(self.data_dir.is_dir(), "data-dir: there is no directory {}", self.data_dir.display());
        Ok(self.files())
    }

    /// Returns the server, or the directory, which is created if it does not exist.
    pub(crate) fn databases(&self) -> anyhow::Result<Databases> {
        if let Some(server) = self.server.server()? {
            return Ok(server);
        }
        std::fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("data-dir: cannot create {}", self.data_dir.display()))?;
        Ok(self.files())
    }

    /// Returns the directory, whether or not it exists.
    pub(crate) fn files(&self) -> Databases {
        Databases::Files(Files(self.data_dir.clone()))
    }

    pub(crate) fn bus(&self) -> anyhow::Result<Bus> {
        self.bus.bus()
    }
}

impl ServerArgs {
    /// Returns the server if `--postgres` is set.
    pub(crate) fn server(&self) -> anyhow::Result<Option<Databases>> {
        let server = self.postgres.as_deref().map(|url| Server::new(url, &self.database_prefix)).transpose()?;
        Ok(server.map(Databases::Server))
    }
}

impl BusArgs {
    pub(crate) fn bus(&self) -> anyhow::Result<Bus> {
        Ok(Bus::new(self.kafka.clone())?)
    }
}
