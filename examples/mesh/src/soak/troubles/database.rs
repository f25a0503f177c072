//! The database server fails over, is restarted, or is down.

use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;

use crate::soak::server::Server;
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// All connections fall silent, without FIN and RST; new ones work. The server keeps the sessions
/// of the old ones, with their transactions, until it notices.
#[derive(Debug)]
pub(super) struct Silent;

/// The server is stopped without a checkpoint and started again.
#[derive(Debug)]
pub(super) struct Restart;

/// The server is down for 40 s, which is longer than a customer waits for one answer, and longer
/// than leases, circuits and pools remember.
#[derive(Debug)]
pub(super) struct Down;

fn server(world: &World) -> Result<&Server, String> {
    world.server.as_ref().ok_or_else(|| "the databases are files".to_owned())
}

async fn stop(world: &World) -> anyhow::Result<()> {
    world.server.as_ref().context("no server")?.stop().await
}

async fn start(world: &World) -> anyhow::Result<()> {
    world.server.as_ref().context("no server")?.start().await
}

impl Trouble for Silent {
    fn name(&self) -> &'static str {
        "database-silent"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        server(world).map(drop)
    }

    fn lasts(&self) -> Duration {
        Duration::ZERO
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            world.server.as_ref().context("no server")?.proxy.silence();
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, _world: &'a mut World) -> Step<'a> {
        async { Ok(()) }.boxed_local()
    }
}

impl Trouble for Restart {
    fn name(&self) -> &'static str {
        "database-restart"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        server(world)?.can_be_stopped()
    }

    fn lasts(&self) -> Duration {
        Duration::ZERO
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        stop(world).boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        start(world).boxed_local()
    }
}

impl Trouble for Down {
    fn name(&self) -> &'static str {
        "database-down"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        server(world)?.can_be_stopped()
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(40)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        stop(world).boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        start(world).boxed_local()
    }
}
