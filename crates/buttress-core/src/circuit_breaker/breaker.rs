use super::{
    config::{Builder, Config, OnDrop, Window},
    count_window::CountWindow,
    event::{Cause, Counts, Snapshot, State, Transition},
    machine::{Machine, Step, Until, Verdict},
    time_window::{Category, TimeWindow},
};
use crate::clock::Memo;
use crate::shard::{Counter, Sharded, Ticket, shards};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::{Admit, Clock, Ignored, Name, Outcome, Permit, Policy, Reason, Refused, Rejection, Waiters};
use fastrand::Rng;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

const POLICY: &str = "circuit breaker";
const FOREVER: u64 = u64::MAX;

/// A circuit breaker: a cheap handle; clones share one circuit. See the [module](super) for how it works.
///
/// ```
/// use buttress_core::{CircuitBreaker, Failure, FailureKind, Permit, Policy, circuit_breaker::State};
/// use std::time::{Duration, Instant};
///
/// let breaker = CircuitBreaker::builder("payments").consecutive_failures(2).build()?;
/// let now = Instant::now();
/// for _ in 0..2 {
///     breaker.reserve(&now).unwrap().settle(&Failure::new(FailureKind::Connect).into(), &now);
/// }
/// assert_eq!(breaker.state(&now), State::Open);
/// assert!(breaker.reserve(&now).unwrap_err().retry_after().is_some());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreaker(Sharded<Core>);

struct Core {
    hot: Hot,
    config: Arc<Config>,
    window: Option<Counting>,
    /// The breaker counts nanoseconds from the first moment it hears of.
    origin: OnceLock<Instant>,
    machine: Mutex<Machine>,
    name: Name,
    waiters: Waiters,
    listeners: Mutex<Vec<Listener>>,
    rejected: Counter,
    stale: Counter,
}

/// What every call reads. It is written only when something fails or changes, so that healthy threads share the line without disturbing each other.
#[repr(align(128))]
struct Hot {
    /// `generation << 3 | state`.
    word: AtomicU64,
    /// In a state that refuses: nothing can be admitted before this many nanoseconds.
    closed_until: AtomicU64,
    /// `generation << 32 | failures in a row`.
    in_a_row: AtomicU64,
    /// Nanoseconds; [`FOREVER`] when nothing is slow.
    slow: u64,
}

enum Counting {
    Time(TimeWindow),
    Count(CountWindow),
}

type Listener = Arc<dyn Fn(&Transition) -> bool + Send + Sync>;

impl CircuitBreaker {
    /// With the defaults of [`Builder`]: 5 failures in a row, or half of at least 20 calls in 10 seconds.
    pub fn new(name: impl Into<Name>) -> Self {
        Self::with_config(name.into(), Config::default(), None)
    }

    /// Starts from the defaults.
    pub fn builder(name: impl Into<Name>) -> Builder {
        Builder::new(name.into())
    }

    pub(super) fn with_config(name: Name, config: Config, seed: Option<u64>) -> Self {
        let (config, shards) = (Arc::new(config), shards());
        let window = config.window.map(|window| match window {
            Window::Time(time) => Counting::Time(TimeWindow::new(time, shards)),
            Window::Count(results) => Counting::Count(CountWindow::new(results)),
        });
        let hot = Hot {
            word: AtomicU64::new(State::Closed as u64),
            closed_until: AtomicU64::new(0),
            in_a_row: AtomicU64::new(0),
            slow: config.slow_threshold.map_or(FOREVER, nanos),
        };
        let rng = seed.map_or_else(Rng::new, Rng::with_seed);
        let core = Core {
            hot,
            machine: Mutex::new(Machine::new(config.clone(), rng)),
            config,
            window,
            origin: OnceLock::new(),
            name,
            waiters: Waiters::default(),
            listeners: Mutex::default(),
            rejected: Counter::new(shards),
            stale: Counter::new(shards),
        };
        Self(Sharded::new(shards, core))
    }

    /// The name, as it stands in rejections, logs and metrics.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// The state at this moment. An open circuit whose time is over stays open until a call comes that can be its probe.
    pub fn state(&self, clock: &impl Clock) -> State {
        match State::of_word(self.0.hot.word.load(Ordering::Acquire)) {
            State::HalfOpen => self.0.change(clock.now(), |machine, now, steps| {
                machine.roll(now, steps);
                machine.state
            }),
            state => state,
        }
    }

    /// One look at everything.
    pub fn snapshot(&self, clock: &impl Clock) -> Snapshot {
        let (core, now) = (&*self.0, clock.now());
        let (state, generation, openings, closed) = core.change(now, |machine, now, steps| {
            machine.roll(now, steps);
            (machine.state, machine.generation, machine.openings, machine.closed())
        });
        Snapshot {
            name: core.name.clone(),
            state,
            generation,
            counts: core.counts(generation, now),
            consecutive_failures: core.in_a_row(generation),
            openings,
            retry_after: closed.from(now),
            rejected: core.rejected.sum(),
            stale: core.stale.sum(),
        }
    }

