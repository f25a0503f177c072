use super::*;
use crate::{ManualClock, Outcome, testing};
use proptest::prelude::*;

type Deadlines = super::Deadlines<ManualClock>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const NONE: CallContext = CallContext { priority: None, deadline: None, is_repeated: false };

fn deadlines(mode: Mode) -> (ManualClock, Deadlines) {
    let clock = ManualClock::new();
    let deadlines = Deadlines::builder().clock(clock.clone()).mode(mode).build().unwrap();
    (clock, deadlines)
}

fn asking(time: Duration) -> Terms {
    Terms { asked: Some(time), ..Terms::default() }
}

/// Returns the context of a call that starts.
fn start<C: Clock>(
    deadlines: &super::Deadlines<C>,
    mut context: CallContext,
    terms: &Terms,
) -> Result<(CallContext, Started), Rejection> {
    let (started, _) = deadlines.start(&mut context, terms)?;
    Ok((context, started))
}

/// Returns the time that a call gets, or the word of its rejection.
fn started(deadlines: &Deadlines, context: CallContext, terms: &Terms) -> Result<Option<Duration>, &'static str> {
    let now = deadlines.clock.now();
    match start(deadlines, context, terms) {
        Ok((context, started)) => {
            assert!(started.had().is_none_or(|had| context.deadline == Some(now + had)));
            Ok(context.deadline.map(|deadline| deadline - now))
        }
        Err(rejection) => Err(rejection.reason().word()),
    }
}

#[test]
fn the_deadline_is_the_earliest_of_context_request_and_limit() {
    let (clock, deadlines) = deadlines(Mode::EnforceAll);
    let now = clock.now();
    let of = |context: Option<u32>, until: Option<u32>, asked: Option<u32>, default: Option<u32>, max: Option<u32>| {
        let time = |seconds: Option<u32>| seconds.map(|seconds| seconds * SECOND);
        let at = |seconds: Option<u32>| seconds.map(|seconds| now + seconds * SECOND);
        let terms = Terms {
            asked: time(asked),
            until: at(until),
            default: time(default),
            max: time(max),
            min_useful: Duration::ZERO,
        };
        let context = CallContext { deadline: at(context), ..NONE };
        started(&deadlines, context, &terms).unwrap().map(|left| left.as_secs())
    };
    assert_eq!(of(None, None, None, None, None), None);
    assert_eq!(of(Some(1), None, None, None, None), Some(1));
    assert_eq!(of(Some(9), Some(8), Some(7), Some(1), Some(6)), Some(6), "the default is for calls that ask for none");
    assert_eq!(of(Some(9), Some(8), Some(5), None, Some(6)), Some(5));
    assert_eq!(of(Some(9), Some(4), Some(5), None, Some(6)), Some(4));
    assert_eq!(of(Some(3), Some(4), Some(5), None, Some(6)), Some(3));
    assert_eq!(of(None, None, None, Some(2), Some(6)), Some(2));
    assert_eq!(of(None, None, None, Some(7), Some(6)), Some(6));
    assert_eq!(of(None, None, None, None, Some(6)), Some(6), "a maximum bounds also calls that ask for none");
}

#[test]
fn a_limit_beyond_all_time_is_none() {
    let (_, deadlines) = deadlines(Mode::EnforceAll);
    assert_eq!(started(&deadlines, NONE, &asking(Duration::MAX)), Ok(None));
    let capped = Terms { max: Some(SECOND), ..asking(Duration::MAX) };
    assert_eq!(started(&deadlines, NONE, &capped), Ok(Some(SECOND)));
}

#[test]
fn a_call_with_less_time_than_is_useful_is_not_started() {
    let (clock, deadlines) = deadlines(Mode::EnforceAll);
    let start = |left: Duration| {
        let context = NONE.with_deadline(clock.now() + left);
        started(&deadlines, context, &Terms { min_useful: MS, ..Terms::default() })
    };
    assert_eq!(start(Duration::ZERO), Err("deadline_expired"));
    assert_eq!(start(MS - Duration::from_nanos(1)), Err("deadline_too_short"));
    assert_eq!(start(MS), Ok(Some(MS)));
    assert_eq!((deadlines.expired(), deadlines.observed()), (2, 0));
}

