use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::timeline::MAX_CLOCK_SKEW;

/// The latencies and drops of the current window, per shard. Threads add to it without contention;
/// the thread that ends the window takes everything out.
#[derive(Debug)]
pub(super) struct Samples(Box<[Line]>);

/// On cache lines of its own: the threads of a shard write to it.
#[derive(Debug)]
#[repr(align(128))]
struct Line {
    /// Calls that began, by which calls are selected for timing.
    begun: AtomicU32,
    /// Calls that were timed in this window.
    timed: AtomicU32,
    dropped: AtomicU32,
    /// The most calls that were seen to wait for their response.
    waiting: AtomicU32,
    /// Heads of responses that have streams behind them, less the streams that have ended. A stream
    /// counts in the shard of its permit, so no shard is below zero.
    streaming: AtomicU32,
    /// The sum of the latencies, in nanoseconds.
    sum: AtomicU64,
    /// When something last happened here: an admission, a rejection or an answer.
    last: AtomicU64,
    /// The longest time in this window in which nothing happened, and when it began.
    gap: AtomicU64,
    gap_began: AtomicU64,
    /// The longest gap that a call in flight has survived.
    stall: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

/// A histogram with 8 buckets per factor of two, in units of 1.024 µs up to 73 minutes. A bucket is
/// at most an eighth of its value wide.
const BUCKETS: usize = if cfg!(loom) { 4 } else { 240 };
/// 2^10 ns are the unit.
const UNIT: u32 = 10;
const PER_OCTAVE: u64 = 8;

/// Timed calls in one shard and window from which on only one call in [`EVERY`] is timed: two
/// readings of the clock cost more than the rest of a call.
const TIME_ALL: u32 = 256;
/// See [`TIME_ALL`].
const EVERY: u32 = 8;
/// The first calls of a shard and window, and one in this number after them, look at the calls that
/// wait, which are a sum over all shards.
const LOOK_EVERY: u32 = 16;

/// How a call was selected for timing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Timing {
    /// All calls are timed.
    All,
    /// This call stands for [`EVERY`] calls.
    Sampled,
    Untimed,
}

impl Timing {
    pub(super) fn weight(is_sampled: bool) -> u32 {
        if is_sampled { EVERY } else { 1 }
    }
}

impl Samples {
    pub(super) fn new(shards: usize) -> Self {
        Self((0..shards.next_power_of_two()).map(|_| Line::new()).collect())
    }

    /// Returns the line of a shard, or of a thread.
    fn line(&self, shard: usize) -> &Line {
        &self.0[shard & (self.0.len() - 1)]
    }

    /// Selects a call that begins. The counters are not exact where threads share a shard: a lost
    /// increment only changes which call is timed.
    #[inline]
    pub(super) fn begin(&self, shard: usize) -> Timing {
        let line = self.line(shard);
        let begun = line.begun.load(Ordering::Relaxed);
        line.begun.store(begun.wrapping_add(1), Ordering::Relaxed);
        if line.timed.load(Ordering::Relaxed) < TIME_ALL {
            Timing::All
        } else if begun.is_multiple_of(EVERY) {
            Timing::Sampled
        } else {
            Timing::Untimed
        }
    }

    /// Notes that something happened at `now`, and finds gaps.
    pub(super) fn mark(&self, shard: usize, now: u64) {
        let line = self.line(shard);
        let last = line.last.load(Ordering::Relaxed);
        // Threads read the clock in any order, but for a clock that was set back.
        let is_set_back = last.saturating_sub(now) > MAX_CLOCK_SKEW;
        line.last.store(if is_set_back { now } else { now.max(last) }, Ordering::Relaxed);
        let gap = now.saturating_sub(last);
        if last > 0 && gap > line.gap.load(Ordering::Relaxed) {
            line.gap.store(gap, Ordering::Relaxed);
            line.gap_began.store(last, Ordering::Relaxed);
        }
    }

