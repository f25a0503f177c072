use super::*;
use crate::Clock;
use crate::Criticality::{self, Critical, CriticalPlus, Sheddable};
use crate::context::CallContext;

type Held = Vec<ScriptPermit>;

/// Places that a class keeps of 20.
const STEP: usize = 6;

impl Limiter {
    fn call_of(&self, class: Criticality) -> Result<ScriptPermit, crate::Rejection> {
        let _entered = CallContext::default().with_priority(class.into()).enter();
        self.limit.admit(&())
    }

    /// Makes calls of a class until one is rejected.
    fn fill(&self, class: Criticality) -> Held {
        std::iter::from_fn(|| self.call_of(class).ok()).collect()
    }

    /// Makes a call of each class, so that they are known, while the limit rejects.
    fn contend(&self, classes: &[Criticality]) {
        let _full = self.fill(Critical);
        classes.iter().for_each(|class| assert!(self.call_of(*class).is_err()));
    }
}

#[test]
fn while_calls_are_rejected_each_class_leaves_places_to_those_above_it() {
    let limiter = Limiter::new(|builder| builder);
    limiter.contend(&[CriticalPlus, Critical, Sheddable]);
    let sheddable = limiter.fill(Sheddable);
    let critical = limiter.fill(Critical);
    let critical_plus = limiter.fill(CriticalPlus);
    assert_eq!([sheddable.len(), critical.len(), critical_plus.len()], [20 - 2 * STEP, STEP, STEP]);
}

#[test]
fn a_class_keeps_places_also_if_all_its_calls_have_found_the_limit_full() {
    let limiter = Limiter::new(|builder| builder);
    let full = limiter.fill(Sheddable);
    let entered = CallContext::default().with_priority(CriticalPlus.into()).enter();
    // What a gate does.
    let refused = Policy::<()>::peek(&limiter.limit).unwrap_err();
    let _rejection = limiter.limit.refuse(&(), refused);
    drop((entered, full));
    assert_eq!(limiter.fill(Sheddable).len(), 20 - STEP);
}

#[test]
fn calls_of_one_class_have_all_places() {
    for class in Criticality::ALL {
        let limiter = Limiter::new(|builder| builder);
        drop(limiter.fill(class));
        assert_eq!(limiter.fill(class).len(), 20);
    }
}

#[test]
fn without_rejections_any_class_takes_the_last_place() {
    let limiter = Limiter::new(|builder| builder);
    limiter.contend(&[CriticalPlus, Critical]);
    assert_eq!(limiter.fill(Sheddable).len(), 20 - 2 * STEP);
    (0..3).for_each(|_| _ = limiter.window());
    assert_eq!(limiter.fill(Sheddable).len(), 20, "no call was rejected in the last window");
}

#[test]
fn a_class_without_calls_for_ten_seconds_keeps_no_place() {
    let limiter = Limiter::new(|builder| builder);
    limiter.contend(&[CriticalPlus, Critical]);
    limiter.clock.advance(Duration::from_millis(9_999));
    assert_eq!(limiter.fill(Sheddable).len(), 20 - 2 * STEP);
    limiter.clock.advance(MS);
    assert_eq!(limiter.fill(Sheddable).len(), 20);
}

#[test]
fn a_clock_that_was_set_back_does_not_keep_places_for_long() {
    let limiter = Limiter::new(|builder| builder);
    let start = limiter.clock.now();
    limiter.clock.advance(Duration::from_secs(3600));
    limiter.contend(&[CriticalPlus, Critical]);
    limiter.clock.set(start);
    assert_eq!(limiter.fill(Sheddable).len(), 20);
}

#[test]
fn one_call_of_any_class_may_be_in_flight_at_the_smallest_limits() {
    for limit in 1..=4 {
        let limiter = Limiter::new(|builder| builder.limits(1..=4).initial(4));
        limiter.limit.set_bounds(limit, limit).unwrap();
        limiter.contend(&[CriticalPlus, Critical, Sheddable]);
        assert!(limiter.call_of(Sheddable).is_ok(), "{limit}");
    }
}

#[test]
fn a_probe_does_not_shrink_the_kept_places_with_the_limit() {
    let limiter = Limiter::new(|builder| builder);
    limiter.then(&[20, 10]);
    (0..3).for_each(|_| _ = limiter.window());
    assert_eq!(limiter.limit.limit(), 10);
    limiter.contend(&[CriticalPlus]);
    assert_eq!(limiter.fill(Critical).len(), 10 - 5, "a limit of 10 would keep 3");
}

#[test]
fn streams_take_no_places_of_a_class() {
    let limiter = Limiter::new(|builder| builder.limits(1..=1000));
    let mut streams: Held = (0..10).map(|_| limiter.admit()).collect();
    streams.iter_mut().for_each(|stream| stream.progress(Progress::Head));
    (0..3).for_each(|_| _ = limiter.window());
    let places = limiter.limit.limit() - streams.len();
    limiter.contend(&[CriticalPlus]);
    assert_eq!(limiter.fill(Critical).len(), places - STEP);
}

#[test]
fn with_a_step_of_0_all_classes_are_alike() {
    let limiter = Limiter::new(|builder| builder.priority_step(0.0));
    limiter.contend(&Criticality::ALL);
    assert_eq!(limiter.fill(Sheddable).len(), 20);
    let field = |step| AdaptiveLimit::<_, ManualClock>::builder("x").priority_step(step).build().unwrap_err().field();
    assert!([-0.1, 0.31, f64::NAN].iter().all(|step| field(*step) == "priority_step"));
}