#[test]
fn a_rejection_before_the_start_is_no_evidence_and_an_exceeded_deadline_is_not_retried() {
    let (clock, deadlines) = deadlines(Mode::EnforceAll);
    let (_, call) = start(&deadlines, NONE, &asking(2 * SECOND)).unwrap();
    clock.advance(3 * SECOND);
    let exceeded = call.exceed();
    assert_eq!(exceeded.to_string(), "deadline: the deadline passed before the call ended (2s)");
    assert!(exceeded.outcome().failure().is_some_and(|failure| failure.no_retry));
    assert_eq!((exceeded.http_status(), exceeded.is_unprocessed()), (504, false));
    let expired = start(&deadlines, NONE, &asking(Duration::ZERO)).unwrap_err();
    assert_eq!((expired.http_status(), expired.is_unprocessed()), (504, true));
    assert_eq!(expired.outcome(), Outcome::Ignored(crate::Ignored::LocalReject));
}

#[test]
fn to_observe_is_to_count_and_to_change_nothing() {
    let (clock, deadlines) = deadlines(Mode::Observe);
    let outer = NONE.with_deadline(clock.now() + 5 * SECOND);
    for (asked, observed) in [(SECOND, Some(clock.now() + SECOND)), (Duration::ZERO, None)] {
        let mut context = outer;
        let (call, deadline) = deadlines.start(&mut context, &asking(asked)).unwrap();
        assert_eq!((context, call.had(), deadline), (outer, None, observed));
    }
    assert_eq!((deadlines.expired(), deadlines.observed()), (0, 1));
}

#[test]
fn no_more_than_a_fifth_of_the_calls_of_ten_seconds_is_rejected_and_the_rest_gets_the_limits_of_the_server() {
    let (clock, deadlines) = deadlines(Mode::Enforce);
    let late = Terms { max: Some(60 * SECOND), ..asking(Duration::ZERO) };
    let mut outcomes = (0..50).map(|_| started(&deadlines, NONE, &late));
    assert!(outcomes.by_ref().take(4).all(|outcome| outcome == Ok(Some(60 * SECOND))));
    assert_eq!(outcomes.next(), Some(Err("deadline_expired")));
    assert_eq!(outcomes.filter(Result::is_err).count(), 9);
    assert_eq!((deadlines.expired(), deadlines.observed()), (10, 40));
    // What was let through counts as calls, and the window moves.
    clock.advance(11 * SECOND);
    assert!(started(&deadlines, NONE, &late).is_ok(), "one of one is more than a fifth");
}

#[test]
fn calls_in_time_make_room_for_rejections() {
    let (_, deadlines) = deadlines(Mode::Enforce);
    (0..100).for_each(|_| assert_eq!(started(&deadlines, NONE, &Terms::default()), Ok(None)));
    let late = asking(Duration::ZERO);
    let rejected = (0..100).filter(|_| started(&deadlines, NONE, &late).is_err()).count();
    // 25 of 125, and then one more for each five.
    assert_eq!(rejected, 40);
}

#[test]
fn a_call_that_is_let_through_is_rid_of_the_deadline_that_has_passed() {
    let (clock, deadlines) = deadlines(Mode::Enforce);
    let passed = NONE.with_deadline(clock.now());
    assert_eq!(started(&deadlines, passed, &Terms::default()), Ok(None));
    let limits = Terms { default: Some(SECOND), ..Terms::default() };
    assert_eq!(started(&deadlines, passed, &limits), Ok(Some(SECOND)));
}

#[test]
fn a_share_of_none_rejects_no_call_and_one_of_all_rejects_each() {
    for (share, rejected) in [(0.0, 0), (1.0, 20)] {
        let deadlines = Deadlines::builder().max_share(share).build().unwrap();
        let late = (0..20).filter(|_| started(&deadlines, NONE, &asking(Duration::ZERO)).is_err()).count();
        assert_eq!(late, rejected);
    }
}

#[test]
fn the_mode_can_be_changed_while_calls_are_made() {
    let (_, deadlines) = deadlines(Mode::Observe);
    assert!(started(&deadlines, NONE, &asking(Duration::ZERO)).is_ok());
    for mode in [Mode::EnforceAll, Mode::Enforce, Mode::Observe] {
        deadlines.set_mode(mode);
        assert_eq!(deadlines.mode(), mode);
    }
    deadlines.set_mode(Mode::EnforceAll);
    assert!(started(&deadlines, NONE, &asking(Duration::ZERO)).is_err());
}

/// A clock whose coarse time is ten milliseconds behind.
#[derive(Clone, Debug)]
struct Behind(ManualClock);

impl Clock for Behind {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn coarse(&self) -> Instant {
        self.0.now() - 10 * MS
    }
}

