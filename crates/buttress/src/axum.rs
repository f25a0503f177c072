//! Converts errors of a stack into responses of axum.

use crate::{Error, wire::OnTheWire};
use axum_core::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

/// For handlers that call other services and return the error.
///
/// A rejection becomes 503 with `Retry-After`, or 504 for a timeout, by the table in
/// [`wire`](crate::wire). Any other error becomes 502. The body is `application/problem+json` (RFC
/// 9457) with the reason of a rejection. The name of the policy and inner errors are internal and
/// left out.
///
/// The response does not claim that the request was not processed: the handler may have done a part
/// of its work. So a rejection of the class [`RateLimited`](crate::policy::Class::RateLimited)
/// becomes 503, not 429, which clients repeat whatever the method; and it is the handler that
/// exceeds a rate, not its caller. One of the class [`Refused`](crate::policy::Class::Refused)
/// becomes 502, not 403: the caller did nothing that is forbidden.
///
/// ```
/// use axum_core::response::IntoResponse;
/// use buttress::{Error, Rejection, bulkhead};
///
/// let response = Error::from(Rejection::new("bulkhead", &bulkhead::FULL)).into_response();
/// assert_eq!(response.status(), 503);
/// assert_eq!(response.headers()["retry-after"], "1");
/// ```
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let rejection = self.rejection();
        let status = match rejection.map(|rejection| StatusCode::from_u16(rejection.http_status())) {
            Some(Ok(StatusCode::TOO_MANY_REQUESTS) | Err(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Some(Ok(StatusCode::FORBIDDEN)) => StatusCode::BAD_GATEWAY,
            Some(Ok(status)) => status,
            None => StatusCode::BAD_GATEWAY,
        };
        let mut problem =
            format!(r#"{{"title":"{}","status":{}"#, status.canonical_reason().unwrap_or_default(), status.as_u16());
        if let Some(rejection) = rejection {
            problem += &format!(r#","reason":"{}""#, escape(rejection.reason().word()));
        }
        problem.push('}');
        let mut response = Response::new(Body::from(problem));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = rejection.and_then(OnTheWire::http_retry_after) {
            headers.insert(header::RETRY_AFTER, after.into());
        }
        response
    }
}

/// Escapes a text for a JSON string (RFC 8259, section 7).
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, Rejection, bulkhead, timeout};
    use buttress_core::{Class, Reason};
    use std::time::Duration;

    fn of(error: impl Into<BoxError>) -> (u16, Option<String>, String) {
        let response = Error::from_inner(error).into_response();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers().get("x-buttress-rejected"), None, "the handler may have done half of its work");
        let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(http_body_util::BodyExt::collect(response.into_body())).unwrap().to_bytes();
        let status = body.windows(3).find_map(|w| std::str::from_utf8(w).ok()?.parse().ok()).unwrap();
        (status, after, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_rejection_becomes_a_problem_with_its_reason_and_when_to_come_back() {
        let full = Error::from(Rejection::new("bulkhead", &bulkhead::FULL).after(Some(Duration::from_millis(1001))));
        let json = r#"{"title":"Service Unavailable","status":503,"reason":"bulkhead_full"}"#;
        assert_eq!(of(full), (503, Some("2".into()), json.into()));
        let late = Error::from(Rejection::new("timeout", &timeout::TOTAL));
        let json = r#"{"title":"Gateway Timeout","status":504,"reason":"total_timeout"}"#;
        assert_eq!(of(late), (504, None, json.into()));
    }

    #[test]
    fn another_error_becomes_a_bad_gateway_and_is_not_shown() {
        let (status, after, body) = of(std::io::Error::other("password of the database"));
        assert_eq!((status, after, body.contains("password")), (502, None, false));
    }

    #[test]
    fn a_request_that_the_handler_may_not_make_is_not_forbidden_to_its_caller() {
        static NOT_THERE: Reason = Reason::new("egress", "not on the list", Class::Refused);
        assert_eq!(of(Error::from(Rejection::new("egress", &NOT_THERE))).0, 502);
    }

    #[test]
    fn a_word_of_a_user_cannot_break_out_of_its_string() {
        static ODD: Reason = Reason::new("a\"b\\c\n", "odd", Class::RateLimited);
        let (status, after, body) = of(Error::from(Rejection::new("mine", &ODD)));
        assert_eq!((status, after.as_deref()), (503, Some("1")));
        assert!(body.ends_with(r#""reason":"a\"b\\c\u000a"}"#), "{body}");
    }
}
