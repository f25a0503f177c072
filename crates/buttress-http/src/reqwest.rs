//! reqwest's client as a service over the types of `http`.
//!
//! `reqwest::Client` is a Tower service over its own request and response types, so only `.plain()`
//! fits around it. A plain ending reads no status, no `Retry-After` and no end of a body, and does
//! not repeat a streaming body. [`ReqwestService`] converts requests and responses, so that the
//! HTTP endings fit:
//!
//! ```
//! use buttress_http::{prelude::*, reqwest::ReqwestService};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let client = ReqwestService::build(reqwest::Client::builder())?;
//! # let client = ReqwestService::build(reqwest::Client::builder().no_proxy())?;
//! let stack = ServiceBuilder::new()
//!     .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
//!     .layer(RetryLayer::new(3).http_client())
//!     .layer(CircuitBreakerLayer::new("payments").http_client())
//!     .layer(TimeoutLayer::attempt(Duration::from_millis(500)).http_client())
//!     .service(client.clone());
//!
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}/pay", listener.local_addr()?);
//! # tokio::spawn(async move {
//! #     use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! #     let mut socket = listener.accept().await.unwrap().0;
//! #     socket.read(&mut [0; 1024]).await.unwrap();
//! #     socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npaid").await.unwrap();
//! #     std::future::pending::<()>().await
//! # });
//! // A request made by reqwest's builder.
//! let request = client.get_ref().post(url).bearer_auth("secret").body("42 EUR").build()?;
//! let response = stack.clone().oneshot(http::Request::try_from(request)?).await?;
//! // A response of reqwest, with `json`, `bytes_stream` and `error_for_status`.
//! let response = reqwest::Response::from(response.map(reqwest::Body::wrap));
//! assert_eq!(response.error_for_status()?.text().await?, "paid");
//! # Ok(())
//! # }
//! ```
//!
//! # Requests and responses of reqwest
//!
//! The stack takes any `http::Request`. Requests and responses of reqwest are converted as above,
//! with reqwest's own impls:
//!
//! | from | to | |
//! |---|---|---|
//! | `reqwest::Request` | `http::Request<reqwest::Body>` | `http::Request::try_from(request)`; fails where a URL is no URI |
//! | `http::Response<B>` | `reqwest::Response` | `reqwest::Response::from(response.map(reqwest::Body::wrap))`, where `B` is `Sync`, as it is under the layers |
//! | `http::Response<reqwest::Body>` | `reqwest::Response` | `reqwest::Response::from(response)`, where no layer wraps the body |
//!
//! The final URL (`reqwest::Response::url`), the address of the server, an upgrade, and the timeout
//! of one request (`RequestBuilder::timeout`) are kept by both conversions. `RequestBuilder::send`
//! bypasses the stack.
//!
//! # When to use it
//!
//! Use it in a program that has a configured `reqwest::Client` (TLS, proxies, cookies,
//! decompression) or builds requests with reqwest. hyper-util's client needs no adapter.
//!
//! # Where it belongs
//!
//! Innermost in the stack, once per client. Clones share the pool of connections.
//!
//! # What to switch off
//!
//! [`ReqwestService::build`] takes a builder and switches off two features that the layers replace:
//!
//! * **Redirects.** reqwest follows up to ten. The layers see them as one call: one permit of a
//!   bulkhead, one outcome, and with [`per_host`](crate::per_host()) all hops count for the first
//!   host. If a POST was processed and answered with a redirect to a host that refuses the
//!   connection, the error says that the connection was refused, and a retry layer would send the
//!   POST again. The `FollowRedirectLayer` of tower-http, outermost, makes each hop its own call.
//!   reqwest cannot send a streaming body, such as that of a retry layer, to the next host: it
//!   returns a redirect that requires it (307, 308). An error of a redirect policy is ignored by
//!   policies and not repeated.
//! * **Retries.** reqwest repeats requests that an HTTP/2 server refused (`REFUSED_STREAM`, GOAWAY)
//!   up to twice, if it can clone the body. The layers see one attempt, and no retry budget is
//!   asked.
//!
//! Set the rest on the builder:
//!
//! * **Timeouts.** `ClientBuilder::timeout` and `RequestBuilder::timeout` bound each attempt with
//!   its body. One that expires before the head counts as a timeout of an attempt, one after it as
//!   a failure of the body. [`TimeoutLayer`](buttress::TimeoutLayer) also bounds the call with its
//!   retries, has counters, and its `body_idle` replaces `read_timeout`. Set `connect_timeout`: a
//!   request without a connection was not sent, so it is repeated whatever its method.
//! * **The pool** bounds idle connections only. [`BulkheadLayer`](buttress::BulkheadLayer) bounds
//!   the calls in flight.
//!
//! # Differences from hyper's client
//!
//! * The URI is parsed as a URL: dot segments are resolved, some characters are escaped, and the
//!   port of the scheme is dropped.
//! * Request extensions do not reach the connector. The layers of the stack see them.
//! * With reqwest's features for decompression (`gzip` and others), a decompressed response has no
//!   `Content-Encoding` and no `Content-Length`.

