//! Marks the responses of fallbacks.

use crate::answer::percent_encode;
use buttress::{fallback::Used, policy::Name};
use http::{HeaderName, HeaderValue, Response};
use http_body_util::Either;

/// The header of a response that a fallback made.
const FALLBACK: HeaderName = HeaderName::from_static("x-fallback");

/// Marks the response of the fallback `name` with the header `x-fallback` and the extension
/// [`Used`].
pub(crate) fn mark<B, T>(mut response: Response<T>, name: Option<&Name>) -> Response<Either<B, T>> {
    let value = match name {
        None => HeaderValue::from_static("fallback"),
        // Percent-encoded text is visible ASCII, which is always valid.
        Some(name) => HeaderValue::from_str(name)
            .or_else(|_| HeaderValue::from_str(&percent_encode(name)))
            .unwrap_or(HeaderValue::from_static("fallback")),
    };
    response.headers_mut().insert(FALLBACK, value);
    response.extensions_mut().insert(Used::new(name.cloned()));
    response.map(Either::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(name: Option<&'static str>) -> Response<Either<(), ()>> {
        mark(Response::new(()), name.map(Name::from).as_ref())
    }

    #[test]
    fn a_response_is_marked_with_the_name_of_its_fallback_and_the_name_may_be_any_text() {
        for (name, header) in [(None, "fallback"), (Some("stale price"), "stale price"), (Some("ü\n"), "%C3%BC%0A")] {
            let response = marked(name);
            assert_eq!(response.headers()["x-fallback"], header);
            assert_eq!(response.extensions().get::<Used>().unwrap().name(), name);
        }
    }
}
