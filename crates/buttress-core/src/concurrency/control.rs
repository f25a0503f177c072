use super::{
    Decision, LimitAlgorithm, Snapshot, Statistic, Window,
    classes::Classes,
    samples::{Samples, Summary},
};
use crate::Clock;
use crate::bulkhead::Bulkhead;
use crate::label::Labels;
use crate::shard::Counter;
use crate::sync::{AtomicU64, Mutex, Ordering, lock, try_lock};
use crate::timeline::{MAX_CLOCK_SKEW, nanos};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// The settings that do not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) window: Duration,
    pub(super) min_samples: u64,
    pub(super) statistic: Statistic,
    /// The part of the limit that a class keeps from those below it.
    pub(super) priority_step: f64,
}

/// What the handles and permits of a limiter share.
pub(super) struct Shared<A, C> {
    pub(super) places: Bulkhead<C>,
    pub(super) labels: Labels,
    pub(super) rejected: Counter,
    pub(super) samples: Samples,
    pub(super) classes: Classes,
    /// Times are even numbers of nanoseconds since this moment, from 4 on: a permit keeps a flag in
    /// the last bit, and has uses for smaller numbers.
    pub(super) origin: Instant,
    /// When the window ends, if it has enough samples.
    pub(super) window_end: AtomicU64,
    /// The latency in nanoseconds from which on a cancelled call counts as dropped.
    pub(super) median: AtomicU64,
    settings: Settings,
    control: Mutex<Control<A>>,
}

#[derive(Debug)]
struct Control<A> {
    algorithm: A,
    min: usize,
    max: usize,
    /// The limit of the calls that wait for a response.
    limit: usize,
    /// The largest limit of the last windows, from which the kept places are computed.
    peak: f64,
    /// The calls whose response streamed at the end of the last window.
    streaming: usize,
    /// When the window began. 0 before the first call.
    began: u64,
    /// The rejections before the window.
    rejected: u64,
    window: Option<Window>,
    last: Option<Decision>,
    decisions: [u64; 4],
}

/// The longest window.
const MAX_WINDOW: Duration = Duration::from_secs(30);
/// A window whose samples were too few is looked at again after this share of its length.
const EXTENSION: u64 = 4;
/// The part of a window in which the process may stand still: 1 in this number.
const STALL: u64 = 4;
/// By how much the largest limit of the last windows shrinks with each.
const PEAK_DECAY: f64 = 0.9;

impl<A: LimitAlgorithm, C: Clock> Shared<A, C> {
    pub(super) fn new(
        places: Bulkhead<C>,
        labels: Labels,
        shards: usize,
        origin: Instant,
        settings: Settings,
        algorithm: A,
        (min, max): (usize, usize),
    ) -> Self {
        let control = Control {
            algorithm,
            min,
            max,
            limit: places.limit(),
            peak: 0.0,
            streaming: 0,
            began: 0,
            rejected: 0,
            window: None,
            last: None,
            decisions: [0; 4],
        };
        let classes = Classes::new();
        classes.set_kept(kept(settings.priority_step, places.limit() as f64));
        Self {
            places,
            labels,
            rejected: Counter::new(shards),
            samples: Samples::new(shards),
            classes,
            origin,
            window_end: AtomicU64::new(0),
            median: AtomicU64::new(u64::MAX),
            settings,
            control: Mutex::new(control),
        }
    }