#[test]
fn a_coarse_clock_makes_far_deadlines_early_by_its_tick_and_near_ones_exact() {
    let clock = ManualClock::new();
    let deadlines = super::Deadlines::<ManualClock>::builder().clock(Behind(clock.clone())).build().unwrap();
    let left = |context: CallContext, terms: &Terms| {
        start(&deadlines, context, terms).unwrap().0.deadline.unwrap() - clock.now()
    };
    assert_eq!(left(NONE, &asking(NEAR)), NEAR - 10 * MS);
    assert_eq!(left(NONE, &asking(NEAR - MS)), NEAR - MS);
    let context = NONE.with_deadline(clock.now() + 5 * MS);
    assert_eq!(left(context, &asking(SECOND)), 5 * MS);
    let passed = NONE.with_deadline(clock.now() - MS);
    deadlines.set_mode(Mode::EnforceAll);
    assert!(start(&deadlines, passed, &Terms::default()).is_err(), "by the coarse clock there are 9 ms left");
    assert_eq!(Deadline(clock.now() + 5 * MS).left_on(&Behind(clock.clone())), 5 * MS);
}

#[test]
fn it_reports_what_it_counted_under_its_name() {
    let deadlines = Deadlines::builder().name("orders").mode(Mode::EnforceAll).build().unwrap();
    assert!(start(&deadlines, NONE, &asking(Duration::ZERO)).is_err());
    let (_, call) = start(&deadlines, NONE, &asking(SECOND)).unwrap();
    let rejection = call.exceed();
    assert_eq!(rejection.name(), Some("orders"));
    let counted: Vec<_> = testing::reported(&deadlines).into_iter().map(|(name, _, value)| (name, value)).collect();
    let expected = [("exceeded", 1), ("expired", 1), ("observed", 0)];
    let expected = expected.map(|(name, n)| (format!("resilience.deadline.{name}"), crate::report::Value::Counter(n)));
    assert_eq!(counted.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect::<Vec<_>>(), expected);
}

#[test]
fn a_call_that_has_started_is_two_words() {
    assert_eq!(size_of::<Started>(), 2 * size_of::<u64>());
}

prop_compose! {
    fn terms()(asked in time(), default in time(), max in time(), min_useful in 0..5u32) -> Terms {
        Terms { asked, until: None, default, max, min_useful: min_useful * MS }
    }
}

fn time() -> impl Strategy<Value = Option<Duration>> {
    prop::option::of((0..2_000u64).prop_map(Duration::from_millis))
}

proptest! {
    /// A call through services, each with limits of its own, that take some time before the next.
    #[test]
    fn deadlines_do_not_grow_along_a_chain_of_services(chain in prop::collection::vec((terms(), 0..300u32), 1..8)) {
        let (clock, deadlines) = deadlines(Mode::EnforceAll);
        let mut context = NONE;
        for (terms, takes) in chain {
            let now = clock.now();
            let next = match start(&deadlines, context, &terms) {
                Ok((next, _started)) => next,
                Err(_) => {
                    let own = terms.limit().map_or(Duration::MAX, |limit| limit);
                    let left = context.deadline.map_or(own, |deadline| own.min(deadline.saturating_duration_since(now)));
                    prop_assert!(left.is_zero() || left < terms.min_useful);
                    return Ok(());
                }
            };
            if let Some(before) = context.deadline {
                prop_assert!(next.deadline.is_some_and(|deadline| deadline <= before));
            }
            if let Some(limit) = terms.limit() {
                prop_assert!(next.deadline.is_some_and(|deadline| deadline <= now + limit));
            }
            prop_assert!(next.deadline.is_none_or(|deadline| deadline >= now + terms.min_useful && deadline > now));
            context = next;
            clock.advance(takes * MS);
        }
    }

    #[test]
    fn the_share_of_rejections_is_bounded_at_any_moment(
        calls in prop::collection::vec((any::<bool>(), 0..2_000u32), 1..200),
    ) {
        let (clock, deadlines) = deadlines(Mode::Enforce);
        let mut made: Vec<(Instant, bool)> = Vec::new();
        for (is_late, pause) in calls {
            clock.advance(pause * MS);
            let now = clock.now();
            let is_rejected = started(&deadlines, NONE, &if is_late { asking(Duration::ZERO) } else { asking(SECOND) }).is_err();
            made.push((now, is_rejected));
            // The window covers nine tenths to all of its length.
            let window: Vec<_> = made.iter().filter(|(at, _)| now - *at < 9 * SECOND).collect();
            let rejected = window.iter().filter(|(_, rejected)| *rejected).count();
            let all = made.iter().filter(|(at, _)| now - *at < 10 * SECOND).count();
            prop_assert!(!is_rejected || rejected * 5 <= all, "{rejected} of {all}");
        }
    }
}
