use super::{
    config::{Config, Recovery},
    event::{Cause, Counts, Event, State, Transition},
    listeners::Listeners,
    machine::{Machine, Step, Until},
    overdue::Overdue,
    ramp::Ramp,
    round::Probe,
    rules::Rules,
    streak::Streak,
    ticks::Timeline,
    time_window::Category,
    window::Counting,
};
use crate::label::Labels;
use crate::shard::{Counter, Ticket};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Clock, Failure, Name, Outcome, Reason, Rejection, Waiters};
use fastrand::Rng;
use std::{
    any::Any,
    sync::OnceLock,
    time::{Duration, Instant},
};

const POLICY: &str = "circuit breaker";
/// Nanoseconds by which two threads may disagree on the time. More is a clock that was set back.
pub(super) const RACE: u64 = 2_000_000_000;
/// More nanoseconds than any clock reaches.
pub(super) const FOREVER: u64 = u64::MAX;

/// The state of a circuit, as its handle and its permits share it.
///
/// Its fields stay in this order: what every call reads lies between what is hardly ever written,
/// so that no other object is on its cache lines, and that takes no alignment, which would double
/// the size of a small circuit.
#[repr(C)]
pub(super) struct Circuit {
    pub(super) rules: Rules,
    pub(super) hot: Hot,
    pub(super) window: Option<Counting>,
    pub(super) overdue: Option<Box<Overdue>>,
    pub(super) time: Timeline,
    labels: Labels,
    waiters: OnceLock<Waiters>,
    pub(super) listeners: Listeners,
    pub(super) attachment: OnceLock<Box<dyn Any + Send + Sync>>,
    machine: Mutex<Seldom>,
    pub(super) rejected: Counter,
    pub(super) stale: AtomicU64,
}

/// What every call reads. It is written only when something fails or changes, so that healthy
/// threads share the line without disturbing each other.
pub(super) struct Hot {
    /// `generation << 3 | state`.
    pub(super) word: AtomicU64,
    /// In a state that refuses: nothing can be admitted before this many nanoseconds.
    pub(super) refuses_until: AtomicU64,
    /// The same, from the moment on at which it was decided.
    refuses_for: AtomicU64,
    pub(super) streak: Streak,
    pub(super) ramp: Ramp,
    /// Not 0 where calls are timed: because some are slow, or because a listener wants calls.
    timed: AtomicU32,
}

/// The machine of a circuit, which is made when something looks at it for the first time: most
/// circuits of a keyed policy are closed all their lives.
enum Seldom {
    Closed(Recovery, Rng),
    Made(Box<Machine>),
}

impl Seldom {
    fn machine(&mut self) -> &mut Machine {
        if let Self::Closed(config, rng) = self {
            *self = Self::Made(Box::new(Machine::new(config.clone(), rng.clone())));
        }
        match self {
            Self::Made(machine) => machine,
            Self::Closed(..) => unreachable!("it was made just now"),
        }
    }
}

