//! The scenarios: a server, its changes, and the load.

use std::time::Duration;

/// A server of workers with one queue, and what happens to it.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) workers: usize,
    /// Mean service time.
    pub(crate) mean: Duration,
    /// Standard deviation of the logarithm of the service time, which is log-normal.
    pub(crate) sigma: f64,
    /// Seconds of light load before the part that counts.
    pub(crate) warm_up: f64,
    /// Seconds that count.
    pub(crate) lasts: f64,
    /// Calls per second in the part that counts, as a multiple of what the server can do.
    pub(crate) load: f64,
    /// Share of the calls whose responses stream for 10 s after the head.
    pub(crate) streams: f64,
    /// Share of each class of priority among the calls, from the most important one.
    pub(crate) mix: [f64; 4],
    /// Time of a worker that a rejection by the server takes. It goes before the calls that wait.
    pub(crate) rejection: Duration,
    /// The server at a time in the part that counts.
    pub(crate) server: fn(f64) -> Server,
    /// When the capacity changes in one step.
    pub(crate) steps: &'static [f64],
}

/// The state of a server, in comparison with its nominal one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Server {
    /// Share of the workers that work.
    pub(crate) workers: f64,
    /// Factor of the service time.
    pub(crate) slower: f64,
    /// Share of the calls that take 10 times as long, whatever the load.
    pub(crate) odd: f64,
}

pub(crate) const NOMINAL: Server = Server { workers: 1.0, slower: 1.0, odd: 0.0 };

/// Load of the warm-up.
pub(crate) const LIGHT: f64 = 0.7;
/// Callers wait for 25 times the mean service time.
pub(crate) const PATIENCE: u32 = 25;
/// How long a response streams.
pub(crate) const STREAM: Duration = Duration::from_secs(10);

const BASE: Scenario = Scenario {
    name: "",
    workers: 32,
    mean: Duration::from_millis(10),
    sigma: 0.5,
    warm_up: 20.0,
    lasts: 60.0,
    load: 1.5,
    streams: 0.0,
    mix: [0.0, 1.0, 0.0, 0.0],
    rejection: Duration::ZERO,
    server: |_| NOMINAL,
    steps: &[],
};

pub(crate) const SCENARIOS: [Scenario; 14] = [
    Scenario { name: "light load (0.7x)", load: LIGHT, ..BASE },
    Scenario { name: "overload 1.5x", load: 1.5, ..BASE },
    Scenario { name: "overload 3x", load: 3.0, ..BASE },
    Scenario { name: "overload 10x", load: 10.0, ..BASE },
    Scenario { name: "4 workers of 50 ms, 3x", workers: 4, mean: Duration::from_millis(50), load: 3.0, ..BASE },
    Scenario { name: "256 workers of 100 ms, 3x", workers: 256, mean: Duration::from_millis(100), load: 3.0, ..BASE },
    Scenario { name: "even service times (sigma 0.1), 3x", sigma: 0.1, load: 3.0, ..BASE },
    Scenario { name: "uneven service times (sigma 1), 3x", sigma: 1.0, load: 3.0, ..BASE },
    Scenario {
        name: "half of the workers for 20 s, 1.3x",
        load: 1.3,
        server: |t| Server { workers: if (20.0..40.0).contains(&t) { 0.5 } else { 1.0 }, ..NOMINAL },
        steps: &[20.0, 40.0],
        ..BASE
    },
    Scenario {
        name: "every call twice as long for 20 s, 1.3x",
        load: 1.3,
        server: |t| Server { slower: if (20.0..40.0).contains(&t) { 2.0 } else { 1.0 }, ..NOMINAL },
        steps: &[20.0, 40.0],
        ..BASE
    },
    Scenario {
        name: "square wave: a third of the workers every other 5 s, 1.3x",
        load: 1.3,
        server: |t| Server { workers: if (t / 5.0) as u64 % 2 == 1 { 1.0 / 3.0 } else { 1.0 }, ..NOMINAL },
        ..BASE
    },
    Scenario {
        name: "noise: 5 % of the calls 10 times as long, in half of the seconds, 1.5x",
        server: |t| Server { odd: if t as u64 % 2 == 1 { 0.05 } else { 0.0 }, ..NOMINAL },
        ..BASE
    },
    Scenario {
        name: "cold start: 4 times as long at first, nominal after 10 s, 3x",
        warm_up: 0.0,
        load: 3.0,
        server: |t| Server { slower: 1.0 + 3.0 * (1.0 - t / 10.0).max(0.0), ..NOMINAL },
        ..BASE
    },
    Scenario { name: "streams: 2 % of the responses for 10 s, 1.5x", streams: 0.02, ..BASE },
];

/// Few important calls, and many that can be rejected.
const MIX: [f64; 4] = [0.1, 0.3, 0.0, 0.6];
/// At ten times the capacity, so that the most important calls are not more than it is.
const MIX_10X: [f64; 4] = [0.05, 0.35, 0.0, 0.6];

/// The scenarios with priorities.
pub(crate) const BY_CLASS: [Scenario; 6] = [
    Scenario { name: "1.5x", load: 1.5, mix: MIX, ..BASE },
    Scenario { name: "3x", load: 3.0, mix: MIX, ..BASE },
    Scenario { name: "10x", load: 10.0, mix: MIX_10X, ..BASE },
    Scenario {
        name: "4 workers of 50 ms, 3x",
        workers: 4,
        mean: Duration::from_millis(50),
        load: 3.0,
        mix: MIX,
        ..BASE
    },
    Scenario {
        name: "half of the workers for 20 s, 1.3x",
        load: 1.3,
        mix: MIX,
        server: |t| Server { workers: if (20.0..40.0).contains(&t) { 0.5 } else { 1.0 }, ..NOMINAL },
        ..BASE
    },
    Scenario {
        name: "10x, a rejection takes 0.5 ms",
        load: 10.0,
        mix: MIX_10X,
        rejection: Duration::from_micros(500),
        ..BASE
    },
];

impl Scenario {
    /// Calls per second that the nominal server can answer.
    pub(crate) fn capacity(&self) -> f64 {
        self.workers as f64 / self.mean.as_secs_f64()
    }

    /// Calls per second that the server can answer at a time in the part that counts.
    pub(crate) fn capacity_at(&self, time: f64) -> f64 {
        let server = (self.server)(time);
        let odd = 1.0 + 9.0 * server.odd;
        (self.workers as f64 * server.workers).round() / (self.mean.as_secs_f64() * server.slower * odd)
    }
}
