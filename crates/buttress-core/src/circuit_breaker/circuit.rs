use super::{
    config::{Config, Window},
    count_window::CountWindow,
    event::{Cause, Counts, Event, State, Transition},
    listeners::Listeners,
    machine::{Machine, Probe, Step, Until},
    overdue::Overdue,
    rules::Rules,
    time_window::{Category, TimeWindow},
};
use crate::rejection::Labels;
use crate::shard::{Counter, Ticket};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Clock, Name, Outcome, Reason, Rejection, Waiters};
use fastrand::Rng;
use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

const POLICY: &str = "circuit breaker";
/// Nanoseconds of a tick: to within these, calls are timed.
pub(super) const TICK: u64 = 10_000;
/// More nanoseconds than any clock reaches.
pub(super) const FOREVER: u64 = u64::MAX;

/// The state of a circuit, as its handle and its permits share it.
pub(super) struct Circuit {
    pub(super) hot: Hot,
    pub(super) rules: Rules,
    pub(super) window: Option<Counting>,
    pub(super) overdue: Option<Overdue>,
    /// The circuit counts nanoseconds from the first moment it hears of.
    origin: OnceLock<Instant>,
    /// The same moment in the nanoseconds of a clock that counts its own.
    coarse_origin: OnceLock<u64>,
    machine: Mutex<Machine>,
    pub(super) name: Name,
    labels: Labels,
    pub(super) waiters: Waiters,
    pub(super) listeners: Listeners,
    pub(super) rejected: Counter,
    pub(super) stale: Counter,
}

/// What every call reads. It is written only when something fails or changes, so that healthy threads share the line without
/// disturbing each other.
#[repr(align(128))]
pub(super) struct Hot {
    /// `generation << 3 | state`.
    pub(super) word: AtomicU64,
    /// In a state that refuses: nothing can be admitted before this many nanoseconds.
    pub(super) closed_until: AtomicU64,
    /// `generation << 32 | failures in a row`.
    in_a_row: AtomicU64,
    /// While the circuit recovers: the nanoseconds at which it began to. 0 when it does not.
    pub(super) ramp_from: AtomicU64,
    /// Calls that asked while it recovers.
    asked: AtomicU32,
    /// Not 0 where calls are timed: because some are slow, or because somebody hears of them.
    timed: AtomicU32,
}

pub(super) enum Counting {
    Time(TimeWindow),
    Count(CountWindow),
}

impl Circuit {
    pub(super) fn new(name: Name, config: Config, rng: Rng, shards: usize) -> Self {
        let window = config.window.map(|window| match window {
            Window::Time(time) => Counting::Time(TimeWindow::new(time, shards)),
            Window::Count(results) => Counting::Count(CountWindow::new(results)),
        });
        Self {
            hot: Hot {
                word: AtomicU64::new(State::Closed as u64),
                closed_until: AtomicU64::new(0),
                in_a_row: AtomicU64::new(0),
                ramp_from: AtomicU64::new(0),
                asked: AtomicU32::new(0),
                timed: AtomicU32::new(config.slow_threshold.is_some().into()),
            },
            rules: Rules::new(&config),
            window,
            overdue: config.slow_threshold.filter(|_| config.count_overdue).map(Overdue::new),
            origin: OnceLock::new(),
            coarse_origin: OnceLock::new(),
            machine: Mutex::new(Machine::new(config, rng)),
            labels: Labels::new(POLICY, Some(&name), shards),
            name,
            waiters: Waiters::default(),
            listeners: Listeners::default(),
            rejected: Counter::new(shards),
            stale: Counter::new(shards),
        }
    }

    /// Runs a step of the machine under the lock, makes its changes visible, and tells everybody outside the lock.
    pub(super) fn change<T>(&self, now: Instant, step: impl FnOnce(&mut Machine, Instant, &mut Vec<Step>) -> T) -> T {
        // The beginning of time must not be the end of an open time.
        self.nanos(now);
        let mut steps = Vec::new();
        let mut machine = lock(&self.machine);
        let before = machine.closed();
        let result = step(&mut machine, now, &mut steps);
        let changed = !steps.is_empty() || before != machine.closed();
        let expired = std::mem::take(&mut machine.expired);
        if changed {
            self.publish(&machine, &steps, now);
        }
        drop(machine);
        if changed {
            self.waiters.wake();
        }
        (0..expired).for_each(|_| self.listeners.tell(&Event::ProbeLeaseExpired));
        steps.into_iter().for_each(|step| self.tell(step));
        result
    }

    /// First the times, then the state: whoever sees the new state sees its times too. Who sees the old state with new times asks again
    /// under the lock.
    fn publish(&self, machine: &Machine, steps: &[Step], now: Instant) {
        let closed_until = match machine.closed() {
            Until::Now => 0,
            Until::Moment(until) => self.nanos(until),
            Until::Forever => FOREVER,
        };
        self.hot.closed_until.store(closed_until, Ordering::Release);
        if let Some(step) = steps.last() {
            let recovers = matches!(step.cause, Cause::ProbesSucceeded(_)) && self.rules.ramp() != 0;
            // 0 means that it does not recover, so the very first nanosecond is taken for the second.
            self.hot.ramp_from.store(if recovers { self.nanos(now).max(1) } else { 0 }, Ordering::Release);
            self.hot.asked.store(0, Ordering::Relaxed);
        }
        self.hot.word.store(word_of(machine.generation, machine.state), Ordering::SeqCst);
    }

