//! One run: open-loop arrivals, a limiter, a server with one queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use buttress_core::Criticality;
use fastrand::Rng;

use crate::arm::{Admission, Limiter};
use crate::scenario::{LIGHT, PATIENCE, STREAM, Scenario};

/// Length of a bin of the results.
pub(crate) const BIN: f64 = 0.1;

/// The results of a run, in the part that counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) arrived: u64,
    pub(crate) rejected: u64,
    /// Answers within the patience of their callers.
    pub(crate) good: u64,
    pub(crate) classes: [Class; 4],
    /// Per bin: answers in time by the time of the answer, and the limit at its end.
    pub(crate) bins: Vec<Bin>,
    /// Latencies of admitted calls in seconds, by bin of the answer. A caller that left waited for
    /// its whole patience.
    latencies: Vec<(u32, f32)>,
}

/// The calls of a class of priority.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Class {
    /// Calls that were answered, rejected, or left by their caller.
    pub(crate) ended: u64,
    pub(crate) good: u64,
}

impl Class {
    /// Returns the share of the calls that was answered in time; `None` without calls.
    pub(crate) fn served(self) -> Option<f64> {
        (self.ended > 0).then(|| self.good as f64 / self.ended as f64)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bin {
    pub(crate) good: u32,
    pub(crate) classes: [Class; 4],
    pub(crate) limit: usize,
}

impl Run {
    /// Returns a quantile of the latencies, in seconds, from one bin to another.
    pub(crate) fn quantile(&self, share: f64, bins: std::ops::Range<usize>) -> f64 {
        let latencies = self.latencies.iter().filter(|(bin, _)| bins.contains(&(*bin as usize)));
        let mut latencies: Vec<f32> = latencies.map(|(_, latency)| *latency).collect();
        if latencies.is_empty() {
            return f64::INFINITY;
        }
        let rank = ((latencies.len() - 1) as f64 * share) as usize;
        f64::from(*latencies.select_nth_unstable_by(rank, f32::total_cmp).1)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99, 0..self.bins.len())
    }

    /// Returns the seconds from a step until a second begins with at least 90 % of `capacity` in
    /// answers and a 99th percentile of at most `latency`.
    pub(crate) fn recovery(&self, step: f64, capacity: f64, latency: f64) -> f64 {
        let second = (1.0 / BIN).round() as usize;
        let first = (step / BIN).round() as usize;
        let recovered = (first..self.bins.len().saturating_sub(second)).find(|begin| {
            let bins = *begin..*begin + second;
            let good: u32 = self.bins[bins.clone()].iter().map(|bin| bin.good).sum();
            f64::from(good) >= 0.9 * capacity && self.quantile(0.99, bins) <= latency
        });
        recovered.map_or(f64::INFINITY, |begin| (begin - first) as f64 * BIN)
    }
}

#[derive(Clone, Copy, Debug)]
struct Call {
    arrived: Duration,
    class: Criticality,
    /// Whether the caller waits for the head.
    waits: bool,
    /// Whether it waits for its admission.
    is_queued: bool,
    /// Whether it was served, or its caller left: its number may be used again when both.
    open: u8,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Served(usize),
    Rejected,
    StreamEnd(usize),
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    limiter: &'a mut dyn Limiter,
    rng: Rng,
    calls: Vec<Call>,
    free: Vec<usize>,
    queue: VecDeque<usize>,
    /// Rejections that take time and wait for a worker.
    rejections: usize,
    busy: usize,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    /// When callers leave, in the order of their arrival.
    patience: VecDeque<(Duration, usize)>,
    run: Run,
    begin: Duration,
}

/// Runs a scenario with a limiter.
pub(crate) fn run(scenario: &Scenario, limiter: &mut dyn Limiter, seed: u64) -> Run {
    let begin = Duration::from_secs_f64(scenario.warm_up);
    let bins = (scenario.lasts / BIN).round() as usize;
    let mut simulation = Simulation {
        scenario,
        limiter,
        rng: Rng::with_seed(seed),
        calls: Vec::new(),
        free: Vec::new(),
        queue: VecDeque::new(),
        rejections: 0,
        busy: 0,
        events: BinaryHeap::new(),
        patience: VecDeque::new(),
        run: Run { bins: vec![Bin::default(); bins], ..Run::default() },
        begin,
    };
    simulation.simulate(begin + Duration::from_secs_f64(scenario.lasts));
    simulation.run
}

impl Simulation<'_> {
    fn simulate(&mut self, end: Duration) {
        let mut arrival = self.pause(Duration::ZERO);
        loop {
            let event = self.events.peek().map_or(Duration::MAX, |Reverse((at, _))| *at);
            let leaves = self.patience.front().map_or(Duration::MAX, |(at, _)| *at);
            let now = arrival.min(event).min(leaves);
            if now >= end {
                return;
            }
            if now == event {
                if let Some(Reverse((_, event))) = self.events.pop() {
                    self.happen(now, event);
                }
            } else if now == leaves {
                if let Some((_, id)) = self.patience.pop_front() {
                    self.leave(now, id);
                }
            } else {
                self.arrive(now);
                arrival = now + self.pause(now);
            }
            while let Some((id, is_admitted)) = self.limiter.decided() {
                self.decide(now, id, is_admitted);
            }
        }
    }

