//! The fields `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-11.
//!
//! Both are lists of strings with parameters (RFC 9651): the name of the policy, with its quota `q`
//! and window `w` in seconds, and with the remaining calls `r` and the seconds `t` until there are
//! more. Items of several policies are fields of their own, which the draft allows.
//!
//! The draft knows no burst and no parts of seconds. A quota for a part of a second is told for
//! whole seconds. The remaining calls are never more than the quota: a hint that is too low costs a
//! caller some time, and one that is too high a rejection.

use buttress::{
    Rejection,
    policy::{Class, Quota, Usage},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{fmt::Write, time::Duration};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The largest integer of a structured field: 15 digits (RFC 9651, section 3.3.1).
const LARGEST: u64 = 999_999_999_999_999;

/// Adds what is left of a quota.
pub(crate) fn advertise(headers: &mut HeaderMap, usage: &Usage) {
    append(headers, usage.name.as_deref(), &usage.quota, usage.remaining.into(), usage.next);
}

/// Adds the quota of a caller that is over its rate. Nothing remains of it, also for a call that
/// costs more than is left.
pub(crate) fn reject(headers: &mut HeaderMap, rejection: &Rejection) {
    if let (Class::RateLimited, Some(quota)) = (rejection.reason().class(), rejection.quota()) {
        append(headers, rejection.name(), &quota, 0, rejection.retry_after());
    }
}

fn append(headers: &mut HeaderMap, name: Option<&str>, quota: &Quota, remaining: u64, next: Option<Duration>) {
    let name = string(name.unwrap_or("default"));
    let (limit, window) = limit_and_window(quota);
    let mut left = format!("{name};r={}", remaining.min(limit));
    if let Some(next) = next {
        // A `String` takes any text.
        let _ = write!(left, ";t={}", seconds(next).max(1));
    }
    for (field, text) in [(RATE_LIMIT_POLICY, format!("{name};q={limit};w={window}")), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.append(field, value);
        }
    }
}

/// Returns the calls in a window of whole seconds, both rounded so that the rate is not above the
/// limit.
fn limit_and_window(quota: &Quota) -> (u64, u64) {
    let window = seconds(quota.period).max(1);
    let calls = u128::from(quota.limit) * u128::from(window) * 1_000_000_000 / quota.period.as_nanos().max(1);
    (u64::try_from(calls).unwrap_or(LARGEST).min(LARGEST), window)
}

/// Returns a time in whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).min(LARGEST)
}

/// Returns a structured string (RFC 9651, section 4.1.6). Characters that it cannot have become
/// question marks.
fn string(text: &str) -> String {
    let mut string = String::with_capacity(text.len() + 2);
    string.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => string.extend(['\\', c]),
            ' '..='~' => string.push(c),
            _ => string.push('?'),
        }
    }
    string.push('"');
    string
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress::RateLimit;
    use proptest::prelude::*;

    fn fields(headers: &HeaderMap) -> Vec<(&str, &str)> {
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    fn left(quota: Quota, remaining: u32, next: Option<Duration>) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        advertise(&mut headers, &Usage { name: None, quota, remaining, next });
        fields(&headers).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn pair(policy: &str, limit: &str) -> Vec<(String, String)> {
        vec![("ratelimit-policy".into(), policy.into()), ("ratelimit".into(), limit.into())]
    }

    #[test]
    fn a_quota_is_told_with_its_window_what_is_left_and_when_there_is_more() {
        let quota = Quota::per_minute(100);
        assert_eq!(
            left(quota, 7, Some(Duration::from_millis(600))),
            pair(r#""default";q=100;w=60"#, r#""default";r=7;t=1"#)
        );
        assert_eq!(left(quota, 100, None), pair(r#""default";q=100;w=60"#, r#""default";r=100"#));
    }

    #[test]
    fn a_rejection_tells_that_nothing_is_left() {
        let limit = RateLimit::named("search", 1, Duration::from_secs(60));
        limit.try_take(1).unwrap();
        let mut headers = HeaderMap::new();
        reject(&mut headers, &limit.try_take(1).unwrap_err());
        assert_eq!(
            fields(&headers),
            [("ratelimit-policy", r#""search";q=1;w=60"#), ("ratelimit", r#""search";r=0;t=60"#)]
        );
        let mut headers = HeaderMap::new();
        reject(&mut headers, &limit.try_take(2).unwrap_err());
        reject(&mut headers, &Rejection::new("bulkhead", &buttress::bulkhead::FULL));
        assert!(headers.is_empty(), "a call that is never admitted, and a policy without a quota");
    }

    #[test]
    fn a_window_has_whole_seconds_and_no_higher_rate() {
        let of = |limit, millis| limit_and_window(&Quota::new(limit, Duration::from_millis(millis)));
        assert_eq!(of(10, 100), (100, 1));
        assert_eq!(of(1, 1500), (1, 2));
        assert_eq!(of(10, 1500), (13, 2));
        assert_eq!(of(0, 1000), (0, 1));
        assert_eq!(of(u32::MAX, 0), (LARGEST, 1));
        assert_eq!(limit_and_window(&Quota::new(1, Duration::MAX)), (0, LARGEST));
    }

    #[test]
    fn more_than_the_quota_is_never_told() {
        let quota = Quota { burst: 500, ..Quota::per_second(100) };
        assert_eq!(left(quota, 500, None), pair(r#""default";q=100;w=1"#, r#""default";r=100"#));
    }

    #[test]
    fn several_policies_are_several_items() {
        let mut headers = HeaderMap::new();
        for (name, quota) in [("second", Quota::per_second(10)), ("minute", Quota::per_minute(100))] {
            advertise(&mut headers, &Usage { name: Some(name.into()), quota, remaining: 3, next: None });
        }
        let of = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(of("ratelimit"), [r#""second";r=3"#, r#""minute";r=3"#]);
        assert_eq!(of("ratelimit-policy"), [r#""second";q=10;w=1"#, r#""minute";q=100;w=60"#]);
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_item_is_one_string(name in ".*", remaining in any::<u32>(), nanos in any::<u64>()) {
            let mut headers = HeaderMap::new();
            let next = Some(Duration::from_nanos(nanos));
            advertise(&mut headers, &Usage { name: Some(name.into()), quota: Quota::per_second(9), remaining, next });
            for field in ["ratelimit", "ratelimit-policy"] {
                let text = headers[field].to_str().unwrap();
                let mut chars = text.chars().skip(1);
                // The string ends at the first quote that is not escaped, and parameters follow.
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    if c == '\\' {
                        prop_assert!(matches!(chars.next(), Some('"' | '\\')));
                    }
                }
                let rest: String = chars.collect();
                prop_assert!(rest.starts_with(";r=") || rest.starts_with(";q="), "{text}");
                prop_assert!(rest.chars().all(|c| c.is_ascii_digit() || ";=rtqw".contains(c)), "{text}");
            }
        }
    }
}
