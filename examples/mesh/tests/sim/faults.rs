//! The faults of a run and their times, drawn from the seed before the simulation begins.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use mesh::db::EVENTS;
use turmoil::Sim;

use crate::disk::Silent;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Scenario {
    /// Two services cannot reach each other, in both directions or in one.
    Partition,
    /// A partition with circuits that only count, so that only the budget limits retries.
    Unguarded,
    /// Services crash in the middle of their work, and restart on the same disk.
    Crash,
    /// A link becomes slow: some calls succeed, others time out.
    Slow,
    /// Messages are lost, which breaks connections without an error, or held back for a while.
    Lossy,
    /// All of them.
    Storm,
    /// A service is down for half a minute and more, or cannot be reached.
    Outage,
    /// The database of a service, or that of the bus, does not answer for half a minute and more.
    Silence,
}

type Link = (&'static str, &'static str);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Partition(Link),
    PartitionOneWay(Link),
    Repair(Link),
    Crash(&'static str),
    Restart(&'static str),
    Latency(Link, Duration),
    /// Share of messages that are lost. A loss breaks the link until a later message repairs it.
    Loss(Link, f64),
    Hold(Link),
    Release(Link),
    /// A database does not answer.
    Silence(&'static str),
    /// It answers again.
    Sound(&'static str),
}

/// The remaining acts of a run, in order.
#[derive(Clone, Debug)]
pub(crate) struct Plan(VecDeque<(Duration, Act)>);

/// Faults begin at the earliest after this time in milliseconds, because the services must start.
const FIRST: u64 = 1_500;
/// Faults end at the latest at this time, in milliseconds.
const LAST: u64 = 6_000;
/// The shortest and the longest outage, in milliseconds: as long as a pool waits for a connection,
/// and several times a lease.
const OUTAGE: (u64, u64) = (30_000, 34_000);
/// When customers place orders, and from when on orders must succeed again: the faults have ended,
/// dead connections were detected, and circuits have probed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) busy: Duration,
    pub(crate) well: Duration,
}

impl Scenario {
    pub(crate) fn times(self) -> Times {
        let well = match self {
            Self::Outage | Self::Silence => Duration::from_secs(50),
            _ => Duration::from_secs(17),
        };
        Times { busy: Duration::from_secs(7), well }
    }
}

/// Latency of the simulation's links without faults.
pub(crate) const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(6));

const PARTICIPANTS: [Link; 2] = [("order", "payment"), ("order", "inventory")];
const LINKS: [Link; 3] = [PARTICIPANTS[0], PARTICIPANTS[1], ("customers", "order")];

impl Plan {
    pub(crate) fn new(scenario: Scenario, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut acts = Vec::new();
        match scenario {
            Scenario::Partition | Scenario::Unguarded => partition(&mut rng, &mut acts),
            Scenario::Crash => crashes(&mut rng, &mut acts),
            Scenario::Slow => slow(&mut rng, &mut acts),
            Scenario::Lossy => lossy(&mut rng, &mut acts),
            Scenario::Storm => {
                partition(&mut rng, &mut acts);
                crashes(&mut rng, &mut acts);
                slow(&mut rng, &mut acts);
                lossy(&mut rng, &mut acts);
            }
            Scenario::Outage => outage(&mut rng, &mut acts),
            Scenario::Silence => silence(&mut rng, &mut acts),
        }
        acts.sort_by_key(|(at, _)| *at);
        Self(acts.into())
    }

    /// Applies the next act that is due.
    pub(crate) fn advance(&mut self, sim: &mut Sim<'_>, silent: &Silent) -> Option<(Duration, Act)> {
        let (at, act) = self.0.pop_front_if(|(at, _)| *at <= sim.elapsed())?;
        match act {
            Act::Partition((a, b)) => sim.partition(a, b),
            Act::PartitionOneWay((a, b)) => sim.partition_oneway(a, b),
            Act::Repair((a, b)) => sim.repair(a, b),
            Act::Crash(host) => sim.crash(host),
            Act::Restart(host) => sim.bounce(host),
            Act::Latency((a, b), latency) => sim.set_link_latency(a, b, latency),
            Act::Loss((a, b), share) => sim.set_link_fail_rate(a, b, share),
            Act::Hold((a, b)) => sim.hold(a, b),
            Act::Release((a, b)) => sim.release(a, b),
            Act::Silence(database) => silent.insert(database),
            Act::Sound(database) => silent.remove(database),
        }
        Some((at, act))
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Partition => "partition",
            Self::Unguarded => "unguarded",
            Self::Crash => "crash",
            Self::Slow => "slow",
            Self::Lossy => "lossy",
            Self::Storm => "storm",
            Self::Outage => "outage",
            Self::Silence => "silence",
        })
    }
}

