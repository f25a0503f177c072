use super::{Baseline, Window};
use fastrand::Rng;
use std::collections::VecDeque;

/// The latency without a queue, in nanoseconds, and how it is measured.
#[derive(Clone, Debug)]
pub(super) struct Long {
    latency: Option<f64>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Probes {
        every: u32,
        /// Busy windows until the next probe.
        left: u32,
        /// Busy windows since the last probe, and the largest limit in them.
        since: u32,
        largest: usize,
        probing: Probing,
        rng: Rng,
    },
    Average {
        windows: u32,
        seen: u32,
        /// The limits of the last windows.
        limits: VecDeque<usize>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Probing {
    No,
    /// The calls beyond the lowered limit end.
    Draining,
    Measuring,
}

/// What the limit does after a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Step {
        baseline: f64,
    },
    /// Lower the limit for a probe.
    Probe,
    /// Keep it.
    Hold,
    /// Return to the limit before the probe.
    Resume,
}

/// Weight of a smaller latency. Half, so that one odd window does not decide.
const FALL: f64 = 0.5;
/// Weight of a quiet window with a larger latency. Slow, so that a queue that builds up before half
/// of the limit is in use does not become the baseline.
const QUIET_RISE: f64 = 0.05;
/// Busy windows until the first probe: a limiter that starts under load has measured its queue.
const FIRST_PROBE: u32 = 8;
/// Part of the largest limit since the last probe below which the next one is due, [`PAUSE`]
/// windows after the last at the earliest. A limit falls because of a queue or because the backend
/// has become slower, and only a probe tells which.
const FALLEN: f64 = 0.75;
/// See [`FALLEN`]. With 8, the default took up to 3 s to follow calls that take twice as long.
const PAUSE: u32 = 4;
/// Share by which the time of a probe varies, so that instances do not probe together. Envoy's
/// default.
const JITTER: f64 = 0.15;
/// Windows of which a moving average is the plain mean, as in Netflix's library.
const WARM_UP: u32 = 10;
/// Windows over which the largest limit is remembered.
const RECENT: usize = 10;

impl Long {
    pub(super) fn new(baseline: Baseline, seed: Option<u64>) -> Self {
        let kind = match baseline {
            Baseline::Probes { every } => {
                let rng = seed.map_or_else(Rng::new, Rng::with_seed);
                Kind::Probes { every, left: FIRST_PROBE, since: 0, largest: 0, probing: Probing::No, rng }
            }
            Baseline::Average { windows } => Kind::Average { windows, seen: 0, limits: VecDeque::new() },
        };
        Self { latency: None, kind }
    }

    pub(super) fn latency(&self) -> Option<f64> {
        self.latency
    }

    /// Ends a probe without a result.
    pub(super) fn end_probe(&mut self) {
        if let Kind::Probes { probing, left, every, rng, .. } = &mut self.kind {
            if *probing != Probing::No {
                *left = jittered(*every, rng);
            }
            *probing = Probing::No;
        }
    }

    /// Learns from a window, and returns what to do next.
    pub(super) fn next(&mut self, window: &Window) -> Phase {
        if window.answered == 0 {
            self.end_probe();
            return Phase::Resume;
        }
        let rtt = window.rtt.as_nanos() as f64;
        match &mut self.kind {
            Kind::Probes { every, left, since, largest, probing, rng } => {
                let latency = *self.latency.get_or_insert(rtt);
                let weight = match probing {
                    _ if rtt < latency => FALL,
                    Probing::Measuring => 1.0,
                    Probing::No if !window.is_busy() => QUIET_RISE,
                    _ => 0.0,
                };
                let baseline = latency + weight * (rtt - latency);
                self.latency = Some(baseline);
                match probing {
                    Probing::Draining => {
                        *probing = Probing::Measuring;
                        Phase::Hold
                    }
                    Probing::Measuring => {
                        (*probing, *left) = (Probing::No, jittered(*every, rng));
                        (*since, *largest) = (0, 0);
                        Phase::Resume
                    }
                    Probing::No if !window.is_busy() => {
                        *left = (*left).max(FIRST_PROBE);
                        Phase::Step { baseline }
                    }
                    Probing::No => {
                        *since += 1;
                        *left = left.saturating_sub(1);
                        *largest = window.limit.max(*largest);
                        let has_fallen = (window.limit as f64) < FALLEN * *largest as f64;
                        if *left > 0 && !(has_fallen && *since >= PAUSE) {
                            return Phase::Step { baseline };
                        }
                        *probing = Probing::Draining;
                        Phase::Probe
                    }
                }
            }
            Kind::Average { windows, seen, limits } => {
                *seen = seen.saturating_add(1);
                let average = self.latency.unwrap_or(rtt);
                let factor = if *seen <= WARM_UP { 1.0 / f64::from(*seen) } else { 2.0 / f64::from(*windows + 1) };
                let next = average + factor * (rtt - average);
                limits.push_back(window.limit);
                if limits.len() > RECENT {
                    limits.pop_front();
                }
                // Otherwise the latency of a backend whose capacity fell becomes the baseline.
                let has_fallen = limits.iter().max().is_some_and(|most| window.limit * 2 < *most);
                let mut baseline = if has_fallen { next.min(average) } else { next };
                // As published: follow a load that has ended faster.
                if baseline > 2.0 * rtt {
                    baseline *= 0.95;
                }
                self.latency = Some(baseline);
                Phase::Step { baseline }
            }
        }
    }
}

fn jittered(every: u32, rng: &mut Rng) -> u32 {
    let factor = 1.0 + JITTER * (2.0 * rng.f64() - 1.0);
    ((f64::from(every) * factor).round() as u32).max(1)
}
