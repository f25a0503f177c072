//! The target of a load: a mesh started here, as threads or processes, or one that is already
//! running.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::Options;
use crate::bus::Bus;
use crate::customers::{Customers, MANY};
use crate::db::Databases;
use crate::demo::Brokers;
use crate::demo::Home;
use crate::demo::books::{self, Acknowledged, Books};
use crate::demo::processes::Children;
use crate::launch::Name;
use crate::mesh::{Config, Mesh};
use crate::process::Exit;
use crate::token::{KEY_IN_DIR, KeyError, Tokens};

/// Which mesh to load.
#[derive(Clone, Debug)]
pub enum Target {
    /// The gateway of a running mesh.
    Url(String),
    /// A mesh that is started for the load.
    Own(Own),
}

/// How to start a mesh for the load.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// A database server instead of files: `databases` for the audit, `postgres` and `prefix` as
    /// arguments of child processes.
    pub databases: Option<Databases>,
    pub postgres: Option<String>,
    pub prefix: String,
    /// Kafka brokers instead of the embedded log; `mock` for a mock cluster in this process.
    pub kafka: Option<String>,
    /// Run every service as its own process.
    pub processes: bool,
}

impl Target {
    /// A short description for titles.
    pub fn describe(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Own(own) => {
                let stores = if own.databases.is_some() { "PostgreSQL" } else { "SQLite" };
                let bus = match own.kafka.as_deref() {
                    None => "the embedded log",
                    Some("mock") => "Kafka (a mock cluster)",
                    Some(_) => "Kafka",
                };
                format!("{stores}, {bus}, {}", if own.processes { "seven processes" } else { "one process" })
            }
        }
    }
}

pub(super) struct Running {
    url: String,
    tokens: Tokens,
    /// `None` if the mesh was not started here.
    own: Option<(Services, Home, Bus)>,
    /// A mock cluster, kept until the services have stopped.
    _brokers: Option<Brokers>,
}

enum Services {
    Threads(Box<Mesh>),
    Processes(Box<Children>),
}

impl Running {
    pub(super) async fn start(options: &Options) -> anyhow::Result<Self> {
        let own = match &options.target {
            Target::Url(url) => {
                // The key of the running mesh, as for `mesh token`.
                let dir = options.data_dir.as_deref().unwrap_or(Path::new("mesh-data"));
                let tokens = match Tokens::from_env() {
                    Err(KeyError::Missing) => Tokens::from_file(&dir.join(KEY_IN_DIR))?,
                    read => read?,
                };
                return Ok(Self { url: url.clone(), tokens, own: None, _brokers: None });
            }
            Target::Own(own) => own,
        };
        let home = Home::new(options.data_dir.clone(), own.databases.clone())?;
        let brokers = Brokers::new(own.kafka.clone())?;
        let bus = Bus::new(brokers.address().map(str::to_owned))?;
        let (services, url, tokens) = if own.processes {
            let server = own.postgres.as_deref().map(|url| (url, own.prefix.as_str()));
            let mut children = Children::new(&home, server, brokers.address(), options.seed)?;
            children.start_all().await?;
            let url = children.url(Name::Gateway);
            let tokens = children.tokens().clone();
            (Services::Processes(Box::new(children)), url, tokens)
        } else {
            let (databases, bus) = (home.databases.clone(), bus.clone());
            let mesh =
                Mesh::start(Config { databases, bus, orders_per_second: MANY, seed: options.seed, ..Config::new("") })
                    .await?;
            let url = mesh.url(Name::Gateway);
            let tokens = mesh.tokens().clone();
            (Services::Threads(Box::new(mesh)), url, tokens)
        };
        Ok(Self { url, tokens, own: Some((services, home, bus)), _brokers: Some(brokers) })
    }

    pub(super) fn customers(&self, options: &Options) -> Customers {
        let customers = Customers::new(&self.url, options.seed, self.tokens.clone());
        match &options.keys {
            Some(keys) => customers.with_keys(keys.clone()),
            None => customers,
        }
    }

    /// Waits until no order, saga or event is in progress, if the databases are accessible. Returns
    /// what is still in progress after `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> anyhow::Result<Option<String>> {
        match &self.own {
            Some((_, home, _)) => books::settled(&home.databases, limit).await.context("cannot read the books"),
            None => Ok(None),
        }
    }

    /// Stops the mesh if it was started here, and audits it. Returns whether all services stopped
    /// without an error.
    pub(super) async fn finish(self, acknowledged: &Acknowledged) -> anyhow::Result<(bool, Option<Books>)> {
        let Some((services, home, bus)) = self.own else { return Ok((true, None)) };
        let clean = match services {
            Services::Threads(mesh) => mesh.stop().await.iter().all(|(_, exit)| matches!(exit, Exit::Finished)),
            Services::Processes(mut children) => children.stop_all().await,
        };
        let books = books::audit(&home.databases, &bus, acknowledged).await?;
        Ok((clean, Some(books)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Files;

    #[test]
    fn a_target_is_described_by_what_it_runs_on() {
        let own = |own| Target::Own(own).describe();
        let databases = || Some(Databases::Files(Files("x".into())));
        assert_eq!(Target::Url("http://a:1".into()).describe(), "http://a:1");
        assert_eq!(own(Own::default()), "SQLite, the embedded log, one process");
        let kafka = |brokers: &str| Own { kafka: Some(brokers.into()), ..Own::default() };
        assert_eq!(own(kafka("mock")), "SQLite, Kafka (a mock cluster), one process");
        assert_eq!(own(Own { databases: databases(), ..kafka("a:1") }), "PostgreSQL, Kafka, one process");
        assert_eq!(own(Own { processes: true, ..Own::default() }), "SQLite, the embedded log, seven processes");
    }
}
