//! What is loaded: a mesh of our own, in this process or as processes, or one that runs already.

use std::time::Duration;

use anyhow::Context;

use super::Options;
use crate::bus::Bus;
use crate::customers::Customers;
use crate::db::Databases;
use crate::demo::Home;
use crate::demo::books::{self, Books, Told};
use crate::demo::processes::{Brokers, Children};
use crate::launch::Name;
use crate::mesh::{Config, Mesh};
use crate::process::Exit;

/// What to load.
#[derive(Clone, Debug)]
pub enum Target {
    /// A gateway that runs already.
    Url(String),
    /// A mesh that is started for this.
    Own(Own),
}

/// How to start it.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// A database server instead of files: to audit it, and as child processes are told of it.
    pub databases: Option<Databases>,
    pub postgres: Option<String>,
    pub prefix: String,
    /// Kafka's brokers instead of the embedded log; `mock` for a cluster in this process.
    pub kafka: Option<String>,
    /// Every service a process of its own.
    pub processes: bool,
}

impl Target {
    /// For titles.
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
    /// Nothing if it is not ours.
    own: Option<(Services, Home)>,
    /// A mock cluster, for as long as services need it.
    _brokers: Option<Brokers>,
}

enum Services {
    Threads(Box<Mesh>),
    Processes(Children),
}

impl Running {
    pub(super) async fn start(options: &Options) -> anyhow::Result<Self> {
        let own = match &options.target {
            Target::Url(url) => return Ok(Self { url: url.clone(), own: None, _brokers: None }),
            Target::Own(own) => own,
        };
        let home = Home::new(options.data_dir.clone(), own.databases.clone())?;
        let brokers = Brokers::new(own.kafka.clone())?;
        let (services, url) = if own.processes {
            let server = own.postgres.as_deref().map(|url| (url, own.prefix.as_str()));
            let mut children = Children::new(&home, server, brokers.address(), options.seed)?;
            children.start_all().await?;
            let url = children.url(Name::Gateway);
            (Services::Processes(children), url)
        } else {
            let (databases, bus) = (home.databases.clone(), Bus::new(brokers.address().map(str::to_owned))?);
            let mesh = Mesh::start(Config { databases, bus, seed: options.seed, ..Config::new("") }).await?;
            let url = mesh.url(Name::Gateway);
            (Services::Threads(Box::new(mesh)), url)
        };
        Ok(Self { url, own: Some((services, home)), _brokers: Some(brokers) })
    }

    pub(super) fn customers(&self, options: &Options) -> Customers {
        let customers = Customers::new(&self.url, options.seed);
        match &options.keys {
            Some(keys) => customers.with_keys(keys.clone()),
            None => customers,
        }
    }

    /// Waits until nothing is under way any more, if that can be seen. What it still waits for when the time is up.
    pub(super) async fn settled(&self, limit: Duration) -> anyhow::Result<Option<String>> {
        match &self.own {
            Some((_, home)) => books::settled(&home.databases, limit).await.context("cannot read the books"),
            None => Ok(None),
        }
    }

    /// Stops what was started, and audits it. Whether it has stopped well.
    pub(super) async fn finish(self, told: &Told) -> anyhow::Result<(bool, Option<Books>)> {
        let Some((services, home)) = self.own else { return Ok((true, None)) };
        let clean = match services {
            Services::Threads(mesh) => mesh.stop().await.iter().all(|(_, exit)| matches!(exit, Exit::Finished)),
            Services::Processes(mut children) => children.stop_all().await,
        };
        let books = books::audit(&home.databases, told).await.context("cannot read the books")?;
        Ok((clean, Some(books)))
    }
}
