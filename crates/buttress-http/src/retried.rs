//! The marks of what was repeated: of a response whose call was repeated in vain, and of a request
//! that is a retry.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header of a failed response whose call the sender has repeated already, or for which its
/// budget was empty. Its value is the number of retries.
const RETRIED: HeaderName = HeaderName::from_static("x-buttress-retried");

/// The headers of a repeated request, with the number of earlier attempts: that of Buttress, and
/// gRPC's (gRFC A6).
pub(crate) const ATTEMPT: HeaderName = HeaderName::from_static("x-retry-attempt");
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Returns whether a failed response is marked. Its value does not matter: the mark can only lead
/// to fewer retries.
pub(crate) fn is_marked(headers: &HeaderMap) -> bool {
    headers.contains_key(RETRIED)
}

/// Marks a failed response. A mark of a service below is left as it is.
pub(crate) fn mark(headers: &mut HeaderMap, retries: u32) {
    headers.entry(RETRIED).or_insert_with(|| HeaderValue::from(retries));
}

/// Returns whether a request is the retry or the hedge of a caller. A number that is unreadable
/// counts as one above 0.
pub(crate) fn is_repeated(headers: &HeaderMap) -> bool {
    [ATTEMPT, PREVIOUS_ATTEMPTS].iter().any(|name| headers.get_all(name).iter().any(|value| value != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_response_is_marked_by_the_service_that_is_nearest_to_the_failure() {
        let mut response = HeaderMap::new();
        assert!(!is_marked(&response));
        mark(&mut response, 2);
        mark(&mut response, 0);
        assert_eq!(response[RETRIED], "2");
        assert!(is_marked(&response) && is_marked(&headers(&[("x-buttress-retried", "nonsense")])));
    }

    #[test]
    fn a_request_with_the_number_of_an_earlier_attempt_above_zero_is_a_retry() {
        for name in ["x-retry-attempt", "grpc-previous-rpc-attempts"] {
            for (value, expected) in [("0", false), ("1", true), ("4294967296", true), ("-1", true), ("", true)] {
                assert_eq!(is_repeated(&headers(&[(name, value)])), expected, "{name}: {value}");
            }
        }
        assert!(!is_repeated(&HeaderMap::new()));
    }
}
