//! `mesh soak`: the services run as processes under a steady flow of orders while one trouble after
//! another happens to them, and the databases are audited at the end.
//!
//! `trouble` says what a trouble is, and the modules under `troubles` are its kinds. `world` has
//! the processes and everything else that a trouble acts on, `orders` the customers, `vitals` the
//! memory and descriptors of the processes, and [`report`] the table at the end.
//!
//! The seed determines the order of the troubles, their victims and the orders. The rest depends on
//! real time.

mod hostile;
mod orders;
mod place;
pub mod proxy;
pub mod report;
mod server;
mod timeline;
mod trouble;
mod troubles;
mod vitals;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bus::Bus;
use crate::clock::now;
use crate::demo::books;
use crate::launch::Name;
use report::{Episode, Report};
pub use server::ServerOptions;
use trouble::Trouble;
pub use troubles::NAMES;
use world::World;

/// How long the services may take until an order succeeds and all are ready again. Longer than the
/// longest open time of a circuit, the longest lease and the longest wait between two attempts of a
/// saga's step together.
const RECOVERY_LIMIT: Duration = Duration::from_secs(90);
/// Calm between two troubles.
const REST: Duration = Duration::from_secs(5);
/// How long the last orders, compensations and events may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

#[derive(Clone, Debug)]
pub struct Options {
    /// How long new troubles begin.
    pub length: Duration,
    /// Random seed. The same seed gives the same troubles, victims and orders.
    pub seed: u64,
    /// Orders per second.
    pub rate: f64,
    /// Directory of the logs and, on SQLite, of the databases. By default a temporary directory,
    /// kept if something is wrong.
    pub data_dir: Option<PathBuf>,
    /// A database server instead of files.
    pub server: Option<ServerOptions>,
    /// Kafka brokers instead of the embedded log; `mock` for a mock cluster in this process.
    pub kafka: Option<String>,
    /// Names of the troubles. Empty for all that are possible here.
    pub troubles: Vec<String>,
}

/// Runs the whole soak: start, troubles, settling, clean stop, audit.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut troubles = troubles::named(&options.troubles)?;
    let mut world = World::start(&options).await?;
    let left_out = leave_out(&mut troubles, &world, &options)?;
    world.rng.shuffle(&mut troubles);
    world.settle_in().await;
    let before = world.vitals();

    let (mut episodes, start) = (Vec::new(), now());
    'soak: loop {
        for trouble in &mut troubles {
            if start.elapsed() >= options.length {
                break 'soak;
            }
            episodes.push(episode(trouble.as_mut(), &mut world).await);
        }
    }
    let happened = |name: &str| episodes.iter().any(|episode: &Episode| episode.trouble == name);
    let not_reached = troubles.iter().map(|trouble| trouble.name()).filter(|name| !happened(name)).collect();

    let (counts, acknowledged) = world.last_orders().await;
    world.say("waiting until everything has settled");
    let settling = now();
    // A timeout is not an error here: the audit lists what is unfinished.
    books::settled(&world.databases, SETTLE_LIMIT).await.context("cannot read the books")?;
    world.say(format_args!("settled after {:.1} s", settling.elapsed().as_secs_f64()));
    let unready = world.unready().await;
    world.wrong.extend(unready.iter().map(|name| format!("{} is not ready at the end", name.as_str())));
    let after = world.vitals();
    world.wrong.extend(Name::ALL.into_iter().flat_map(|name| vitals::growth(name, &before, &after)));
    world.look_for_deaths().await;
    world.say("stopping");
    if !world.children.stop_all().await {
        world.wrong.push("a service did not stop cleanly".to_owned());
    }
    let bus = Bus::new(world.brokers.address().map(str::to_owned))?;
    let books = books::audit(&world.databases, &bus, &acknowledged).await?;
    let wrong = std::mem::take(&mut world.wrong);
    let kept = world.finish(wrong.is_empty() && books.right);
    let took = start.elapsed();
    Ok(Report { seed: options.seed, took, episodes, left_out, not_reached, counts, before, after, wrong, kept, books })
}

/// Removes the troubles that cannot happen here, and returns their names with the reasons.
fn leave_out(
    troubles: &mut Vec<Box<dyn Trouble>>,
    world: &World,
    options: &Options,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut left_out = Vec::new();
    troubles.retain(|trouble| match trouble.possible(world) {
        Ok(()) => true,
        Err(reason) => {
            left_out.push((trouble.name(), reason));
            false
        }
    });
    for (name, reason) in &left_out {
        world.say(format_args!("left out: {name}, {reason}"));
    }
    ensure!(!troubles.is_empty(), "none of the troubles {:?} is possible here", options.troubles);
    Ok(left_out)
}

/// One trouble, and the recovery after it.
async fn episode(trouble: &mut dyn Trouble, world: &mut World) -> Episode {
    let (name, at, before) = (trouble.name(), world.elapsed(), world.orders.counts());
    world.say(format_args!("{name} begins"));
    let began = trouble.begin(world).await;
    world.check(name, began).await;
    world.pass(trouble.lasts()).await;
    if trouble.harmless() && world.orders.counts().confirmed == before.confirmed {
        world.wrong.push(format!("{name}: no order was confirmed meanwhile"));
    }
    let ended = trouble.end(world).await;
    world.check(name, ended).await;
    world.say(format_args!("{name} is over"));
    let recovery = world.recover(RECOVERY_LIMIT).await;
    if recovery.first_success.is_none() {
        world.wrong.push(format!("{name}: no order was confirmed within {RECOVERY_LIMIT:?} after it"));
    }
    if recovery.all_ready.is_none() {
        world.wrong.push(format!("{name}: a service was not ready within {RECOVERY_LIMIT:?} after it"));
    }
    let counts = world.orders.counts() - before;
    world.pass(REST).await;
    Episode { trouble: name, at, counts, recovery }
}