    /// Refuses every call until another of these methods is called.
    pub fn force_open(&self, clock: &impl Clock) {
        self.set(State::ForcedOpen, clock);
    }

    /// Lets every call through and counts nothing, until another of these methods is called.
    pub fn disable(&self, clock: &impl Clock) {
        self.set(State::Disabled, clock);
    }

    /// Lets every call through and counts, but never trips, until another of these methods is called.
    pub fn metrics_only(&self, clock: &impl Clock) {
        self.set(State::MetricsOnly, clock);
    }

    /// Closes the circuit and forgets all results.
    pub fn reset(&self, clock: &impl Clock) {
        self.set(State::Closed, clock);
    }

    /// Opens the circuit for `time`; then it probes as after a trip.
    pub fn open_for(&self, time: Duration, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, now, steps| steps.push(machine.open_for(time, now)));
    }

    /// Calls `listener` with every change of state, on the thread that caused it, outside any lock. A panic in it is contained.
    /// It stays for as long as the circuit.
    pub fn on_transition(&self, listener: impl Fn(&Transition) + Send + Sync + 'static) {
        self.on_transition_while(move |transition| {
            listener(transition);
            true
        });
    }

    /// The same, for as long as `listener` returns true.
    pub fn on_transition_while(&self, listener: impl Fn(&Transition) -> bool + Send + Sync + 'static) {
        lock(&self.0.listeners).push(Arc::new(listener));
    }

    fn set(&self, state: State, clock: &impl Clock) {
        self.0.change(clock.now(), |machine, _, steps| steps.extend(machine.set(state)));
    }

    #[cold]
    fn admit_cold(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        let (core, now) = (&*self.0, clock.now());
        let word = core.hot.word.load(Ordering::Acquire);
        let closed_until = core.hot.closed_until.load(Ordering::Acquire);
        let at = core.nanos(now);
        let state = State::of_word(word);
        if !state.admits_all() && at < closed_until {
            return Err(core.reject(state, (closed_until != FOREVER).then(|| Duration::from_nanos(closed_until - at))));
        }
        let (probe, word, closed) = core.change(now, |machine, now, steps| {
            let probe = if machine.state.admits_all() { None } else { Some(machine.take_probe(now, steps)) };
            (probe, word_of(machine.generation, machine.state), machine.closed())
        });
        match probe {
            None => Ok(self.permit(word, None, clock)),
            Some(Some(probe)) => Ok(self.permit(word, Some(probe), clock)),
            Some(None) => Err(core.reject(State::of_word(word), closed.from(now))),
        }
    }

    #[inline]
    fn permit(&self, word: u64, probe: Option<u64>, clock: &impl Clock) -> CircuitBreakerPermit {
        let ticket = self.0.ticket();
        let started = (ticket.hot.slow != FOREVER).then(|| clock.now());
        CircuitBreakerPermit { ticket, word, started, probe }
    }
}

impl Policy for CircuitBreaker {
    type Permit = CircuitBreakerPermit;

    #[inline]
    fn reserve(&self, clock: &impl Clock) -> Result<CircuitBreakerPermit, Rejection> {
        let word = self.0.hot.word.load(Ordering::Acquire);
        if State::of_word(word).admits_all() { Ok(self.permit(word, None, clock)) } else { self.admit_cold(clock) }
    }

    #[inline]
    fn peek(&self, clock: &impl Clock) -> Result<(), Refused> {
        let hot = &self.0.hot;
        if State::of_word(hot.word.load(Ordering::Acquire)).admits_all() {
            return Ok(());
        }
        let (now, closed_until) = (self.0.nanos(clock.now()), hot.closed_until.load(Ordering::Acquire));
        if now >= closed_until {
            return Ok(());
        }
        Err(Refused { retry_after: (closed_until != FOREVER).then(|| Duration::from_nanos(closed_until - now)) })
    }

    fn waiters(&self) -> Option<&Waiters> {
        Some(&self.0.waiters)
    }
}