    /// Draws the time to the next arrival: a Poisson process.
    fn pause(&mut self, now: Duration) -> Duration {
        let load = if now < self.begin { LIGHT } else { self.scenario.load };
        let rate = self.scenario.capacity() * load;
        Duration::from_secs_f64(-(1.0 - self.rng.f64()).ln() / rate)
    }

    fn service_time(&mut self, now: Duration) -> Duration {
        let server = (self.scenario.server)(self.time(now));
        // Box-Muller.
        let (a, b) = (1.0 - self.rng.f64(), self.rng.f64());
        let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        let sigma = self.scenario.sigma;
        let odd = if self.rng.f64() < server.odd { 10.0 } else { 1.0 };
        self.scenario.mean.mul_f64((sigma * normal - sigma * sigma / 2.0).exp() * server.slower * odd)
    }

    /// Returns the time in the part that counts. Before it, the server is as at its beginning.
    fn time(&self, now: Duration) -> f64 {
        now.saturating_sub(self.begin).as_secs_f64()
    }

    fn bin(&self, now: Duration) -> Option<usize> {
        let bin = (now.checked_sub(self.begin)?.as_secs_f64() / BIN) as usize;
        (bin < self.run.bins.len()).then_some(bin)
    }

    fn arrive(&mut self, now: Duration) {
        let class = self.class();
        self.run.arrived += u64::from(now >= self.begin);
        let id = self.free.pop().unwrap_or(self.calls.len());
        let admission = self.limiter.admit(now, id, class.into());
        if let (Some(bin), Some(limit)) = (self.bin(now), self.limiter.limit()) {
            self.run.bins[bin].limit = limit;
        }
        let is_queued = admission == Admission::Queued;
        let call = Call { arrived: now, class, waits: true, is_queued, open: 2 };
        match self.calls.get_mut(id) {
            Some(slot) => *slot = call,
            None => self.calls.push(call),
        }
        if admission == Admission::Rejected || admission == Admission::Unsent {
            self.free.push(id);
            return self.reject(now, class, admission == Admission::Rejected);
        }
        self.patience.push_back((now + self.scenario.mean * PATIENCE, id));
        if !is_queued {
            self.queue.push_back(id);
            self.serve(now);
        }
    }

    fn class(&mut self) -> Criticality {
        let mut rest = self.rng.f64();
        let mix = Criticality::ALL.iter().zip(self.scenario.mix);
        let mut classes = mix.filter(|(_, share)| *share > 0.0);
        let found = classes.find(|(_, share)| {
            rest -= share;
            rest < 0.0
        });
        *found.map_or(&Criticality::Sheddable, |(class, _)| class)
    }

