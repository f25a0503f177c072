use super::{
    queue::{CLASSES, Owed},
    spares::Spares,
};
use crate::context::CallContext;
use crate::shard::thread_index;
use crate::sync::{AtomicU32, Ordering};
use crate::{Criticality, InvalidConfig, Ratio};

/// The shares of the classes, and their calls in flight. Only bulkheads with shares have it: the
/// others do not count by class.
#[derive(Debug)]
pub(super) struct Classes {
    /// In millionths. Written under the lock of the queue.
    shares: [AtomicU32; CLASSES],
    /// A call may enter on one thread and leave on another, so that a count of one line may be
    /// below zero; their sum is not.
    in_flight: Box<[Line]>,
    pub(super) spares: Spares,
}

/// All places, in millionths.
const ALL: u32 = 1_000_000;

/// On cache lines of its own: the threads of a shard write to it with every call.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU32; CLASSES]);

impl Classes {
    pub(super) fn new(spares: Spares) -> Self {
        let in_flight = (0..spares.shards()).map(|_| Line::default()).collect();
        Self { shares: Default::default(), in_flight, spares }
    }

    pub(super) fn set_share(&self, class: Criticality, share: Ratio) -> Result<(), InvalidConfig> {
        let of = |other: Criticality| match other {
            _ if other == class => share.millionths(),
            _ => self.shares[other as usize].load(Ordering::Relaxed),
        };
        if Criticality::ALL.map(of).iter().sum::<u32>() > ALL {
            return Err(InvalidConfig::new("reserve", "must not add up to more than 1 over all classes"));
        }
        self.shares[class as usize].store(share.millionths(), Ordering::Relaxed);
        Ok(())
    }

    /// Counts a call that takes a place. Returns its class.
    #[inline]
    pub(super) fn enter(&self, class: Criticality) -> Criticality {
        self.line()[class as usize].fetch_add(1, Ordering::Relaxed);
        class
    }

    /// Counts a call that releases its place. Must come before the release, which may grant the
    /// place by these numbers.
    #[inline]
    pub(super) fn leave(&self, class: usize) {
        if let Some(count) = self.line().get(class) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the calls in flight of a class, exact while none enters or leaves.
    pub(super) fn in_flight(&self, class: Criticality) -> u32 {
        let counts = self.in_flight.iter().map(|line| line.0[class as usize].load(Ordering::Relaxed));
        let sum = counts.fold(0, u32::wrapping_add);
        // Seen in between, a call may have left and not entered.
        (sum as i32).max(0) as u32
    }

    /// Returns how many places each class lacks of its share of `limit`, which is rounded up.
    pub(super) fn owed(&self, limit: u32) -> Owed {
        Criticality::ALL.map(|class| match self.shares[class as usize].load(Ordering::Relaxed) {
            0 => 0,
            share => Ratio::from_millionths(share).of(limit).saturating_sub(self.in_flight(class)),
        })
    }

    #[inline]
    fn line(&self) -> &[AtomicU32; CLASSES] {
        &self.in_flight[thread_index() & (self.in_flight.len() - 1)].0
    }
}

/// Returns the class of the call that is being served.
#[inline]
pub(super) fn class_of(context: &CallContext) -> Criticality {
    context.priority.unwrap_or_default().criticality()
}

/// Returns the value of the label `class`.
pub(super) fn label(class: Criticality) -> &'static str {
    match class {
        Criticality::CriticalPlus => "critical_plus",
        Criticality::Critical => "critical",
        Criticality::SheddablePlus => "sheddable_plus",
        Criticality::Sheddable => "sheddable",
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use Criticality::{Critical, CriticalPlus, Sheddable};

    fn ratio(share: f64) -> Ratio {
        Ratio::new(share).unwrap()
    }

    #[test]
    fn shares_that_add_up_to_more_than_all_are_refused_and_leave_those_before() {
        let classes = Classes::new(Spares::new(1, 10));
        classes.set_share(CriticalPlus, ratio(0.6)).unwrap();
        classes.set_share(Sheddable, ratio(0.4)).unwrap();
        assert!(classes.set_share(Critical, ratio(0.000_001)).is_err());
        assert!(classes.set_share(CriticalPlus, ratio(0.7)).is_err());
        classes.set_share(CriticalPlus, ratio(0.5)).unwrap();
        assert_eq!(classes.owed(10), [5, 0, 0, 4]);
    }

    #[test]
    fn a_share_of_a_small_limit_is_at_least_one_place_and_none_of_zero() {
        let classes = Classes::new(Spares::new(1, 10));
        classes.set_share(CriticalPlus, ratio(0.01)).unwrap();
        assert_eq!((classes.owed(3), classes.owed(0)), ([1, 0, 0, 0], [0; 4]));
    }

    #[test]
    fn a_call_that_leaves_on_another_thread_is_counted_once() {
        let classes = Classes::new(Spares::new(4, 10));
        classes.set_share(Critical, ratio(1.0)).unwrap();
        assert!((0..3).all(|_| classes.enter(Critical) == Critical));
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(|| classes.leave(Critical as usize)))));
        assert_eq!((classes.in_flight(Critical), classes.owed(10)), (1, [0, 9, 0, 0]));
    }
}
