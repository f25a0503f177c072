use buttress::{
    Reason, Rejection,
    exit::{Exit, ExitError},
};
use http::{HeaderValue, Response, StatusCode, header};

/// Rejections leave as HTTP responses: 503 with `Retry-After`, or 504 for a timeout. The error type stays the inner service's.
///
/// The body is empty, and the typed [`Rejection`] is in the response's extensions, for layers outside that want to say more.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsHttp;

/// Rejections leave as trailers-only gRPC responses, with `grpc-status`, `grpc-message`, and `grpc-retry-pushback-ms` where it is known when to
/// come back. The error type stays the inner service's.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsGrpc;

impl<E: 'static> ExitError<E> for AsHttp {
    type Error = E;

    fn inner(&self, error: E) -> E {
        error
    }
}

impl<E: 'static> ExitError<E> for AsGrpc {
    type Error = E;

    fn inner(&self, error: E) -> E {
        error
    }
}

impl<B: Default, E: 'static> Exit<Response<B>, E> for AsHttp {
    fn reject(&self, rejection: Rejection) -> Result<Response<B>, E> {
        let mut response = Response::new(B::default());
        *response.status_mut() = match rejection.reason() {
            Reason::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            // Whole seconds, rounded up. Where nobody knows when, a second is the shortest that can be said.
            let after = rejection.retry_after().unwrap_or_default();
            let seconds = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(rejection);
        Ok(response)
    }
}

impl<B: Default, E: 'static> Exit<Response<B>, E> for AsGrpc {
    fn reject(&self, rejection: Rejection) -> Result<Response<B>, E> {
        let mut response = Response::new(B::default());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", rejection.grpc_status().into());
        if let Ok(message) = HeaderValue::from_str(&percent_encode(&rejection.to_string())) {
            headers.insert("grpc-message", message);
        }
        if let Some(millis) = rejection.grpc_pushback() {
            headers.insert("grpc-retry-pushback-ms", millis.into());
        }
        response.extensions_mut().insert(rejection);
        Ok(response)
    }
}

/// As the gRPC protocol wants `grpc-message`: printable ASCII but `%` stands for itself.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, time::Duration};

    fn http(reason: Reason, after: Option<Duration>) -> Response<String> {
        let result: Result<_, Infallible> = AsHttp.reject(Rejection::new("test", reason).after(after));
        result.unwrap()
    }

    #[test]
    fn a_rejection_is_a_503_that_says_when_in_whole_seconds_rounded_up() {
        let response = http(Reason::CircuitOpen, Some(Duration::from_millis(1001)));
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"2".parse().unwrap()));
        assert_eq!(response.extensions().get::<Rejection>().unwrap().reason(), Reason::CircuitOpen);
        assert_eq!(http(Reason::BulkheadFull, None).headers()["retry-after"], "1");
        let centuries =
            http(Reason::BulkheadFull, Some(Duration::MAX)).headers()["retry-after"].to_str().unwrap().parse::<u64>();
        assert!(centuries.unwrap() > 500 * 365 * 86_400);
    }

    #[test]
    fn a_timeout_is_a_504_and_does_not_invite_to_come_back() {
        let response = http(Reason::TimedOut(buttress::TimeoutKind::Total), None);
        assert_eq!((response.status().as_u16(), response.headers().get("retry-after")), (504, None));
    }

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        let rejection = Rejection::new("100 % of é", Reason::CircuitOpen).after(Some(Duration::from_millis(1500)));
        let result: Result<Response<String>, Infallible> = AsGrpc.reject(rejection);
        let response = result.unwrap();
        assert_eq!(response.headers()["grpc-message"], "100 %25 of %C3%A9: open; try again in 1.5s");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1500");
        assert_eq!(response.headers()["grpc-status"], "14");
    }
}