use buttress::BoxError;
use bytes::{Buf, Bytes};
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project::pin_project;
use reqwest::{Body, Client, ClientBuilder, Error, ResponseBuilderExt, redirect, retry};
use std::{
    any::Any,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use sync_wrapper::SyncWrapper;
use tower_service::Service;

/// A [`reqwest::Client`] as a service over `http::Request<B>`, for any body `B` that is `Send`.
///
/// See the [module](self) for a whole stack.
///
/// ```
/// use buttress_http::{prelude::*, reqwest::ReqwestService};
/// use tower::Layer;
///
/// # fn configured() -> reqwest::Client { reqwest::Client::new() }
/// // A client that is configured elsewhere, without redirects and retries.
/// let client = ReqwestService::new(configured());
/// let guarded = CircuitBreakerLayer::new("search").http_client().layer(client);
/// # fn is_client(_: impl tower::Service<http::Request<String>, Response: Send>) {}
/// # is_client(guarded);
/// ```
///
/// # Errors
///
/// The errors are those of reqwest. A URI without a scheme or a host, or with a scheme other than
/// `http` and `https`, is an error of the builder (`reqwest::Error::is_builder`): nothing is sent,
/// nothing is repeated, and no circuit breaker counts it.
#[derive(Clone, Debug)]
pub struct ReqwestService {
    client: Client,
}

impl ReqwestService {
    /// Wraps a client, which should neither follow redirects nor repeat requests.
    ///
    /// [`build`](Self::build) switches both off; the [module](self#what-to-switch-off) says why.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Builds a client, and switches its redirects and retries off.
    ///
    /// ```
    /// use buttress_http::reqwest::ReqwestService;
    /// use std::time::Duration;
    ///
    /// let builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(1));
    /// # let builder = builder.no_proxy();
    /// let client = ReqwestService::build(builder)?;
    /// # let _ = client;
    /// # Ok::<(), reqwest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns the error of [`ClientBuilder::build`].
    pub fn build(builder: ClientBuilder) -> reqwest::Result<Self> {
        builder.redirect(redirect::Policy::none()).retry(retry::never()).build().map(Self::new)
    }

    /// Returns a reference to the client, which can build requests.
    ///
    /// ```
    /// use buttress_http::reqwest::ReqwestService;
    ///
    /// let client = ReqwestService::build(reqwest::Client::builder().no_proxy())?;
    /// let request = client.get_ref().get("http://payments/status").bearer_auth("secret").build()?;
    /// assert_eq!(http::Request::try_from(request)?.uri().path(), "/status");
    /// # Ok::<(), reqwest::Error>(())
    /// ```
    pub fn get_ref(&self) -> &Client {
        &self.client
    }

    /// Returns a mutable reference to the client.
    pub fn get_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Returns the client.
    ///
    /// ```
    /// use buttress_http::reqwest::ReqwestService;
    ///
    /// # let client = reqwest::Client::builder().no_proxy().build().unwrap();
    /// let client: reqwest::Client = ReqwestService::new(client).into_inner();
    /// ```
    pub fn into_inner(self) -> Client {
        self.client
    }
}

impl From<Client> for ReqwestService {
    fn from(client: Client) -> Self {
        Self::new(client)
    }
}

impl<B> Service<Request<B>> for ReqwestService
where
    B: HttpBody<Error: Into<BoxError>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Service::<reqwest::Request>::poll_ready(&mut self.client, cx)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let state = match reqwest::Request::try_from(request.map(body)) {
            Ok(request) => State::Sent(Service::call(&mut self.client, request)),
            Err(error) => State::Refused(Some(error)),
        };
        ResponseFuture { state }
    }
}

