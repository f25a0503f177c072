//! Chooses which service is killed, and when.

use std::time::Duration;

use serde::Serialize;

use super::children::Children;
use crate::clock::now;
use crate::demo::report::millis;
use crate::launch::Name;

/// One kill and the recovery after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kill {
    pub service: &'static str,
    /// Time since the first order.
    pub at_ms: u64,
    /// How long the process was not running.
    pub down_ms: u64,
    /// From the restart until the service was ready.
    pub recovery_ms: u64,
}

/// Kills one service after another at random moments and restarts each after a short pause.
pub(super) async fn run(children: &mut Children, kills: usize, seed: u64) -> anyhow::Result<Vec<Kill>> {
    // A separate generator, so that the number of orders does not change the victims.
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(0x6b69_6c6c));
    let mut pause = |longest: u64| Duration::from_millis(rng.u64(50..=longest));
    let victims = victims(kills, seed);
    let (start, mut deaths) = (now(), Vec::new());
    for victim in victims {
        tokio::time::sleep(pause(1000)).await;
        let at_ms = millis(start.elapsed());
        children.kill(victim).await?;
        let down = pause(600);
        tokio::time::sleep(down).await;
        children.start(victim)?;
        let recovery = children.until_ready(victim).await?;
        let (service, down_ms, recovery_ms) = (victim.as_str(), millis(down), millis(recovery));
        deaths.push(Kill { service, at_ms, down_ms, recovery_ms });
    }
    Ok(deaths)
}

/// The services to kill. Every round kills each service once, in random order: no service is
/// skipped, and the order is not predictable.
fn victims(kills: usize, seed: u64) -> Vec<Name> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut victims = Vec::new();
    while victims.len() < kills {
        let mut round = Name::ALL;
        rng.shuffle(&mut round);
        victims.extend(round);
    }
    victims.truncate(kills);
    victims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_spared_and_the_seed_decides() {
        let one = victims(20, 7);
        assert_eq!((one.len(), &one), (20, &victims(20, 7)));
        assert_ne!(one, victims(20, 8));
        for name in Name::ALL {
            assert!(one.iter().filter(|victim| **victim == name).count() >= 2, "{name:?}");
        }
    }
}