    /// Counts a call whose response streams from now on.
    pub(super) fn begin_stream(&self, shard: usize) {
        self.line(shard).streaming.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends what [`begin_stream`](Self::begin_stream) began.
    pub(super) fn end_stream(&self, shard: usize) {
        self.line(shard).streaming.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of calls whose response streams.
    pub(super) fn streaming(&self) -> usize {
        self.0.iter().map(|line| line.streaming.load(Ordering::Relaxed) as usize).sum()
    }

    /// Adds `weight` answers with the latency of a call that began at `started`. `waiting` is asked
    /// for the calls without a response now and then.
    pub(super) fn answer(&self, shard: usize, started: u64, now: u64, weight: u32, waiting: impl FnOnce() -> usize) {
        self.mark(shard, now);
        let line = self.line(shard);
        let rtt = now.saturating_sub(started);
        line.buckets[bucket(rtt)].fetch_add(weight, Ordering::Relaxed);
        line.sum.fetch_add(rtt.saturating_mul(weight.into()), Ordering::Relaxed);
        let timed = line.timed.fetch_add(1, Ordering::Relaxed);
        if timed < LOOK_EVERY || timed.is_multiple_of(LOOK_EVERY) {
            line.waiting.fetch_max(waiting().try_into().unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        let gap = line.gap.load(Ordering::Relaxed);
        if gap > line.stall.load(Ordering::Relaxed) && started <= line.gap_began.load(Ordering::Relaxed) {
            line.stall.store(gap, Ordering::Relaxed);
        }
    }

    /// Adds `weight` dropped calls.
    pub(super) fn drop_call(&self, shard: usize, now: u64, weight: u32) {
        self.mark(shard, now);
        self.line(shard).dropped.fetch_add(weight, Ordering::Relaxed);
    }

    /// Returns how many calls were timed or dropped in the window.
    pub(super) fn count(&self) -> u64 {
        let load = |cell: &AtomicU32| u64::from(cell.load(Ordering::Relaxed));
        self.0.iter().map(|line| load(&line.timed) + load(&line.dropped)).sum()
    }

    /// Moves everything into `summary`. Samples that are added meanwhile are moved now or the next
    /// time.
    pub(super) fn drain_into(&self, summary: &mut Summary) {
        for line in &self.0 {
            let take = |cell: &AtomicU32| match cell.load(Ordering::Relaxed) {
                // Most buckets are empty, and need not be written.
                0 => 0,
                _ => cell.swap(0, Ordering::Relaxed),
            };
            for (sum, bucket) in summary.buckets.iter_mut().zip(&line.buckets) {
                *sum += u64::from(take(bucket));
            }
            summary.dropped += u64::from(take(&line.dropped));
            summary.waiting = summary.waiting.max(take(&line.waiting) as usize);
            summary.sum = summary.sum.saturating_add(line.sum.swap(0, Ordering::Relaxed));
            line.gap.store(0, Ordering::Relaxed);
            let (timed, stall) = (take(&line.timed), line.stall.swap(0, Ordering::Relaxed));
            if timed >= STALL_EVIDENCE {
                summary.stall = Some(summary.stall.map_or(stall, |shortest| shortest.min(stall)));
            }
        }
    }
}

/// Timed answers that a shard must have in a window for a gap between them to be no chance. At
/// random times, 16 calls leave a quarter of the window empty once in 100 windows.
const STALL_EVIDENCE: u32 = if cfg!(loom) { 1 } else { 16 };

impl Line {
    fn new() -> Self {
        Self {
            begun: AtomicU32::new(0),
            timed: AtomicU32::new(0),
            dropped: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            streaming: AtomicU32::new(0),
            sum: AtomicU64::new(0),
            last: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            gap_began: AtomicU64::new(0),
            stall: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

/// The samples of a window.
#[derive(Debug)]
pub(super) struct Summary {
    buckets: [u64; BUCKETS],
    /// In nanoseconds.
    sum: u64,
    pub(super) dropped: u64,
    pub(super) waiting: usize,
    /// The longest gap in nanoseconds that calls in flight survived in every shard with enough
    /// answers; `None` if no shard has enough.
    pub(super) stall: Option<u64>,
}

impl Summary {
    pub(super) fn new() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0, dropped: 0, waiting: 0, stall: None }
    }

    pub(super) fn answered(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the mean in nanoseconds; 0 without answers.
    pub(super) fn mean(&self) -> u64 {
        self.sum.checked_div(self.answered()).unwrap_or(0)
    }

    /// Returns a quantile in nanoseconds, interpolated within its bucket; 0 without answers.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let rank = self.answered() as f64 * share;
        let mut below = 0.0;
        for (index, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= rank {
                let (low, width) = span(index);
                return low + ((rank - below) / count * width as f64) as u64;
            }
            below += count;
        }
        0
    }
}

/// Returns the bucket of a latency.
#[inline]
fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT;
    let index = if units < PER_OCTAVE {
        units
    } else {
        let octave = u64::from(units.ilog2());
        (octave - 2) * PER_OCTAVE + ((units >> (octave - 3)) & (PER_OCTAVE - 1))
    };
    (index as usize).min(BUCKETS - 1)
}

/// Returns the smallest latency of a bucket and its width, in nanoseconds.
fn span(index: usize) -> (u64, u64) {
    let index = index as u64;
    let (low, width) = if index < PER_OCTAVE {
        (index, 1)
    } else {
        let shift = index / PER_OCTAVE - 1;
        ((PER_OCTAVE + index % PER_OCTAVE) << shift, 1 << shift)
    };
    (low << UNIT, width << UNIT)
}

#[cfg(all(test, not(loom)))]
mod tests;
