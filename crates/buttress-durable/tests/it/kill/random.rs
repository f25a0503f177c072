//! Two processes on one database, killed at random moments, repeatedly.

use std::collections::BTreeMap;
use std::time::Duration;

use buttress_durable::Timestamp;
use rdkafka::mocking::MockCluster;

use super::world::{self, World};
use super::{Orders, Process, rng};
use crate::support::{Backend, bounded, close, on_both};

on_both!(two_processes_killed_at_random_never_run_one_saga_and_lose_nothing);

/// Far longer than any pause of a live process, so that only dead ones lose their sagas.
const LEASE: Duration = Duration::from_secs(3);

/// Three orders for each round so far. The next process places those that a killed one could not.
fn places(rounds: usize) -> Vec<String> {
    (0..rounds).flat_map(|round| ["s", "d", "l"].map(|kind| format!("{round:02}-{kind}"))).collect()
}

async fn two_processes_killed_at_random_never_run_one_saga_and_lose_nothing<D: Backend>() {
    const KILLS: usize = 8;
    let mut rng = rng();
    let home = D::create().await;
    let world = world::create::<D>(&home).await;
    let orders = |rounds| Orders { places: places(rounds), ..Orders::new::<D>(&home, LEASE, &[]) };
    let mut processes = [1, 2].map(|rounds| Process::start(&orders(rounds)));
    let mut deaths = BTreeMap::new();
    for rounds in 3..=KILLS + 2 {
        // In real time: a random moment of another process is what is tested.
        tokio::time::sleep(Duration::from_millis(rng.u64(20..900))).await;
        let victim = &mut processes[rng.usize(..2)];
        victim.kill();
        deaths.insert(i64::from(victim.id()), world.db().clock().now());
        *victim = Process::start(&orders(rounds));
    }
    for process in processes {
        assert!(process.wait().await);
    }
    world.check(places(KILLS + 2).len(), "killed at random").await;
    one_at_a_time(&world, &deaths).await;
    close(world.db().clone()).await;
    D::destroy(home).await;
}

/// Checks that each generation of a saga belongs to one process, and that no two calls overlap.
async fn one_at_a_time<D: Backend>(world: &World<D>, deaths: &BTreeMap<i64, Timestamp>) {
    let mut conn = world.db().pool().acquire().await.unwrap();
    let sql = "SELECT saga, generation, pid, began, ended FROM calls ORDER BY seq";
    let rows = D::fetch(&mut conn, sql, &[]).await.unwrap();
    let mut owners = BTreeMap::new();
    let mut last: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for row in &rows {
        let int = |column| D::int(row, column).unwrap();
        let (saga, generation, pid, began) = (D::text(row, 0).unwrap(), int(1), int(2), int(3));
        let owner = *owners.entry((saga.clone(), generation)).or_insert(pid);
        assert_eq!(owner, pid, "two processes had generation {generation} of {saga}");
        // A call without an end was interrupted by a kill, or its end could not be recorded.
        let died = deaths.get(&pid).map_or(began, |died| died.as_millis());
        let ended = D::maybe_int(row, 4).unwrap().unwrap_or(died);
        if let Some((before, until)) = last.insert(saga.clone(), (generation, ended)) {
            assert!(generation >= before, "an owner of {saga} that was replaced came back");
            assert!(began >= until, "two calls for {saga} at the same time");
        }
    }
    assert!(last.len() >= 10, "the calls were written down");
}

/// The bus outlives the processes, as a broker does: the mock cluster is in this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_kafka_too_nothing_is_lost_or_doubled() {
    const KILLS: usize = 4;
    bounded(async {
        type D = sqlx::Sqlite;
        let mut rng = rng();
        let cluster = MockCluster::new(3).unwrap();
        let home = <D as Backend>::create().await;
        let world = world::create::<D>(&home).await;
        let orders = |rounds| Orders {
            places: places(rounds),
            kafka: Some(cluster.bootstrap_servers()),
            ..Orders::new::<D>(&home, Duration::from_millis(500), &[])
        };
        for rounds in 1..=KILLS {
            let mut process = Process::start(&orders(rounds));
            // In real time, as above. Joining takes three seconds and more.
            tokio::time::sleep(Duration::from_millis(rng.u64(500..9_000))).await;
            process.kill();
        }
        assert!(Process::start(&orders(KILLS + 1)).wait().await);
        world.check(places(KILLS + 1).len(), "killed at random").await;
        close(world.db().clone()).await;
        <D as Backend>::destroy(home).await;
    })
    .await;
}
