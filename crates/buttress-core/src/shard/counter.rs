use super::{shards, thread_index};
use crate::sync::{AtomicU64, Ordering};

/// A sharded counter, to which threads add without contention. Reading it sums the shards.
#[derive(Debug)]
pub struct Counter(Count);

#[derive(Debug)]
enum Count {
    One(AtomicU64),
    Many(Box<[Line]>),
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

impl Counter {
    /// Creates a counter of zero with `shards` shards.
    pub fn new(shards: usize) -> Self {
        Self(match shards {
            0 | 1 => Count::One(AtomicU64::new(0)),
            _ => Count::Many((0..shards).map(|_| Line::default()).collect()),
        })
    }

    /// Adds `n` to the current thread's shard.
    pub fn add(&self, n: u64) {
        let shard = match &self.0 {
            Count::One(count) => count,
            Count::Many(lines) => &lines[thread_index() % lines.len()].0,
        };
        shard.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the sum, which contains everything added before the call.
    pub fn sum(&self) -> u64 {
        match &self.0 {
            Count::One(count) => count.load(Ordering::Relaxed),
            Count::Many(lines) => lines.iter().map(|line| line.0.load(Ordering::Relaxed)).sum(),
        }
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new(shards())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_counter_sums_over_threads() {
        let counter = Arc::new(Counter::new(4));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.add(1)));
            }
        });
        assert_eq!(counter.sum(), 4000);
    }
}
