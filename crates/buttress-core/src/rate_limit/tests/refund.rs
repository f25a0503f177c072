use super::*;

#[test]
fn what_was_taken_and_not_used_is_given_back_whole() {
    let (limit, _) = limit(quota(10, SECOND, 5));
    let first = limit.try_take(2).unwrap();
    let _second = limit.try_take(1).unwrap();
    assert!(limit.give_back(first));
    assert_eq!(limit.available(), 4, "a call that came later keeps its own");
}

#[test]
fn what_time_has_refilled_is_not_given_back_again() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    let permit = limit.try_take(2).unwrap();
    clock.advance(150 * MILLI);
    assert!(limit.give_back(permit));
    assert_eq!((limit.available(), limit.is_idle()), (5, true));
    let permit = limit.try_take(2).unwrap();
    clock.advance(200 * MILLI);
    limit.try_take(5).unwrap();
    assert!(!limit.give_back(permit), "it was refilled, and another call has taken that");
    assert_eq!(limit.available(), 0);
}

#[test]
fn the_last_reservation_is_given_back_and_the_next_call_takes_its_start() {
    let (limit, clock) = limit(quota(1, SECOND, 1));
    limit.try_take(1).unwrap();
    let waits = limit.reserve(1, 9 * SECOND).unwrap();
    clock.advance(500 * MILLI);
    assert!(limit.give_back(waits.permit));
    assert_eq!(limit.reserve(1, 9 * SECOND).unwrap().wait, 500 * MILLI);
}

#[test]
fn a_reservation_before_another_one_is_kept() {
    let (limit, clock) = limit(quota(1, SECOND, 1));
    limit.try_take(1).unwrap();
    let (first, second) = (limit.reserve(1, 9 * SECOND).unwrap(), limit.reserve(1, 9 * SECOND).unwrap());
    assert_eq!((first.wait, second.wait), (SECOND, 2 * SECOND));
    assert!(!limit.give_back(first.permit), "the second one starts after 2 s whatever is given back");
    assert_eq!(limit.reserve(1, 9 * SECOND).unwrap().wait, 3 * SECOND);
    clock.advance(2 * SECOND);
    assert_eq!(limit.available(), 0);
}

#[test]
fn nothing_is_given_back_across_a_reload() {
    let (limit, _) = limit(quota(10, SECOND, 10));
    let permit = limit.try_take(5).unwrap();
    limit.set_limit(100);
    assert!(!limit.give_back(permit));
    assert_eq!(limit.available(), 5);
}
