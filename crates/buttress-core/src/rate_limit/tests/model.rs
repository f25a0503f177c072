//! Random calls against the rule itself, and against a token bucket in plain arithmetic.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Take(u32),
    Undo(u32),
    Reload(Quota),
}

fn quotas() -> impl Strategy<Value = Quota> {
    (1..200_u32, 1..5_000_u64, 1..50_u32)
        .prop_map(|(calls, millis, burst)| Quota { burst, ..Quota::new(calls, Duration::from_millis(millis)) })
}

fn steps(reloads: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..200_000_000_u64).prop_map(Step::Advance),
        6 => (1..8_u32).prop_map(Step::Take),
        1 => (1..8_u32).prop_map(Step::Undo),
        u32::from(reloads) => quotas().prop_map(Step::Reload),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn over_any_interval_no_more_is_admitted_than_the_burst_and_the_rate(quota in quotas(), steps in steps(false)) {
        let (limit, clock) = limit(quota);
        let interval = u128::from(quota.terms().interval);
        let (mut now, mut taken) = (0_u128, Vec::new());
        for step in steps {
            match step {
                Step::Advance(nanos) => {
                    clock.advance(Duration::from_nanos(nanos));
                    now += u128::from(nanos);
                }
                Step::Take(cost) if limit.try_take(cost).is_ok() => taken.push((now, u128::from(cost))),
                Step::Undo(cost) => {
                    let _ = limit.try_take(cost).map(|permit| limit.give_back(permit));
                }
                _ => {}
            }
        }
        for from in 0..taken.len() {
            let mut cost = 0;
            for to in from..taken.len() {
                cost += taken[to].1;
                // cost <= burst + time / interval, without a division
                let allowed = u128::from(quota.burst) * interval + (taken[to].0 - taken[from].0);
                prop_assert!(cost * interval <= allowed, "{cost} calls from {from} to {to}");
            }
        }
    }

    #[test]
    fn starts_of_waiting_calls_keep_the_same_bound(quota in quotas(), steps in steps(false)) {
        let (limit, clock) = limit(quota);
        let interval = u128::from(quota.terms().interval);
        let (mut now, mut starts) = (0_u128, Vec::new());
        for step in steps {
            match step {
                Step::Advance(nanos) => {
                    clock.advance(Duration::from_nanos(nanos));
                    now += u128::from(nanos);
                }
                Step::Take(cost) => if let Ok(call) = limit.reserve(cost, SECOND) {
                    starts.push((now + call.wait.as_nanos(), u128::from(cost)));
                },
                Step::Undo(cost) => {
                    let _ = limit.reserve(cost, SECOND).map(|call| limit.give_back(call.permit));
                }
                Step::Reload(_) => {}
            }
        }
        for from in 0..starts.len() {
            let mut cost = 0;
            for to in from..starts.len() {
                prop_assert!(starts[from].0 <= starts[to].0, "first come, first served");
                cost += starts[to].1;
                let allowed = u128::from(quota.burst) * interval + (starts[to].0 - starts[from].0);
                prop_assert!(cost * interval <= allowed, "{cost} calls from {from} to {to}");
            }
        }
    }

    /// The bucket converts its word at its next decision, the model at each reload. The two may
    /// differ by a nanosecond for each reload, and by what is lost to rounding down.
    #[test]
    fn a_bucket_with_reloads_is_a_token_bucket(first in quotas(), steps in steps(true)) {
        let (limit, clock) = limit(first);
        let bucket = limit.new_bucket();
        let mut terms = first.terms();
        let (mut level, mut reloads) = (i128::from(terms.capacity), 0);
        for step in steps {
            match step {
                Step::Advance(nanos) => {
                    clock.advance(Duration::from_nanos(nanos));
                    level = (level + i128::from(nanos)).min(terms.capacity.into());
                }
                Step::Reload(quota) => {
                    limit.reload(quota).unwrap();
                    let next = quota.terms();
                    level = level * i128::from(next.interval) / i128::from(terms.interval);
                    level = level.min(next.capacity.into());
                    terms = next;
                    reloads += 1;
                }
                Step::Take(cost) => {
                    let charge = i128::from(terms.interval) * i128::from(cost);
                    let admitted = bucket.try_take(cost).is_ok();
                    // A nanosecond of one quota can be many of another.
                    let slack = i128::from(reloads > 0) * i128::from(terms.interval) / 50;
                    prop_assert!(admitted == (charge <= level) || (charge - level).abs() <= slack);
                    level -= if admitted { charge } else { 0 };
                }
                Step::Undo(_) => {}
            }
            if reloads > 12 {
                break;
            }
        }
    }
}