impl Circuit {
    pub(super) fn new(name: Name, config: Config, rng: Rng, shards: usize) -> Self {
        let window = config.window.map(|window| Counting::new(window, shards));
        let rules = Rules::new(&config);
        let overdue = rules.slow_threshold().filter(|_| config.count_overdue);
        Self {
            hot: Hot {
                word: AtomicU64::new(State::Closed as u64),
                refuses_until: AtomicU64::new(0),
                refuses_for: AtomicU64::new(0),
                streak: Streak::default(),
                ramp: Ramp::default(),
                timed: AtomicU32::new(config.slow_threshold.is_some().into()),
            },
            rules,
            window,
            overdue: overdue.map(|threshold| Box::new(Overdue::new(threshold))),
            time: Timeline::default(),
            machine: Mutex::new(Seldom::Closed(config.recovery, rng)),
            labels: Labels::new(POLICY, Some(&name), shards),
            waiters: OnceLock::new(),
            listeners: Listeners::default(),
            attachment: OnceLock::new(),
            rejected: Counter::new(shards),
            stale: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &Name {
        self.labels.name().expect("a circuit has a name")
    }

    pub(super) fn waiters(&self) -> &Waiters {
        self.waiters.get_or_init(Waiters::default)
    }

    /// Runs a step of the machine under the lock, makes its changes visible, and emits their events
    /// outside the lock.
    pub(super) fn change<T>(&self, now: Instant, step: impl FnOnce(&mut Machine, Instant, &mut Vec<Step>) -> T) -> T {
        // Set the origin first; otherwise an open period could end at 0.
        self.nanos(now);
        let mut steps = Vec::new();
        let mut seldom = lock(&self.machine);
        let machine = seldom.machine();
        let before = machine.refuses_until();
        machine.see(now);
        let result = step(machine, now, &mut steps);
        let after = machine.refuses_until();
        let changed = !steps.is_empty() || before != after;
        let expired = std::mem::take(&mut machine.expired);
        if changed {
            self.publish(machine, &steps, now);
        }
        drop(seldom);
        // A lease that is only renewed lets nothing in.
        let renewed = steps.is_empty() && matches!((before, after), (Until::Moment(a), Until::Moment(b)) if a < b);
        if changed && !renewed {
            self.wake();
        }
        (0..expired).for_each(|_| self.listeners.emit(&Event::ProbeLeaseExpired));
        steps.into_iter().for_each(|step| self.emit(step));
        result
    }

    fn wake(&self) {
        if let Some(waiters) = self.waiters.get() {
            waiters.wake();
        }
    }

    /// First the times, then the state: a thread that sees the new state sees its times too. One
    /// that sees the old state with new times asks again under the lock.
    fn publish(&self, machine: &Machine, steps: &[Step], now: Instant) {
        let refuses_until = match machine.refuses_until() {
            Until::Now => 0,
            Until::Moment(until) => self.nanos(until),
            Until::Forever => FOREVER,
        };
        let refuses_for = refuses_until.saturating_sub(self.nanos(now));
        self.hot.refuses_for.store(refuses_for, Ordering::Relaxed);
        self.hot.refuses_until.store(refuses_until, Ordering::Release);
        if let Some(step) = steps.last() {
            let recovers = matches!(step.cause, Cause::ProbesSucceeded(_)) && self.rules.ramp() != 0;
            if recovers {
                self.hot.ramp.begin(self.nanos(now));
            } else {
                self.hot.ramp.end();
            }
        }
        self.hot.word.store(word_of(machine.generation, machine.state), Ordering::SeqCst);
    }

    /// Whether more of a time to refuse is left than there was when it began: the clock was set
    /// back. Moves that time back with it.
    #[inline]
    pub(super) fn clock_was_set_back(&self, left: u64, clock: &impl Clock) -> bool {
        let set_back = left > self.hot.refuses_for.load(Ordering::Relaxed).saturating_add(RACE);
        if set_back {
            self.change(clock.now(), |_, _, _| {});
        }
        set_back
    }

    fn emit(&self, Step { from, to, cause, generation, open_for, last_failure }: Step) {
        let name = self.name().clone();
        let transition = Transition { name, from, to, cause, generation, open_for, last_failure };
        self.listeners.emit(&Event::Transition(transition));
    }

    pub(super) fn listen(&self, of_calls: bool, listener: impl Fn(&Event) -> bool + Send + Sync + 'static) {
        self.listeners.add(of_calls, listener);
        self.set_timed();
    }

    /// What follows from rules that have changed.
    pub(super) fn rules_changed(&self) {
        self.set_timed();
        if let Some(window) = &self.window {
            window.invalidate();
        }
    }

    /// Times calls where a rule or a listener needs it. One that was admitted before is not timed.
    fn set_timed(&self) {
        let timed = self.rules.times_calls() || self.listeners.wants_calls();
        self.hot.timed.store(timed.into(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn times_calls(&self) -> bool {
        self.hot.timed.load(Ordering::Relaxed) != 0
    }

    /// Frees the slot of a probe that was dropped without a clock. What else is due waits for the
    /// next look.
    #[cold]
    #[inline(never)]
    pub(super) fn give_back(&self, probe: Probe) {
        let mut seldom = lock(&self.machine);
        if seldom.machine().give_back(probe) {
            self.hot.refuses_until.store(0, Ordering::Release);
        }
        drop(seldom);
        self.wake();
    }

    #[inline]
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        self.time.nanos(now)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn reject(&self, reason: &'static Reason, retry_after: Option<Duration>) -> Rejection {
        self.rejected.add(1);
        if self.listeners.wants_calls() {
            self.listeners.emit(&Event::NotPermitted { reason, retry_after });
        }
        self.labels.reject(reason).after(retry_after)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn settle_stale(&self, outcome: &Outcome) {
        self.stale.fetch_add(1, Ordering::Relaxed);
        if self.listeners.wants_calls() {
            self.listeners.emit(&Event::Stale(*outcome));
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.hot.word.load(Ordering::Acquire) >> State::BITS
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
                let nanos = if window.is_coarse() { self.time.coarse_nanos(clock) } else { self.nanos(clock.now()) };
                let is_current = || self.generation() == generation;
                window.record(shard, window.tag(nanos, generation), category, is_current);
            }
            Counting::Count(window) => window.record(generation, category),
        }
    }

    pub(super) fn counts(&self, generation: u64, now: Instant) -> Counts {
        self.window.as_ref().map_or_else(Counts::default, |window| window.counts(generation, self.nanos(now)))
    }

    /// After a failure or a slow call: does any rule trip? In the order in which they are reported.
    pub(super) fn verdict(&self, generation: u64, streak: u32, now: Instant) -> Option<Cause> {
        if let Some(cause) = self.rules.fixed_streak(streak) {
            return Some(cause);
        }
        let window = self.window.as_ref()?;
        let check = window.check(generation, self.nanos(now));
        if !check.needed && !self.rules.calibrates(streak) && self.overdue.is_none() {
            return None;
        }
        let counts = self.with_overdue(generation, now);
        let cause = self.rules.calibrated_streak(streak, counts).or_else(|| self.rules.rates(counts));
        if cause.is_none() && self.overdue.is_none() {
            window.skip(check, generation, counts, self.rules.missing(counts));
        }
        cause
    }

    /// Judges the results that are there by rules that have changed.
    pub(super) fn judge(&self, now: Instant) {
        let word = self.hot.word.load(Ordering::Acquire);
        let generation = word >> State::BITS;
        if State::of_word(word) == State::Closed
            && let Some(cause) = self.verdict(generation, self.hot.streak.get(generation), now)
        {
            self.trip(generation, cause, None, now);
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
        self.overdue
            .as_ref()
            .map_or(0, |overdue| overdue.count(overdue.tag(self.time.ticks(now), generation), generation))
    }

    /// Trips, unless the circuit has moved on since `generation`.
    pub(super) fn trip(&self, generation: u64, cause: Cause, failure: Option<Failure>, now: Instant) {
        self.change(now, |machine, now, steps| {
            if machine.generation == generation {
                steps.extend(machine.trip(cause, failure, now));
            }
        });
    }
}

pub(super) fn word_of(generation: u64, state: State) -> u64 {
    generation << State::BITS | state as u64
}
