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
    ticks::ticks,
    time_window::Category,
    window::{Check, Counting},
};
use crate::label::Labels;
use crate::shard::{Counter, Ticket};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::timeline::{MAX_CLOCK_SKEW, Timeline};
use crate::{Clock, Failure, Name, Outcome, Reason, Rejection, Waiters};
use fastrand::Rng;
use std::{
    any::Any,
    sync::OnceLock,
    time::{Duration, Instant},
};

const POLICY: &str = "circuit breaker";
/// A time in nanoseconds that no clock reaches.
pub(super) const FOREVER: u64 = u64::MAX;

/// The state that the handles and permits of a circuit share.
///
/// The order of the fields is fixed: the fields that every call reads lie between fields that are
/// rarely written, so that no other object shares their cache lines. An alignment would do the same
/// but double the size of a small circuit.
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
    machine: Mutex<LazyMachine>,
    pub(super) rejected: Counter,
    pub(super) stale: AtomicU64,
}

/// The fields that every call reads. They are written only if a call fails or the state changes, so
/// threads share their cache line without contention.
pub(super) struct Hot {
    /// `generation << 3 | state`.
    pub(super) word: AtomicU64,
    /// In a state that does not admit all calls: the time in nanoseconds before which no call can
    /// be admitted.
    pub(super) refuses_until: AtomicU64,
    /// The length of that time, from the moment at which `refuses_until` was set.
    refuses_for: AtomicU64,
    pub(super) streak: Streak,
    pub(super) ramp: Ramp,
    /// Whether calls are timed, and by which clock: a [`Timing`].
    timing: AtomicU32,
}

/// How calls are timed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Timing {
    Off = 0,
    /// By the coarse clock, for a slow threshold that is long enough.
    Coarse = 1,
    /// By the precise clock, for a short slow threshold or a listener of calls.
    Precise = 2,
}

/// The machine of a circuit, created when it is needed for the first time: most circuits of a keyed
/// policy are never anything but closed.
enum LazyMachine {
    Closed(Recovery, Rng),
    Created(Box<Machine>),
}

impl LazyMachine {
    fn get(&mut self) -> &mut Machine {
        if let Self::Closed(config, rng) = self {
            *self = Self::Created(Box::new(Machine::new(config.clone(), rng.clone())));
        }
        match self {
            Self::Created(machine) => machine,
            Self::Closed(..) => unreachable!("created above"),
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
                timing: AtomicU32::new(rules.timing() as u32),
            },
            rules,
            window,
            overdue: overdue.map(|threshold| Box::new(Overdue::new(threshold))),
            time: Timeline::default(),
            machine: Mutex::new(LazyMachine::Closed(config.recovery, rng)),
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
        let mut guard = lock(&self.machine);
        let machine = guard.get();
        let before = machine.refuses_until();
        machine.observe(now);
        let result = step(machine, now, &mut steps);
        let after = machine.refuses_until();
        let changed = !steps.is_empty() || before != after;
        let expired = std::mem::take(&mut machine.expired);
        if changed {
            self.publish(machine, &steps, now);
        }
        drop(guard);
        // The renewal of a lease admits no call, so it wakes no waiter.
        let renewed = steps.is_empty() && matches!((before, after), (Until::Moment(a), Until::Moment(b)) if a < b);
        if changed && !renewed {
            self.wake();
        }
        (0..expired).for_each(|_| self.listeners.emit(&Event::ProbeLeaseExpired));
        steps.into_iter().for_each(|step| self.emit(step));
        result
    }

    /// Whether the machine was made. Until then the circuit is closed and always was.
    pub(super) fn has_machine(&self) -> bool {
        matches!(*lock(&self.machine), LazyMachine::Created(_))
    }

    fn wake(&self) {
        // A waiter whose list this thread does not see yet checks the state after it has created
        // the list.
        crate::sync::fence(Ordering::SeqCst);
        if let Some(waiters) = self.waiters.get() {
            waiters.wake();
        }
    }

    /// Writes the state of the machine to the atomics: the times before the state, so that a thread
    /// that reads the new state also reads its times. A thread that reads the old state with the
    /// new times checks again under the lock.
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

    /// Returns whether the clock was set back: `left`, the rest of the time to refuse, is longer
    /// than the whole. If so, moves that time back with the clock.
    #[inline]
    pub(super) fn clock_was_set_back(&self, left: u64, clock: &impl Clock) -> bool {
        let set_back = left > self.hot.refuses_for.load(Ordering::Relaxed).saturating_add(MAX_CLOCK_SKEW);
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
        self.set_timing();
    }

    /// Updates what depends on the rules, after they have changed.
    pub(super) fn rules_changed(&self) {
        self.rules.renew();
        self.set_timing();
        if let Some(window) = &self.window {
            window.invalidate();
        }
    }

    /// Chooses how calls are timed. Calls in flight are not timed anew.
    ///
    /// Looks again after each swap, because the last of several threads may have looked before the
    /// others changed something. Each swap acquires what the threads before it have changed.
    fn set_timing(&self) {
        let wanted = || if self.listeners.wants_calls() { Timing::Precise } else { self.rules.timing() };
        let mut timing = wanted();
        loop {
            self.hot.timing.swap(timing as u32, Ordering::AcqRel);
            let now = wanted();
            if now == timing {
                return;
            }
            timing = now;
        }
    }