    fn tell(&self, Step { from, to, cause, generation, open_for }: Step) {
        let transition = Transition { name: self.name.clone(), from, to, cause, generation, open_for };
        self.listeners.tell(&Event::Transition(transition));
    }

    pub(super) fn listen(&self, of_calls: bool, hear: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.listeners.add(of_calls, hear);
        self.set_timed();
    }

    /// What follows from rules that have changed.
    pub(super) fn rules_changed(&self) {
        self.set_timed();
        if let Some(Counting::Count(window)) = &self.window {
            window.look_again();
        }
    }

    /// Calls are timed where that matters to somebody. One that was admitted before is not.
    fn set_timed(&self) {
        let timed = self.rules.times_calls() || self.listeners.hear_of_calls();
        self.hot.timed.store(timed.into(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn times_calls(&self) -> bool {
        self.hot.timed.load(Ordering::Relaxed) != 0
    }

    /// Frees the slot of a probe that was dropped without a clock. What else is due waits for the next look.
    #[cold]
    #[inline(never)]
    pub(super) fn give_back(&self, probe: Probe) {
        let mut machine = lock(&self.machine);
        if machine.give_back(probe) {
            self.hot.closed_until.store(0, Ordering::Release);
        }
        drop(machine);
        self.waiters.wake();
    }

    #[inline]
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        super::nanos(now.saturating_duration_since(*self.origin.get_or_init(|| now)))
    }

    /// The time by the coarse clock.
    #[inline]
    pub(super) fn coarse_nanos(&self, clock: &impl Clock) -> u64 {
        match (clock.coarse_nanos(), self.coarse_origin.get()) {
            (Some(nanos), Some(origin)) => nanos.saturating_sub(*origin),
            (Some(_), None) => self.first_coarse_nanos(clock),
            (None, _) => self.nanos(clock.coarse()),
        }
    }

    #[cold]
    #[inline(never)]
    fn first_coarse_nanos(&self, clock: &impl Clock) -> u64 {
        let now = clock.now();
        let nanos = self.nanos(now);
        if let Some(zero) = clock.zero() {
            // What the clock's own count was at the circuit's origin. A circuit that was made before the clock's zero cannot say it, and goes by instants.
            if let Some(origin) = super::nanos(now.saturating_duration_since(zero)).checked_sub(nanos) {
                let _ = self.coarse_origin.set(origin);
            }
        }
        nanos
    }

    #[cold]
    #[inline(never)]
    pub(super) fn reject(&self, reason: Reason, retry_after: Option<Duration>) -> Rejection {
        self.rejected.add(1);
        if self.listeners.hear_of_calls() {
            self.listeners.tell(&Event::NotPermitted { reason, retry_after });
        }
        self.labels.reject(reason).after(retry_after)
    }

    /// Whether a recovering circuit admits this call: a tenth of them at first, all of them at the end. Every call counts, and those are
    /// admitted at which the growing share completes another whole one, so the share is exact without a die.
    #[cold]
    #[inline(never)]
    pub(super) fn ramp_admits(&self, ramp_from: u64, now: Instant) -> bool {
        const SCALE: u64 = 1_000_000;
        let ramp = self.rules.ramp().max(1);
        let elapsed = self.nanos(now).saturating_sub(ramp_from);
        if elapsed >= ramp {
            let _ = self.hot.ramp_from.compare_exchange(ramp_from, 0, Ordering::Relaxed, Ordering::Relaxed);
            return true;
        }
        let grown = (u128::from(elapsed) * u128::from(SCALE) / u128::from(ramp)) as u64;
        let share = grown.max(SCALE / 10);
        let n = u64::from(self.hot.asked.fetch_add(1, Ordering::Relaxed));
        (n + 1) * share / SCALE > n * share / SCALE
    }

    #[cold]
    #[inline(never)]
    pub(super) fn settle_stale(&self, outcome: &Outcome) {
        self.stale.add(1);
        if self.listeners.hear_of_calls() {
            self.listeners.tell(&Event::Stale(*outcome));
        }
    }

    /// The time in ticks of 10 microseconds, as 32 bits hold it: they wrap after twelve hours, and it is never 0, which stands for a call
    /// that is not timed.
    #[inline]
    pub(super) fn ticks(&self, now: Instant) -> u64 {
        u64::from((self.nanos(now) / TICK) as u32).max(1)
    }

    /// For how many nanoseconds a call has been out that started at `started` ticks.
    #[inline]
    pub(super) fn elapsed(&self, started: u64, now: Instant) -> u64 {
        let elapsed = (self.ticks(now) as u32).wrapping_sub(started as u32);
        // Those whose clock runs behind started just now.
        if elapsed > u32::MAX / 2 { 0 } else { u64::from(elapsed) * TICK }
    }

    pub(super) fn generation(&self) -> u64 {
        self.hot.word.load(Ordering::Acquire) >> State::BITS
    }

    pub(super) fn in_a_row(&self, generation: u64) -> u32 {
        let word = self.hot.in_a_row.load(Ordering::Relaxed);
        if (word >> 32) as u32 == generation as u32 { word as u32 } else { 0 }
    }

    /// A success ends a row. Writes only where there is one.
    #[inline]
    pub(super) fn end_row(&self, generation: u64) {
        let row = self.hot.in_a_row.load(Ordering::Relaxed);
        if (row >> 32) as u32 == generation as u32 && row as u32 != 0 {
            // When it fails, a failure came in between, and this success was before it.
            let _ = self.hot.in_a_row.compare_exchange(row, generation << 32, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    pub(super) fn lengthen_row(&self, generation: u64) -> u32 {
        let mut word = self.hot.in_a_row.load(Ordering::Relaxed);
        loop {
            let next = match ((word >> 32) as u32).wrapping_sub(generation as u32) {
                0 => generation << 32 | u64::from((word as u32).saturating_add(1)),
                // The circuit has moved on since this result was found current.
                1..=0x7fff_ffff => return 0,
                _ => generation << 32 | 1,
            };
            match self.hot.in_a_row.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return next as u32,
                Err(now) => word = now,
            }
        }
    }

    /// A circuit that has no window is asked here on every call, so this much is in line.
    #[inline(always)]
    pub(super) fn record(&self, ticket: &Ticket<Self>, generation: u64, category: Category, clock: &impl Clock) {
        if let Some(counting) = &self.window {
            self.record_in(counting, ticket.shard(), generation, category, clock);
        }
    }

    #[inline(never)]
    fn record_in(&self, counting: &Counting, shard: usize, generation: u64, category: Category, clock: &impl Clock) {
        match counting {
            Counting::Time(window) => {
                let nanos = if window.is_coarse() { self.coarse_nanos(clock) } else { self.nanos(clock.now()) };
                window.record(shard, window.tag(nanos, generation), category);
            }
            Counting::Count(window) => window.record(generation, category),
        }
    }

    pub(super) fn counts(&self, generation: u64, now: Instant) -> Counts {
        match &self.window {
            None => Counts::default(),
            Some(Counting::Time(window)) => window.counts(window.tag(self.nanos(now), generation)),
            Some(Counting::Count(window)) => window.counts(generation),
        }
    }

    /// After a failure or a slow call: does any rule trip? In the order in which they are reported.
    pub(super) fn verdict(&self, generation: u64, row: u32, now: Instant) -> Option<Cause> {
        if let Some(cause) = self.rules.row(row) {
            return Some(cause);
        }
        match self.window.as_ref()? {
            Counting::Time(_) => self.rules.rates(self.with_overdue(generation, now)),
            Counting::Count(window) => {
                let number = window.due(generation)?;
                let counts = self.with_overdue(generation, now);
                let cause = self.rules.rates(counts);
                if cause.is_none() && self.overdue.is_none() {
                    window.rest(generation, number, self.rules.missing(counts));
                }
                cause
            }
        }
    }

    /// The results in the window, and the calls that are overdue, as slow ones.
    pub(super) fn with_overdue(&self, generation: u64, now: Instant) -> Counts {
        let mut counts = self.counts(generation, now);
        counts.slow += self.overdue(generation, now);
        counts
    }

    /// Calls in flight past the slow threshold, where they are counted.
    pub(super) fn overdue(&self, generation: u64, now: Instant) -> u64 {
        self.overdue.as_ref().map_or(0, |overdue| overdue.count(overdue.tag(self.ticks(now), generation), generation))
    }

    /// Trips, unless the circuit has moved on since `generation`.
    pub(super) fn trip(&self, generation: u64, cause: Cause, hint: Option<Duration>, now: Instant) {
        self.change(now, |machine, now, steps| {
            if machine.generation == generation {
                steps.extend(machine.trip(cause, hint, now));
            }
        });
    }
}

pub(super) fn word_of(generation: u64, state: State) -> u64 {
    generation << State::BITS | state as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_was_overtaken_by_a_transition_leaves_the_row_alone() {
        let circuit = Circuit::new("test".into(), Config::default(), Rng::with_seed(1), 1);
        assert_eq!((circuit.lengthen_row(5), circuit.lengthen_row(5)), (1, 2));
        assert_eq!(circuit.lengthen_row(4), 0);
        circuit.end_row(4);
        assert_eq!((circuit.in_a_row(5), circuit.in_a_row(4)), (2, 0));
        assert_eq!(circuit.lengthen_row(6), 1, "a new generation begins a row of its own");
        circuit.end_row(6);
        assert_eq!((circuit.in_a_row(6), circuit.lengthen_row(6)), (0, 1));
    }
}