/// Draws a time window of at least `least` milliseconds.
fn window(rng: &mut fastrand::Rng, least: u64) -> (Duration, Duration) {
    let begin = rng.u64(FIRST..=LAST - least);
    let end = rng.u64(begin + least..=LAST);
    (Duration::from_millis(begin), Duration::from_millis(end))
}

fn partition(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    let (a, b) = PARTICIPANTS[rng.usize(..2)];
    let (begin, end) = window(rng, 2_500);
    let act = match rng.u8(..4) {
        0 => Act::PartitionOneWay((a, b)),
        1 => Act::PartitionOneWay((b, a)),
        _ => Act::Partition((a, b)),
    };
    acts.extend([(begin, act), (end, Act::Repair((a, b)))]);
}

fn crashes(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    // Each host crashes at most once; otherwise the restart of one crash would end the outage of
    // another.
    let mut hosts = ["payment", "inventory", "order", "shipping", "notification"];
    rng.shuffle(&mut hosts);
    for host in &hosts[..rng.usize(1..=3)] {
        let (begin, end) = window(rng, 100);
        acts.extend([(begin, Act::Crash(host)), (end, Act::Restart(host))]);
    }
}

fn slow(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    let link = LINKS[rng.usize(..LINKS.len())];
    let (begin, end) = window(rng, 2_000);
    let latency = Duration::from_millis(rng.u64(30..400));
    acts.extend([(begin, Act::Latency(link, latency)), (end, Act::Latency(link, LATENCY.1))]);
}

fn lossy(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    let link = LINKS[rng.usize(..LINKS.len())];
    let (begin, end) = window(rng, 1_000);
    if rng.bool() {
        let share = f64::from(rng.u32(5..50)) / 1_000.0;
        acts.extend([(begin, Act::Loss(link, share)), (end, Act::Loss(link, 0.0)), (end, Act::Repair(link))]);
    } else {
        acts.extend([(begin, Act::Hold(link)), (end, Act::Release(link))]);
    }
}

/// Draws a time window of a long outage.
fn long_window(rng: &mut fastrand::Rng) -> (Duration, Duration) {
    let begin = rng.u64(FIRST..=FIRST + 1_000);
    (Duration::from_millis(begin), Duration::from_millis(begin + rng.u64(OUTAGE.0..=OUTAGE.1)))
}

fn outage(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    let (begin, end) = long_window(rng);
    if rng.u8(..4) == 0 {
        let link = PARTICIPANTS[rng.usize(..2)];
        acts.extend([(begin, Act::Partition(link)), (end, Act::Repair(link))]);
    } else {
        let host = ["payment", "inventory", "order", "shipping", "notification"][rng.usize(..5)];
        acts.extend([(begin, Act::Crash(host)), (end, Act::Restart(host))]);
    }
}

fn silence(rng: &mut fastrand::Rng, acts: &mut Vec<(Duration, Act)>) {
    let database = ["payment", "inventory", "order", "shipping", "notification", EVENTS][rng.usize(..6)];
    let (begin, end) = long_window(rng);
    acts.extend([(begin, Act::Silence(database)), (end, Act::Sound(database))]);
}