    #[inline]
    pub(super) fn times_calls(&self) -> bool {
        self.hot.timing.load(Ordering::Relaxed) != Timing::Off as u32
    }

    /// Returns the nanoseconds since the origin, read as precisely as calls are timed.
    #[inline]
    pub(super) fn timed_nanos(&self, clock: &impl Clock) -> u64 {
        match self.hot.timing.load(Ordering::Relaxed) == Timing::Coarse as u32 {
            true => self.time.coarse_nanos(clock),
            false => self.nanos(clock.now()),
        }
    }

    /// Releases the slot of a probe that was dropped.
    ///
    /// Reads no clock, because the release of a slot does not depend on the time. Leases that have
    /// expired meanwhile are revoked by the next [`change`](Self::change).
    #[cold]
    #[inline(never)]
    pub(super) fn release_slot(&self, probe: Probe) {
        let mut machine = lock(&self.machine);
        if machine.get().release_slot(probe) {
            self.hot.refuses_until.store(0, Ordering::Release);
        }
        drop(machine);
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

    /// Counts a result in the window. The check for a window is inlined, because a circuit without
    /// one gets here with every call.
    #[inline(always)]
    pub(super) fn record(&self, ticket: &Ticket<Self>, generation: u64, category: Category, clock: &impl Clock) {
        if let Some(counting) = &self.window {
            self.record_in(counting, ticket.shard(), generation, category, clock);
        }
    }

    #[inline(never)]
    fn record_in(&self, counting: &Counting, shard: usize, generation: u64, category: Category, clock: &impl Clock) {
        self.count(counting, shard, generation, category, self.result_nanos(clock));
    }

    /// Counts a result in the window, at a time that was read before.
    pub(super) fn record_at(&self, shard: usize, generation: u64, category: Category, nanos: u64) {
        if let Some(counting) = &self.window {
            self.count(counting, shard, generation, category, nanos);
        }
    }

    #[inline]
    fn count(&self, counting: &Counting, shard: usize, generation: u64, category: Category, nanos: u64) {
        match counting {
            Counting::Time(window) => {
                let is_current = || self.generation() == generation;
                window.record(shard, window.tag(nanos, generation), category, is_current);
            }
            Counting::Count(window) => window.record(generation, category),
        }
    }

    /// Returns the time of a result in nanoseconds since the origin, read once and as precisely as
    /// both the window and the timing of calls need it. 0 if neither needs the time.
    pub(super) fn result_nanos(&self, clock: &impl Clock) -> u64 {
        let timing = self.hot.timing.load(Ordering::Relaxed);
        match &self.window {
            _ if timing == Timing::Precise as u32 => self.nanos(clock.now()),
            Some(Counting::Time(window)) if !window.is_coarse() => self.nanos(clock.now()),
            None | Some(Counting::Count(_)) if timing == Timing::Off as u32 && self.overdue.is_none() => 0,
            _ => self.time.coarse_nanos(clock),
        }
    }

    pub(super) fn counts(&self, generation: u64, nanos: u64) -> Counts {
        self.window.as_ref().map_or_else(Counts::default, |window| window.counts(generation, nanos))
    }

    /// Returns the first rule that is met after a failed or slow call: the streak, then the rates.
    pub(super) fn verdict(&self, generation: u64, streak: u32, nanos: u64) -> Option<Cause> {
        if let Some(cause) = self.rules.fixed_streak(streak) {
            return Some(cause);
        }
        let window = self.window.as_ref()?;
        let (version, check) = (self.rules.version(), window.check(generation, nanos));
        if !check.needed && !self.rules.calibrates(streak) && self.overdue.is_none() {
            return None;
        }
        let counts = self.with_overdue(generation, nanos);
        let cause = self.rules.calibrated_streak(streak, counts).or_else(|| self.rules.rates(counts));
        if cause.is_none() && self.overdue.is_none() {
            self.skip(window, check, generation, self.rules.missing(counts), version);
        }
        cause
    }

    /// Skips sums, unless the rules by which results are `missing` are no longer those of
    /// `version`: a bound of the old rules must not outlive the [change](Self::rules_changed).
    pub(super) fn skip(&self, window: &Counting, check: Check, generation: u64, missing: u32, version: u32) {
        window.skip(check, generation, missing);
        if self.rules.version() != version {
            window.invalidate();
        }
    }

    /// Evaluates the present results after the rules have changed.
    pub(super) fn judge(&self, now: Instant) {
        let word = self.hot.word.load(Ordering::Acquire);
        let generation = word >> State::BITS;
        if State::of_word(word) == State::Closed
            && let Some(cause) = self.verdict(generation, self.hot.streak.get(generation), self.nanos(now))
        {
            self.trip(generation, cause, None, now);
        }
    }

    /// Returns the results in the window, with overdue calls counted as slow.
    pub(super) fn with_overdue(&self, generation: u64, nanos: u64) -> Counts {
        let mut counts = self.counts(generation, nanos);
        counts.slow += self.overdue(generation, nanos);
        counts
    }

    /// Returns the calls in flight that have exceeded the slow threshold; 0 if they are not
    /// counted.
    pub(super) fn overdue(&self, generation: u64, nanos: u64) -> u64 {
        self.overdue.as_ref().map_or(0, |overdue| overdue.count(overdue.tag(ticks(nanos), generation), generation))
    }

    /// Trips, unless the state has changed since `generation`.
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
