//! Services are killed, frozen and told twice to stop.

use std::time::Duration;

use futures_util::FutureExt;

use crate::demo::processes::Signal;
use crate::launch::Name;
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// Every service is killed once, in random order, and restarted after up to a second.
#[derive(Debug)]
pub(super) struct Killed;

/// A service is frozen with SIGSTOP for 20 s: longer than its leases, and its sockets stay open.
/// Each time it is another service.
#[derive(Debug, Default)]
pub(super) struct Frozen(Vec<Name>);

/// A service gets SIGTERM twice, as an orchestrator or an impatient operator does. It must exit at
/// once.
#[derive(Debug)]
pub(super) struct TerminatedTwice;

/// How long a service may take to exit after the second SIGTERM.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

impl Trouble for Killed {
    fn name(&self) -> &'static str {
        "killed"
    }

    fn lasts(&self) -> Duration {
        Duration::ZERO
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let mut victims = Name::ALL;
            world.rng.shuffle(&mut victims);
            for victim in victims {
                let (down, calm) = (world.rng.u64(50..=1000), world.rng.u64(200..=1500));
                world.say(format_args!("  SIGKILL to {}", victim.as_str()));
                world.children.kill(victim).await?;
                world.pass(Duration::from_millis(down)).await;
                world.children.start(victim)?;
                let took = world.children.until_ready(victim).await?;
                world.say(format_args!("  {} is ready {:.1} s after its start", victim.as_str(), took.as_secs_f64()));
                world.pass(Duration::from_millis(calm)).await;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, _world: &'a mut World) -> Step<'a> {
        async { Ok(()) }.boxed_local()
    }
}

impl Frozen {
    /// The last one in the list is frozen.
    fn choose(&mut self, world: &mut World) -> Name {
        if self.0.len() == Name::ALL.len() {
            self.0.clear();
        }
        let victim = std::iter::repeat_with(|| world.any()).find(|name| !self.0.contains(name));
        let victim = victim.unwrap_or(Name::Order);
        self.0.push(victim);
        victim
    }
}

impl Trouble for Frozen {
    fn name(&self) -> &'static str {
        "frozen"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let victim = self.choose(world);
            world.say(format_args!("  SIGSTOP to {}", victim.as_str()));
            world.children.signal(victim, Signal::Stop);
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            if let Some(victim) = self.0.last() {
                world.children.signal(*victim, Signal::Cont);
            }
            Ok(())
        }
        .boxed_local()
    }
}

impl Trouble for TerminatedTwice {
    fn name(&self) -> &'static str {
        "terminated-twice"
    }

    fn lasts(&self) -> Duration {
        Duration::ZERO
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let victim = world.any();
            world.say(format_args!("  SIGTERM twice to {}", victim.as_str()));
            world.children.signal(victim, Signal::Term);
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.children.signal(victim, Signal::Term);
            let ended = world.children.until_ended(victim, EXIT_LIMIT).await;
            if ended.is_err() {
                world.children.kill(victim).await?;
            }
            world.children.start(victim)?;
            world.children.until_ready(victim).await?;
            ended.map(drop)
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, _world: &'a mut World) -> Step<'a> {
        async { Ok(()) }.boxed_local()
    }
}
