use buttress::keyed::{KeyOf, Keyed};
use http::{Request, header, uri::Authority};

/// The key of [`per_host`]: the host of a request, with its port if the request names one.
///
/// ```
/// use buttress::{Bulkhead, keyed::Keyed};
/// use buttress_http::PerHost;
///
/// // As `per_host`, with a policy for each of 50 hosts.
/// let bulkheads = Keyed::builder(PerHost, |_: &Box<str>| Bulkhead::new(10)).max_keys(50).build()?;
/// # let _: Keyed<_, _, PerHost> = bulkheads;
/// # Ok::<(), buttress::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct PerHost;

/// Makes a policy for each host that requests are sent to.
///
/// The host is the authority of the URI, or the `Host` header if the URI has none. A request with
/// neither has the empty key. Policies are kept for at most 1,000 hosts;
/// [`Keyed::builder`] with [`PerHost`] sets another number.
///
/// ```
/// use buttress::{CircuitBreaker, gate::GateLayer};
/// use buttress_http::{per_host, prelude::*};
///
/// let circuits = per_host(|host| CircuitBreaker::new(host.to_string()));
/// let layer = GateLayer::with_policy(circuits.clone()).http_client();
/// assert_eq!(circuits.len(), 0); // a circuit is made at the first request to its host
/// # let _ = layer;
/// ```
pub fn per_host<A>(make: impl Fn(&Box<str>) -> A + Send + Sync + 'static) -> Keyed<Box<str>, A, PerHost> {
    Keyed::new(PerHost, make)
}

impl<B> KeyOf<Request<B>, Box<str>> for PerHost {
    /// Returns the host in lower case, because hosts are case-insensitive (RFC 9110, section
    /// 4.2.3), and without the user information before an `@`.
    fn key_of(&self, request: &Request<B>) -> Box<str> {
        let of_uri = request.uri().authority().map(Authority::as_str);
        let of_header = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = of_uri.or_else(of_header).unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        host.to_ascii_lowercase().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_that_of_the_uri_or_else_of_the_header_in_lower_case() {
        let key = |uri: &str, host: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            PerHost.key_of(&request.body(()).unwrap())
        };
        assert_eq!(&*key("http://Example.org:81/a", Some("other")), "example.org:81");
        assert_eq!(&*key("http://user:secret@example.org/a", None), "example.org");
        assert_eq!(&*key("/a", Some("Example.org")), "example.org");
        assert_eq!(&*key("/a", None), "");
    }
}
