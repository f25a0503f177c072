use crate::Priority;
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The cells of a row of the sketch.
const CELLS: usize = 1024;
const ROWS: usize = 2;
/// Steps after which a generation of counts ends: 10 seconds.
const GENERATION: u64 = 100;
/// The levels of a class.
const LEVELS: f64 = 128.0;

type Row = [AtomicU32; CELLS];

/// How many calls each tenant has made in the current and in the last generation, as a count-min
/// sketch: each row counts a call in one cell, and the smallest of a tenant's cells is the closest
/// to its number of calls.
#[derive(Debug)]
pub(super) struct Tenants {
    generations: [[Row; ROWS]; 2],
    current: AtomicUsize,
    /// Steps since the current generation began.
    steps: AtomicU64,
    /// Calls in both generations, as of the last step.
    total: AtomicU32,
}

impl Tenants {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            generations: std::array::from_fn(|_| std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0)))),
            current: AtomicUsize::new(0),
            steps: AtomicU64::new(0),
            total: AtomicU32::new(0),
        })
    }

    /// Counts a call of a tenant, and returns its priority less the tenant's share.
    pub(super) fn demote(&self, priority: Priority, tenant: u64) -> Priority {
        let share = self.share(tenant);
        let level = f64::from(priority.level()) + share * LEVELS;
        // Levels above the last one are the last one.
        priority.at_level(level.min(LEVELS) as u8)
    }

    fn share(&self, tenant: u64) -> f64 {
        let current = self.current.load(Ordering::Relaxed) % 2;
        let [now, before] = [&self.generations[current], &self.generations[1 - current]];
        let calls = (0..ROWS).map(|row| {
            let cell = (tenant >> (10 * row)) as usize % CELLS;
            let earlier = before[row][cell].load(Ordering::Relaxed);
            now[row][cell].fetch_add(1, Ordering::Relaxed).saturating_add(1).saturating_add(earlier)
        });
        let calls = calls.min().unwrap_or(0);
        f64::from(calls) / f64::from(self.total.load(Ordering::Relaxed).max(calls))
    }

    /// Begins a new generation when it is time. Called by one thread at a time.
    pub(super) fn refresh(&self, steps: u64) {
        let passed = self.steps.load(Ordering::Relaxed).saturating_add(steps);
        if passed >= GENERATION {
            let next = 1 - self.current.load(Ordering::Relaxed) % 2;
            clear(&self.generations[next]);
            if passed >= 2 * GENERATION {
                clear(&self.generations[1 - next]);
            }
            self.current.store(next, Ordering::Relaxed);
        }
        self.steps.store(if passed >= GENERATION { 0 } else { passed }, Ordering::Relaxed);
        let cells = self.generations.iter().flat_map(|rows| &rows[0]);
        let total = cells.fold(0u32, |sum, cell| sum.saturating_add(cell.load(Ordering::Relaxed)));
        self.total.store(total, Ordering::Relaxed);
    }
}

fn clear(rows: &[Row; ROWS]) {
    rows.iter().flatten().for_each(|cell| cell.store(0, Ordering::Relaxed));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Criticality;
    use fastrand::Rng;

    #[test]
    fn a_call_is_the_less_important_the_more_its_tenant_asks_for() {
        let (tenants, mut rng) = (Tenants::new(), Rng::with_seed(7));
        let (heavy, light) = (rng.u64(..), rng.u64(..));
        for call in 0..1_000 {
            tenants.share(if call % 10 == 0 { light } else { heavy });
        }
        tenants.refresh(1);
        let level = |tenant| tenants.demote(Priority::default(), tenant).level();
        assert_eq!((level(heavy), level(light)), (127, 64 + 12), "at most the last level, and a tenth of 128");
        let critical = tenants.demote(Criticality::CriticalPlus.into(), heavy);
        assert_eq!(critical.criticality(), Criticality::CriticalPlus, "it does not leave its class");
    }

    #[test]
    fn any_number_of_tenants_is_counted_and_the_heavy_one_stands_out() {
        let (tenants, mut rng) = (Tenants::new(), Rng::with_seed(7));
        let heavy = rng.u64(..);
        for _call in 0..20_000 {
            tenants.share(heavy);
            tenants.share(rng.u64(..));
        }
        tenants.refresh(1);
        assert!((0.5..0.55).contains(&tenants.share(heavy)));
        assert!((0..100).all(|_| tenants.share(rng.u64(..)) < 0.01));
    }

    #[test]
    fn what_a_tenant_did_is_forgotten_after_two_generations() {
        let tenants = Tenants::new();
        (0..100).for_each(|_| _ = tenants.share(1));
        tenants.refresh(GENERATION);
        (0..99).for_each(|_| _ = tenants.share(2));
        tenants.refresh(1);
        assert!(tenants.share(1) > 0.4, "the last generation counts");
        tenants.refresh(GENERATION);
        tenants.refresh(GENERATION);
        (0..99).for_each(|_| _ = tenants.share(2));
        tenants.refresh(1);
        assert!(tenants.share(1) < 0.05);
        tenants.refresh(u64::MAX);
        assert_eq!(tenants.total.load(Ordering::Relaxed), 0);
    }
}
