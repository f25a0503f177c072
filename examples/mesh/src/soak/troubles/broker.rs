//! The event bus fails: brokers of the mock cluster, or the database of the embedded log.

use std::time::Duration;

use anyhow::Context;
use buttress_durable::{Database, Db, DbError, args};
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::db::{Databases, EVENTS, Home};
use crate::demo::Mock;
use crate::events;
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// One broker after another is down, each for some seconds, as in a rolling replacement.
#[derive(Debug)]
pub(super) struct BrokerDown;

/// All partitions get other leaders, and one of these is down, so that a third of the partitions
/// has no leader that answers. (The mock crashes if a partition has no leader at all.)
#[derive(Debug, Default)]
pub(super) struct LeadersMoved {
    down: Option<i32>,
}

/// Something else holds the write lock of the embedded log's database, longer than a writer waits.
#[derive(Debug, Default)]
pub(super) struct LogLocked(Option<(CancellationToken, JoinHandle<Result<(), DbError>>)>);

/// Partitions of a topic on the mock cluster.
const PARTITIONS: i32 = 4;
/// How long each broker is down.
const REPLACED_IN: Duration = Duration::from_secs(6);

fn mock(world: &World) -> Result<&Mock, String> {
    world.brokers.mock().ok_or_else(|| "it needs Kafka's mock cluster (--kafka)".to_owned())
}

impl Trouble for BrokerDown {
    fn name(&self) -> &'static str {
        "broker-down"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        mock(world).map(drop)
    }

    fn lasts(&self) -> Duration {
        Duration::ZERO
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            for broker in 1..=mock(world).map_err(anyhow::Error::msg)?.brokers() {
                world.say(format_args!("  broker {broker} is down"));
                mock(world).map_err(anyhow::Error::msg)?.down(broker)?;
                world.pass(REPLACED_IN).await;
                mock(world).map_err(anyhow::Error::msg)?.up(broker)?;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let mock = mock(world).map_err(anyhow::Error::msg)?;
            (1..=mock.brokers()).try_for_each(|broker| mock.up(broker))
        }
        .boxed_local()
    }
}

impl LeadersMoved {
    /// Gives every partition a leader, `shift` brokers after the first.
    fn lead(world: &World, shift: i32) -> anyhow::Result<()> {
        let mock = mock(world).map_err(anyhow::Error::msg)?;
        for topic in events::ALL {
            // The last one first: a topic that does not exist gets as many partitions as are named.
            for partition in (0..PARTITIONS).rev() {
                mock.lead(topic, partition, 1 + (partition + shift) % mock.brokers())?;
            }
        }
        Ok(())
    }
}

impl Trouble for LeadersMoved {
    fn name(&self) -> &'static str {
        "leaders-moved"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        mock(world).map(drop)
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(12)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let brokers = mock(world).map_err(anyhow::Error::msg)?.brokers();
            let (shift, down) = (world.rng.i32(1..brokers), world.rng.i32(1..=brokers));
            world.say(format_args!("  all partitions are led by others, and broker {down} is down"));
            Self::lead(world, shift)?;
            self.down = Some(down);
            mock(world).map_err(anyhow::Error::msg)?.down(down)
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            if let Some(down) = self.down.take() {
                mock(world).map_err(anyhow::Error::msg)?.up(down)?;
            }
            Self::lead(world, 0)
        }
        .boxed_local()
    }
}

impl Trouble for LogLocked {
    fn name(&self) -> &'static str {
        "log-locked"
    }

    fn possible(&self, world: &World) -> Result<(), String> {
        let kafka = world.brokers.address().is_some();
        if kafka { Err("the bus is Kafka".to_owned()) } else { Ok(()) }
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(12)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let release = CancellationToken::new();
            let released = release.clone();
            let locking = match world.databases.clone() {
                // A transaction holds SQLite's write lock from its begin on.
                Databases::Files(home) => {
                    let db = home.open(EVENTS).await?;
                    tokio::spawn(async move { lock(&db, "SELECT 1", released).await })
                }
                Databases::Server(home) => {
                    let db = home.open(EVENTS).await?;
                    let statement = "LOCK TABLE buttress_log IN ACCESS EXCLUSIVE MODE";
                    tokio::spawn(async move { lock(&db, statement, released).await })
                }
            };
            self.0 = Some((release, locking));
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, _world: &'a mut World) -> Step<'a> {
        async move {
            let Some((release, locking)) = self.0.take() else { return Ok(()) };
            release.cancel();
            locking.await?.context("cannot lock the log")
        }
        .boxed_local()
    }
}

async fn lock<D: Database>(db: &Db<D>, statement: &'static str, released: CancellationToken) -> Result<(), DbError> {
    let mut tx = db.begin().await?;
    tx.execute(statement, args![]).await?;
    released.cancelled().await;
    // The server may have ended a transaction that was idle for so long.
    let _ = tx.rollback().await;
    db.pool().close().await;
    Ok(())
}
