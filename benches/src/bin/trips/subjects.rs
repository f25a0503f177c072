//! The breakers that are simulated.

use crate::{breaker::Breaker, ours, seatbelt, tower_resilience};

pub(crate) struct Subject {
    pub(crate) name: &'static str,
    /// Creates a breaker, with a seed if it takes one.
    pub(crate) make: fn(u64) -> Box<dyn Breaker>,
}

pub(crate) const SUBJECTS: [Subject; 6] = [
    Subject { name: "buttress", make: ours::default },
    Subject { name: "buttress, 5 in a row", make: ours::fixed },
    Subject { name: "tower-resilience", make: tower_resilience::default },
    Subject { name: "tower-resilience, 5 in a row", make: tower_resilience::consecutive },
    Subject { name: "seatbelt", make: seatbelt::default },
    Subject { name: "seatbelt, half, one probe", make: seatbelt::half },
];