    /// Returns the time of `now`.
    #[inline]
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        (nanos(now.saturating_duration_since(self.origin)) & !1).saturating_add(4)
    }

    /// Ends the window if it is over, unless another thread is about to.
    #[inline]
    pub(super) fn end_window(&self, now: u64) {
        if self.is_over(now) {
            self.try_end_window(now);
        }
    }

    /// Ends the window if no answer has ended it in time, for a call that is rejected. Where all
    /// places are taken by streams, or by calls that hang, no answer comes.
    #[cold]
    #[inline(never)]
    pub(super) fn end_overdue_window(&self, now: u64) {
        let grace = nanos(self.settings.window) / EXTENSION;
        if self.is_over(now.saturating_sub(grace)) {
            self.try_end_window(now);
        }
    }

    /// Returns whether the window is over, or ends so late that the clock was set back.
    #[inline]
    fn is_over(&self, now: u64) -> bool {
        let end = self.window_end.load(Ordering::Relaxed);
        now >= end || end - now > nanos(MAX_WINDOW) + MAX_CLOCK_SKEW
    }

    #[cold]
    #[inline(never)]
    fn try_end_window(&self, now: u64) {
        if let Some(mut control) = try_lock(&self.control)
            // Another thread may have ended it between the check and the lock.
            && self.is_over(now)
        {
            self.update(&mut control, now);
        }
    }

    fn update(&self, control: &mut Control<A>, now: u64) {
        let length = nanos(self.settings.window);
        if control.began == 0 || now < control.began {
            if control.began > 0 {
                // What was measured before the clock was set back has no length.
                self.samples.drain_into(&mut Summary::new());
            }
            control.began = now;
            return self.window_end.store(now.saturating_add(length), Ordering::Relaxed);
        }
        if self.samples.count() < self.settings.min_samples {
            self.give_places_to_streams(control);
            return self.window_end.store(now.saturating_add(length / EXTENSION), Ordering::Relaxed);
        }
        let mut summary = Summary::new();
        self.samples.drain_into(&mut summary);
        let duration = now.saturating_sub(control.began);
        let decision = if summary.stall.is_some_and(|stall| stall > duration / STALL) {
            Decision::Discarded
        } else {
            self.decide(control, &summary, duration)
        };
        self.set_places(control);
        control.last = Some(decision);
        control.decisions[decision as usize] += 1;
        let next = length.max(summary.mean().saturating_mul(2)).min(nanos(MAX_WINDOW).max(length));
        let rejected = self.rejected.sum();
        self.classes.set_contended(rejected != control.rejected);
        (control.began, control.rejected) = (now, rejected);
        self.window_end.store(now.saturating_add(next), Ordering::Relaxed);
    }

    fn decide(&self, control: &mut Control<A>, summary: &Summary, duration: u64) -> Decision {
        let window = self.window(control, summary, duration);
        // An algorithm that panics must not break the call that ends the window.
        let update = catch_unwind(AssertUnwindSafe(|| control.algorithm.update(&window)));
        control.limit = update.unwrap_or(window.limit).max(control.min).min(control.max);
        control.window = Some(window);
        if window.answered > 0 {
            self.median.store(summary.quantile(0.5), Ordering::Relaxed);
        }
        match control.limit.cmp(&window.limit) {
            std::cmp::Ordering::Less => Decision::Lowered,
            std::cmp::Ordering::Equal => Decision::Held,
            std::cmp::Ordering::Greater => Decision::Raised,
        }
    }

    /// Sets the number of places: those of the calls that wait, and those of the streams that are
    /// expected in the middle of the next window, if their number goes on to grow as in this one.
    fn set_places(&self, control: &mut Control<A>) {
        let streaming = self.samples.streaming();
        let growth = streaming.saturating_sub(control.streaming);
        control.streaming = streaming;
        let places = (control.limit + streaming + growth / 2).max(control.min).min(control.max);
        if places != self.places.limit() {
            self.places.set_limit(places);
        }
        // A probe halves the calls for two windows. The kept places stay as many, or the important
        // calls would have too few of the rest.
        control.peak = (control.limit as f64).max(control.peak * PEAK_DECAY);
        self.classes.set_kept(kept(self.settings.priority_step, control.peak));
    }

    /// Adds places for the streams that have begun in a window that goes on, so that it can get its
    /// samples.
    fn give_places_to_streams(&self, control: &mut Control<A>) {
        let streaming = self.samples.streaming();
        if streaming > control.streaming {
            control.streaming = streaming;
            let places = (control.limit + streaming).max(control.min).min(control.max);
            if places > self.places.limit() {
                self.places.set_limit(places);
            }
        }
    }

    /// Returns whether the current call leaves the free places to more important ones. The calls in
    /// flight are counted without a lock, so that a few may pass at the same moment.
    #[cold]
    #[inline(never)]
    pub(super) fn yields(&self, now: u64) -> bool {
        let kept = self.classes.kept_from_current(now);
        if kept == 0 {
            return false;
        }
        let streaming = self.samples.streaming();
        let places = self.places.limit().saturating_sub(streaming);
        // One call may always be in flight.
        self.places.in_flight().saturating_sub(streaming) >= places.saturating_sub(kept).max(1)
    }

    /// Returns the number of calls that wait for a response.
    pub(super) fn waiting(&self) -> usize {
        self.places.in_flight().saturating_sub(self.samples.streaming())
    }

    /// Returns the share of the places that is taken, without the calls whose response streams and
    /// their places: 1 if there are no others.
    pub(super) fn used(&self) -> f64 {
        let (limit, streaming) = (self.places.limit(), self.samples.streaming());
        match limit.saturating_sub(streaming) {
            0 => 1.0,
            places => self.places.in_flight().saturating_sub(streaming) as f64 / places as f64,
        }
    }

    fn window(&self, control: &Control<A>, summary: &Summary, duration: u64) -> Window {
        let Control { min, max, limit, .. } = control;
        let rejected = self.rejected.sum().saturating_sub(control.rejected);
        let rtt = match self.settings.statistic {
            Statistic::Min => summary.quantile(0.0),
            Statistic::P50 => summary.quantile(0.5),
            Statistic::P90 => summary.quantile(0.9),
            Statistic::P99 => summary.quantile(0.99),
            Statistic::Mean => summary.mean(),
        };
        Window {
            limit: *limit,
            min: *min,
            max: *max,
            // A call is rejected while all places are taken.
            in_flight: if rejected > 0 { *limit } else { summary.waiting.max(self.waiting()) },
            streaming: self.samples.streaming(),
            answered: summary.answered(),
            dropped: summary.dropped,
            rejected,
            rtt: Duration::from_nanos(rtt),
            mean_rtt: Duration::from_nanos(summary.mean()),
            duration: Duration::from_nanos(duration),
        }
    }

    pub(super) fn bounds(&self) -> (usize, usize) {
        let control = lock(&self.control);
        (control.min, control.max)
    }

    pub(super) fn set_bounds(&self, min: usize, max: usize) {
        let mut control = lock(&self.control);
        (control.min, control.max) = (min, max);
        control.limit = control.limit.max(min).min(max);
        self.set_places(&mut control);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let control = lock(&self.control);
        Snapshot {
            limit: self.places.limit(),
            in_flight: self.places.in_flight(),
            streaming: self.samples.streaming(),
            rejected: self.rejected.sum(),
            window: control.window,
            baseline: control.algorithm.baseline(),
            last: control.last,
            decisions: control.decisions,
        }
    }
}

/// Returns the places that a class keeps. Whatever the limit is, chance takes 10 places once in
/// 1,000 calls, if important calls need half of the capacity. A small limit keeps less than that,
/// or the limit would have to be a multiple of what the backend can do.
fn kept(step: f64, limit: f64) -> u32 {
    if step > 0.0 { (limit * step).max((limit * 0.3).min(10.0)).ceil() as u32 } else { 0 }
}
