//! What is simulated: a limiter in front of the server.

use std::time::Duration;

use buttress_core::Priority;

/// What a limiter says to a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    Admitted,
    /// The call waits for a place: see [`Limiter::decided`].
    Queued,
    /// The server rejects it.
    Rejected,
    /// The client does not send it.
    Unsent,
}

impl Admission {
    pub(crate) fn new(is_admitted: bool) -> Self {
        if is_admitted { Self::Admitted } else { Self::Rejected }
    }
}

/// A limiter with the permits of its calls, which have small numbers.
pub(crate) trait Limiter {
    /// Asks for the admission of call `id`.
    fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission;

    /// The head of the response of an admitted call has left.
    fn head(&mut self, now: Duration, id: usize);

    /// An admitted call has ended: its response is complete, or its caller has left.
    fn end(&mut self, now: Duration, id: usize, is_answered: bool);

    /// Returns a call that waited and for which it is decided whether it is admitted. Asked until
    /// there is none, after whatever happens.
    fn decided(&mut self) -> Option<(usize, bool)> {
        None
    }

    /// The limit, for the charts.
    fn limit(&self) -> Option<usize> {
        None
    }
}

/// A limiter that can be made again for every run.
#[derive(Clone, Copy)]
pub(crate) struct Arm {
    pub(crate) name: &'static str,
    pub(crate) make: fn(u64) -> Box<dyn Limiter>,
}

/// The arms in the order of the tables, after the best static limit. An arm is one line here and
/// one function that makes its limiter from a seed.
pub(crate) const ARMS: [Arm; 11] = [
    Arm { name: "no limit", make: |_| Box::new(NoLimit) },
    Arm { name: "buttress, default", make: crate::ours::default },
    Arm { name: "buttress, Gradient2 as published", make: crate::ours::published },
    Arm { name: "buttress, Vegas", make: crate::ours::vegas },
    Arm { name: "buttress, Envoy's gradient", make: crate::ours::envoy },
    Arm { name: "buttress, PI", make: crate::ours::pid },
    Arm { name: "buttress, AIMD (100 ms)", make: crate::ours::aimd },
    Arm { name: "tower, limit of 100", make: crate::tower::limit },
    Arm { name: "tower-resilience, Gradient2", make: crate::tower_resilience::gradient2 },
    Arm { name: "tower-resilience, Vegas", make: crate::tower_resilience::vegas },
    Arm { name: "tower-resilience, AIMD", make: crate::tower_resilience::aimd },
];

/// The arm of which the tests make demands.
pub(crate) const DEFAULT: Arm = ARMS[1];

/// Admits everything.
struct NoLimit;

impl Limiter for NoLimit {
    fn admit(&mut self, _: Duration, _: usize, _: Priority) -> Admission {
        Admission::Admitted
    }

    fn head(&mut self, _: Duration, _: usize) {}

    fn end(&mut self, _: Duration, _: usize, _: bool) {}
}

/// A slot for each call that is in flight.
pub(crate) struct Slots<T>(Vec<Option<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Slots<T> {
    pub(crate) fn put(&mut self, id: usize, permit: T) {
        if self.0.len() <= id {
            self.0.resize_with(id + 1, || None);
        }
        self.0[id] = Some(permit);
    }

    pub(crate) fn get(&mut self, id: usize) -> Option<&mut T> {
        self.0.get_mut(id)?.as_mut()
    }

    pub(crate) fn take(&mut self, id: usize) -> Option<T> {
        self.0.get_mut(id)?.take()
    }
}