impl<Req: ?Sized> Admit<Req> for CircuitBreaker {}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.0.name)
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Runs a step of the machine under the lock, makes its changes visible, and tells everybody outside the lock.
    fn change<T>(&self, now: Instant, step: impl FnOnce(&mut Machine, Instant, &mut Vec<Step>) -> T) -> T {
        let mut steps = Vec::new();
        let mut machine = lock(&self.machine);
        let before = machine.closed();
        let result = step(&mut machine, now, &mut steps);
        let after = machine.closed();
        if !steps.is_empty() || before != after {
            let closed_until = match after {
                Until::Now => 0,
                Until::Moment(until) => self.nanos(until),
                Until::Forever => FOREVER,
            };
            // First the time, then the state: whoever sees the new state sees its time too. Who sees the old state with the new time
            // asks again under the lock.
            self.hot.closed_until.store(closed_until, Ordering::Release);
            self.hot.word.store(word_of(machine.generation, machine.state), Ordering::SeqCst);
        }
        drop(machine);
        if !steps.is_empty() || before != after {
            self.waiters.wake();
        }
        steps.into_iter().for_each(|step| self.tell(step));
        result
    }

    fn tell(&self, Step { from, to, cause, generation, open_for }: Step) {
        let listeners = lock(&self.listeners).clone();
        if listeners.is_empty() {
            return;
        }
        let transition = Transition { name: self.name.clone(), from, to, cause, generation, open_for };
        for listener in listeners {
            // A listener is for watching. If it breaks, the call that caused the transition goes on.
            let stays = catch_unwind(AssertUnwindSafe(|| listener(&transition))).unwrap_or(true);
            if !stays {
                lock(&self.listeners).retain(|known| !Arc::ptr_eq(known, &listener));
            }
        }
    }

    #[inline]
    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(*self.origin.get_or_init(|| now)))
    }

    fn reject(&self, state: State, retry_after: Option<Duration>) -> Rejection {
        self.rejected.add(1);
        let reason = match state {
            State::ForcedOpen => Reason::ForcedOpen,
            State::HalfOpen => Reason::ProbesExhausted,
            _ => Reason::CircuitOpen,
        };
        Rejection::new(POLICY, reason).named(&self.name).after(retry_after)
    }

    fn in_a_row(&self, generation: u64) -> u32 {
        let word = self.hot.in_a_row.load(Ordering::Relaxed);
        if word >> 32 == generation & u64::from(u32::MAX) { word as u32 } else { 0 }
    }

    fn counts(&self, generation: u64, now: Instant) -> Counts {
        match &self.window {
            None => Counts::default(),
            Some(Counting::Time(window)) => window.counts(window.tag(self.nanos(now), generation)),
            Some(Counting::Count(window)) => window.counts(generation),
        }
    }

    fn record(&self, shard: usize, generation: u64, category: Category, clock: &impl Clock) {
        match &self.window {
            None => {}
            Some(Counting::Time(window)) => {
                window.record(shard, window.tag(self.nanos(clock.now()), generation), category)
            }
            Some(Counting::Count(window)) => window.record(generation, category),
        }
    }

    /// A success ends a row. Writes only where there is one.
    #[inline]
    fn end_row(&self, generation: u64) {
        let row = self.hot.in_a_row.load(Ordering::Relaxed);
        if row >> 32 == generation & u64::from(u32::MAX) && row as u32 != 0 {
            // When it fails, a failure came in between, and this success was before it.
            let _ = self.hot.in_a_row.compare_exchange(row, generation << 32, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn lengthen_row(&self, generation: u64) -> u32 {
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

    /// After a failure or a slow call: does any rule trip? In the order in which they are reported.
    fn verdict(&self, generation: u64, row: u32, now: Instant) -> Option<Cause> {
        let config = &self.config;
        if config.consecutive_failures.is_some_and(|limit| row >= limit) {
            return Some(Cause::ConsecutiveFailures(row));
        }
        let counting = self.window.as_ref()?;
        let number = match counting {
            Counting::Time(_) => 0,
            Counting::Count(window) => window.due(generation)?,
        };
        let counts = self.counts(generation, now);
        let total = counts.total();
        if total >= u64::from(config.minimum_throughput) {
            if config.failure_rate.is_some_and(|rate| rate.reached_by(counts.failures(), total)) {
                return Some(Cause::FailureRate(counts));
            }
            if config.slow_rate.is_some_and(|rate| rate.reached_by(counts.slow_calls(), total)) {
                return Some(Cause::SlowRate(counts));
            }
            let custom =
                |rule: &super::config::CustomRule| catch_unwind(AssertUnwindSafe(|| rule(&counts))).unwrap_or(false);
            if config.custom.as_ref().is_some_and(custom) {
                return Some(Cause::Custom(counts));
            }
        }
        if let (Counting::Count(window), None) = (counting, &config.custom) {
            // The total never shrinks in a count window, so neither does the number of bad results that a rate needs.
            let whole = u32::try_from(total.max(u64::from(config.minimum_throughput))).unwrap_or(u32::MAX);
            let missing = |rate: Option<crate::Ratio>, bad: u64| {
                rate.map_or(u32::MAX, |rate| rate.of(whole).saturating_sub(bad as u32))
            };
            window.rest(
                generation,
                number,
                missing(config.failure_rate, counts.failures()).min(missing(config.slow_rate, counts.slow_calls())),
            );
        }
        None
    }
}

/// A call's permission, and the generation it was given in.
#[must_use]
pub struct CircuitBreakerPermit {
    ticket: Ticket<Core>,
    word: u64,
    /// Taken only where slow calls matter.
    started: Option<Instant>,
    probe: Option<u64>,
}

impl CircuitBreakerPermit {
    /// Whether this call is a probe of a half-open circuit.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// `None` for what teaches nothing.
    fn category(&self, outcome: &Outcome, clock: &impl Clock) -> Option<Category> {
        let core = &*self.ticket;
        let slow =
            self.started.is_some_and(|started| nanos(clock.now().saturating_duration_since(started)) > core.hot.slow);
        match outcome {
            Outcome::Success => Some(Category::new(false, slow)),
            Outcome::Failure(_) => Some(Category::new(true, slow)),
            Outcome::Ignored(Ignored::Cancelled) if slow => match core.config.on_drop {
                OnDrop::Ignore => None,
                OnDrop::Slow => Some(Category::Slow),
                OnDrop::Failure => Some(Category::SlowFailed),
            },
            Outcome::Ignored(_) => None,
        }
    }

    #[cold]
    fn settle_probe(&self, probe: u64, outcome: &Outcome, clock: &impl Clock) {
        let core = &*self.ticket;
        let verdict = match self.category(outcome, clock) {
            None => Verdict::Nothing,
            Some(Category::Succeeded) => Verdict::Succeeded,
            // A probe that is slow where slowness trips the circuit says that nothing is well yet.
            Some(Category::Slow) if core.config.slow_rate.is_none() => Verdict::Succeeded,
            Some(_) => Verdict::Failed,
        };
        let hint = outcome.failure().and_then(|failure| failure.retry_after);
        let settled =
            core.change(clock.now(), |machine, now, steps| machine.settle_probe(probe, verdict, hint, now, steps));
        if !settled {
            core.stale.add(1);
        }
    }

    #[cold]
    fn settle_bad(&self, generation: u64, category: Category, outcome: &Outcome, clock: &impl Clock) {
        let (core, now) = (&*self.ticket, clock.now());
        core.record(self.ticket.shard(), generation, category, &now);
        let row = match (outcome, category) {
            // Overload is the work of a backend that is up.
            (Outcome::Failure(failure), _) if failure.overload => core.in_a_row(generation),
            (_, Category::Failed | Category::SlowFailed) => core.lengthen_row(generation),
            _ => {
                core.end_row(generation);
                0
            }
        };
        if State::of_word(self.word) == State::MetricsOnly {
            return;
        }
        if let Some(cause) = core.verdict(generation, row, now) {
            let hint = outcome.failure().and_then(|failure| failure.retry_after);
            core.change(now, |machine, now, steps| {
                if machine.generation == generation {
                    steps.extend(machine.trip(cause, hint, now));
                }
            });
        }
    }
}

impl Permit for CircuitBreakerPermit {
    #[inline]
    fn settle(mut self, outcome: &Outcome, clock: &impl Clock) {
        if let Some(probe) = self.probe.take() {
            return self.settle_probe(probe, outcome, clock);
        }
        let core = &*self.ticket;
        if core.hot.word.load(Ordering::Acquire) != self.word {
            return core.stale.add(1);
        }
        if State::of_word(self.word) == State::Disabled {
            return;
        }
        let generation = self.word >> State::BITS;
        let clock = &Memo::new(clock);
        match self.category(outcome, clock) {
            None => {}
            Some(Category::Succeeded) => {
                core.end_row(generation);
                core.record(self.ticket.shard(), generation, Category::Succeeded, clock);
            }
            Some(category) => self.settle_bad(generation, category, outcome, clock),
        }
    }
}

impl Drop for CircuitBreakerPermit {
    fn drop(&mut self) {
        if let Some(probe) = self.probe {
            // Without a clock: a cancelled probe gives its slot back, and whatever is due waits for the next look.
            let core = &*self.ticket;
            let mut machine = lock(&core.machine);
            if machine.give_back(probe) {
                core.hot.closed_until.store(0, Ordering::Release);
            }
            drop(machine);
            core.waiters.wake();
        }
    }
}

impl fmt::Debug for CircuitBreakerPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerPermit")
            .field("name", &self.ticket.name)
            .field("generation", &(self.word >> State::BITS))
            .field("probe", &self.probe)
            .finish()
    }
}

fn word_of(generation: u64, state: State) -> u64 {
    generation << State::BITS | state as u64
}

/// 584 years are enough for everybody.
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}
