//! Processes that kill themselves at every boundary: before every statement, before and after every
//! commit, and before and after every effect of a participant. Covers the saga, the outbox and its
//! relay, the log and its groups, and the inbox.
//!
//! A first process runs to the end and records the boundaries. Each of them then kills two
//! processes: at its first occurrence and at a later one.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use super::{Orders, Process, rng, world};
use crate::support::{Backend, close, on_both};

on_both!(a_process_killed_at_any_boundary_is_made_good_by_the_next);

/// One order that succeeds, one that is declined, one whose answers are lost.
const PLACES: [&str; 3] = ["1-s", "2-d", "3-l"];
/// Short, since the next process waits for it.
const LEASE: Duration = Duration::from_millis(300);
/// Number of concurrent stories, which mostly wait for leases.
const AT_ONCE: usize = 6;
/// Parts that must kill at least one process: saga, outbox, log, groups, inbox, participants.
const PARTS: [&str; 11] = [
    "UPDATE buttress_saga ",
    "INSERT INTO buttress_saga_step",
    "INSERT INTO buttress_outbox",
    "UPDATE buttress_outbox",
    "INSERT INTO buttress_log ",
    "UPDATE buttress_group ",
    "INSERT INTO buttress_inbox",
    "before doing pay",
    "after doing pay",
    "before undoing reserve",
    "after undoing reserve",
];

async fn a_process_killed_at_any_boundary_is_made_good_by_the_next<D: Backend>() {
    let mut rng = rng();
    let boundaries = census::<D>().await;
    for part in PARTS {
        assert!(boundaries.keys().any(|boundary| boundary.contains(part)), "no {part:?} in {boundaries:?}");
    }
    let deaths: Vec<_> = boundaries
        .into_iter()
        .flat_map(|(boundary, times)| {
            let later = (times > 1).then(|| (boundary.clone(), rng.u32(2..=times)));
            [Some((boundary, 1)), later].into_iter().flatten()
        })
        .collect();
    let killed = stream::iter(deaths.clone()).map(story::<D>).buffer_unordered(AT_ONCE);
    let killed = killed.filter(|killed| std::future::ready(*killed)).count().await;
    // Tasks race, so not every process meets every boundary equally often.
    assert!(killed * 10 > deaths.len() * 8, "of {} processes only {killed} were killed", deaths.len());
}

/// Returns the boundaries of a process, with their counts.
async fn census<D: Backend>() -> BTreeMap<String, u32> {
    let (home, dir) = (D::create().await, tempfile::tempdir().unwrap());
    let world = world::create::<D>(&home).await;
    let census = dir.path().join("census.json");
    let orders = Orders { census: Some(census.clone()), ..Orders::new::<D>(&home, LEASE, &PLACES) };
    assert!(Process::start(&orders).wait().await);
    world.check(PLACES.len(), "never killed").await;
    close(world.db().clone()).await;
    D::destroy(home).await;
    serde_json::from_str(&std::fs::read_to_string(census).unwrap()).unwrap()
}

/// Returns true if the process was killed.
async fn story<D: Backend>(death: (String, u32)) -> bool {
    let home = D::create().await;
    let world = world::create::<D>(&home).await;
    let orders = Orders::new::<D>(&home, LEASE, &PLACES);
    let told = format!("killed {}, time {}", death.0, death.1);
    let through = Process::start(&Orders { dies_at: Some(death), ..orders.clone() }).wait().await;
    assert!(through || Process::start(&orders).wait().await);
    world.check(PLACES.len(), &told).await;
    close(world.db().clone()).await;
    D::destroy(home).await;
    !through
}