    fn reject(&mut self, now: Duration, class: Criticality, by_server: bool) {
        self.ended(now, class, false);
        self.run.rejected += u64::from(now >= self.begin);
        if by_server && !self.scenario.rejection.is_zero() {
            self.rejections += 1;
            self.serve(now);
        }
    }

    /// A call that waited for its admission has it, or is rejected.
    fn decide(&mut self, now: Duration, id: usize, is_admitted: bool) {
        let call = &mut self.calls[id];
        call.is_queued = false;
        if is_admitted {
            self.queue.push_back(id);
            return self.serve(now);
        }
        call.waits = false;
        let class = call.class;
        self.limiter.end(now, id, false);
        self.close(id);
        self.reject(now, class, true);
    }

    /// Gives the first calls in the queue to workers, also those whose caller has left: a server
    /// seldom notices.
    fn serve(&mut self, now: Duration) {
        let share = (self.scenario.server)(self.time(now)).workers;
        let workers = (self.scenario.workers as f64 * share).round() as usize;
        while self.busy < workers && self.rejections > 0 {
            (self.busy, self.rejections) = (self.busy + 1, self.rejections - 1);
            self.events.push(Reverse((now + self.scenario.rejection, Event::Rejected)));
        }
        while self.busy < workers
            && let Some(id) = self.queue.pop_front()
        {
            self.busy += 1;
            let served = now + self.service_time(now);
            self.events.push(Reverse((served, Event::Served(id))));
        }
    }

    fn happen(&mut self, now: Duration, event: Event) {
        match event {
            Event::Served(id) => {
                self.busy -= 1;
                let Call { arrived, waits, .. } = self.calls[id];
                if waits {
                    self.calls[id].waits = false;
                    self.answered(now, id, now - arrived, true);
                    self.limiter.head(now, id);
                    if self.rng.f64() < self.scenario.streams {
                        self.events.push(Reverse((now + STREAM, Event::StreamEnd(id))));
                    } else {
                        self.limiter.end(now, id, true);
                        self.close(id);
                    }
                } else {
                    self.close(id);
                }
                self.serve(now);
            }
            Event::Rejected => {
                self.busy -= 1;
                self.serve(now);
            }
            Event::StreamEnd(id) => {
                self.limiter.end(now, id, true);
                self.close(id);
            }
        }
    }

    /// The caller of `id` has no more patience.
    fn leave(&mut self, now: Duration, id: usize) {
        if self.calls[id].waits {
            self.calls[id].waits = false;
            self.answered(now, id, self.scenario.mean * PATIENCE, false);
            self.limiter.end(now, id, false);
        }
        if std::mem::take(&mut self.calls[id].is_queued) {
            // It is not in the queue of the server.
            self.close(id);
        }
        self.close(id);
    }

    /// Counts a call that was answered in time, or not.
    fn answered(&mut self, now: Duration, id: usize, latency: Duration, in_time: bool) {
        self.ended(now, self.calls[id].class, in_time);
        if let Some(bin) = self.bin(now) {
            self.run.good += u64::from(in_time);
            self.run.bins[bin].good += u32::from(in_time);
            self.run.latencies.push((bin as u32, latency.as_secs_f32()));
        }
    }

    /// Counts a call of a class that was answered in time, or not, or was rejected.
    fn ended(&mut self, now: Duration, class: Criticality, in_time: bool) {
        if let Some(bin) = self.bin(now) {
            for classes in [&mut self.run.classes, &mut self.run.bins[bin].classes] {
                classes[class as usize].ended += 1;
                classes[class as usize].good += u64::from(in_time);
            }
        }
    }

    /// Frees the number of a call, once it was served (and has streamed) and its patience is over.
    fn close(&mut self, id: usize) {
        self.calls[id].open -= 1;
        if self.calls[id].open == 0 {
            self.free.push(id);
        }
    }
}