/// The future of a [`ReqwestService`].
#[pin_project]
#[derive(Debug)]
pub struct ResponseFuture {
    #[pin]
    state: State,
}

#[pin_project(project = Projected)]
#[derive(Debug)]
enum State {
    /// reqwest does not export the name of its future.
    Sent(#[pin] <Client as Service<reqwest::Request>>::Future),
    Refused(Option<Error>),
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Sent(future) => future.poll(cx).map_ok(response),
            Projected::Refused(error) => Poll::Ready(Err(error.take().expect("polled after it was ready"))),
        }
    }
}

/// Converts a response, and puts the final URL into its extensions, where reqwest reads it when the
/// response is converted back.
fn response(response: reqwest::Response) -> http::Response<Body> {
    let mut url = http::response::Builder::new().url(response.url().clone());
    let mut response = http::Response::from(response);
    if let Some(url) = url.extensions_mut() {
        response.extensions_mut().extend(mem::take(url));
    }
    response
}

/// Converts a request body. A body of reqwest is kept, and an empty body becomes one of reqwest,
/// because reqwest can clone these, which it needs to follow a redirect.
fn body<B>(body: B) -> Body
where
    B: HttpBody<Error: Into<BoxError>> + Send + 'static,
{
    let mut body = Some(body);
    let any: &mut dyn Any = &mut body;
    if let Some(known) = any.downcast_mut::<Option<Body>>() {
        return known.take().unwrap_or_default();
    }
    match body {
        Some(body) if !body.is_end_stream() => Body::wrap(SyncBody::new(body)),
        _ => Body::default(),
    }
}

/// Makes a body `Sync`, which reqwest requires and the bodies of axum and tonic are not. The
/// methods with a shared reference return values that are read after each frame.
#[pin_project]
struct SyncBody<B> {
    #[pin]
    inner: SyncWrapper<B>,
    hint: SizeHint,
    is_end_stream: bool,
}

impl<B: HttpBody> SyncBody<B> {
    fn new(body: B) -> Self {
        let (hint, is_end_stream) = (body.size_hint(), body.is_end_stream());
        Self { inner: SyncWrapper::new(body), hint, is_end_stream }
    }
}

impl<B: HttpBody> HttpBody for SyncBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let mut inner = this.inner.get_pin_mut();
        let frame = ready!(inner.as_mut().poll_frame(cx));
        (*this.hint, *this.is_end_stream) = (inner.size_hint(), inner.is_end_stream());
        // `copy_to_bytes` does not copy if the data are `Bytes`.
        let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_end_stream
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty, Full};

    #[test]
    fn what_reqwest_can_clone_stays_so() {
        assert_eq!(body(Body::from("a transfer")).as_bytes(), Some(&b"a transfer"[..]));
        assert_eq!(body(Empty::<Bytes>::new()).as_bytes(), Some(&b""[..]));
        assert_eq!(body(Full::<Bytes>::from("a transfer")).as_bytes(), None);
    }

    /// HTTP/2 ends a stream with its last data frame if `is_end_stream` is true then.
    #[tokio::test]
    async fn what_is_left_of_a_body_is_known_after_each_frame() {
        let mut body = body(Full::<Bytes>::from("a transfer"));
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(10), false));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a transfer");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    }

    #[tokio::test]
    async fn trailers_are_handed_on() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "\"1\"".parse().unwrap())]);
        let sent = trailers.clone();
        let body = body(Full::<Bytes>::from("a transfer").with_trailers(async move { Some(Ok(sent)) }));
        assert_eq!(body.collect().await.unwrap().trailers(), Some(&trailers));
    }
}
