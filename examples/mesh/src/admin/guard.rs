//! Which requests reach the operators' endpoints.
//!
//! A browser on the operator's machine can reach loopback too, and runs pages of strangers. Such a
//! page can send requests to a local port (cross-site request forgery), and can give its own name
//! the address 127.0.0.1 to read the answers (DNS rebinding). So in this order:
//!
//! 1. Without a token, `Host` must be a loopback name. A page that rebinds its name sends that
//!    name.
//! 2. A request that a browser sends for a page of another origin is rejected (`Origin`,
//!    `Sec-Fetch-Site`). A cached password would be sent with it.
//! 3. With a token, the request must carry it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri, header};

use super::Token;
use crate::problem::Problem;

#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// The address that the listener is bound to.
    bound: IpAddr,
    token: Option<Token>,
}

impl Guard {
    pub(super) fn new(bound: SocketAddr, token: Option<Token>) -> Self {
        Self { bound: bound.ip(), token }
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), StatusCode> {
        // HTTP/2 has the host in the URI.
        let host = match headers.get(header::HOST) {
            Some(host) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
            None => uri.authority().cloned(),
        };
        let host = host.ok_or(StatusCode::BAD_REQUEST)?;
        if self.token.is_none() && !self.is_local(host.host()) {
            return Err(StatusCode::MISDIRECTED_REQUEST);
        }
        if is_foreign(headers, &host) {
            return Err(StatusCode::FORBIDDEN);
        }
        match &self.token {
            Some(token) if !token.is_in(headers) => Err(StatusCode::UNAUTHORIZED),
            _ => Ok(()),
        }
    }

    fn is_local(&self, host: &str) -> bool {
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback() || ip == self.bound)
    }
}

/// Whether a browser says that another site's page has caused the request.
fn is_foreign(headers: &HeaderMap, host: &Authority) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    // `none` is an address typed by the user.
    if site.is_some_and(|site| ![&b"same-origin"[..], b"none"].contains(&site)) {
        return true;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    origin.is_none_or(|origin| origin.authority() != Some(host))
}

/// Middleware around everything but the probes.
pub(super) async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(status) => {
            tracing::debug!(%status, path = request.uri().path(), "an operator's request was rejected");
            let rule = match status {
                StatusCode::BAD_REQUEST => "the Host header is missing or malformed",
                StatusCode::MISDIRECTED_REQUEST => "Host: must be localhost or the address of this listener",
                StatusCode::FORBIDDEN => "a page of another origin must not call this",
                _ => "a token is needed: as a bearer token, or as the password of HTTP Basic",
            };
            let mut response = Problem::from_status(status, rule).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let ask = http::HeaderValue::from_static("Basic realm=\"operators\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request};

    use super::*;

    fn check(token: Option<&str>, headers: &[(&'static str, &str)]) -> u16 {
        let token = token.map(|token| Token::new(token).unwrap());
        let guard = Guard::new("127.0.0.1:9081".parse().unwrap(), token);
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        guard
            .check(&Uri::from_static("/admin/state"), &headers.collect())
            .map_or_else(|status| status.as_u16(), |()| 200)
    }

    #[test]
    fn a_name_that_was_rebound_to_loopback_is_rejected() {
        for right in ["localhost:9081", "LOCALHOST", "127.0.0.1:9081", "127.0.0.2:1", "[::1]:9081"] {
            assert_eq!(check(None, &[("host", right)]), 200, "{right}");
        }
        for wrong in ["evil.example:9081", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0"] {
            assert_eq!(check(None, &[("host", wrong)]), 421, "{wrong}");
        }
        assert_eq!((check(None, &[]), check(None, &[("host", "a b")])), (400, 400));
        // HTTP/2.
        let guard = Guard::new("127.0.0.1:9081".parse().unwrap(), None);
        let status = |uri: &'static str| guard.check(&Uri::from_static(uri), Request::new(()).headers());
        assert_eq!(status("http://localhost:9081/metrics"), Ok(()));
        assert_eq!(status("http://evil.example/metrics"), Err(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn a_page_of_another_origin_cannot_call_it() {
        let host = ("host", "localhost:9081");
        assert_eq!(check(None, &[host, ("origin", "http://localhost:9081")]), 200);
        assert_eq!(check(None, &[host, ("sec-fetch-site", "same-origin")]), 200);
        assert_eq!(check(None, &[host, ("sec-fetch-site", "none")]), 200, "typed by the user");
        for origin in ["http://evil.example", "http://localhost:8080", "null", "http://localhost"] {
            assert_eq!(check(None, &[host, ("origin", origin)]), 403, "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(check(None, &[host, ("sec-fetch-site", site)]), 403, "{site}");
        }
    }

    #[test]
    fn with_a_token_any_name_is_served_to_those_who_have_it() {
        let token = Some("0123456789abcdef");
        let right = ("authorization", "Bearer 0123456789abcdef");
        assert_eq!(check(token, &[("host", "order:9081"), right]), 200);
        assert_eq!(check(token, &[("host", "order:9081")]), 401);
        assert_eq!(check(token, &[("host", "localhost"), ("authorization", "Bearer wrong-wrong-wrong")]), 401);
        let foreign = ("origin", "http://evil.example");
        assert_eq!(check(token, &[("host", "order:9081"), foreign, right]), 403, "with a cached password");
    }
}
