use crate::{
    ending::Client,
    replay::{ReplayMemory, Replays},
};
use buttress::{Ending, FallbackLayer, HedgeLayer, RetryLayer};
use http::request::Parts;

/// Settings of a layer with a client ending that sends requests again: retry, hedge, or a fallback
/// to another [service](FallbackLayer::service).
///
/// ```
/// use buttress_http::prelude::*;
///
/// let layer = RetryLayer::new(3)
///     .http_client()
///     .max_body(1024 * 1024)
///     // A search is a POST that changes nothing, so it may be repeated.
///     .idempotent(|head| head.method.is_safe() || head.uri.path() == "/search");
/// # let _ = layer;
/// ```
pub trait HttpRetryExt<S, C, M, I>: Ending<Now = Client<S, C, Replays<M, I>>> {
    /// Sets how many bytes of a request's body are kept to repeat it. Default 64 KiB.
    ///
    /// A request is not repeated if more bytes of its body were read.
    fn max_body(self, bytes: u64) -> Self;

    /// Sets the limit on the bytes that all calls together keep. Default
    /// [`ReplayMemory::process`], of 64 MiB.
    fn replay_memory(self, memory: &'static ReplayMemory) -> Self;

    /// Sets which requests may be processed twice.
    ///
    /// The default for HTTP is the idempotent methods of RFC 9110, section 9.2.2, and requests with
    /// an `Idempotency-Key`; for gRPC it is requests with an `Idempotency-Key`. Other requests are
    /// repeated only if the server did not process them.
    fn idempotent<J: Fn(&Parts) -> bool>(self, idempotent: J) -> Self::With<Client<S, C, Replays<M, J>>>;

    /// Puts a list of the endpoints that attempts were sent to into the extensions of each request,
    /// for a balancer inside that avoids them. See [`Attempted`](crate::replay::Attempted). Takes
    /// two or more allocations a call. Off by default.
    ///
    /// ```
    /// use buttress_http::prelude::*;
    ///
    /// let layer = RetryLayer::new(3).http_client().remember_endpoints();
    /// # let _ = layer;
    /// ```
    fn remember_endpoints(self) -> Self;

    /// Converts the body of each attempt into the body type of the inner service.
    ///
    /// Not needed for the bodies of axum, reqwest and tonic, with the features of these names, nor
    /// for an inner service that accepts any body.
    ///
    /// ```
    /// use buttress_http::{ReplayBody, prelude::*};
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// type Body = UnsyncBoxBody<Bytes, buttress_http::buttress::BoxError>;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), buttress_http::buttress::BoxError> {
    /// // A client that takes boxed bodies only.
    /// let client = service_fn(async |request: Request<Body>| {
    ///     let content = request.into_body().collect().await?.to_bytes();
    ///     Ok::<_, buttress_http::buttress::BoxError>(Response::new(Full::new(content)))
    /// });
    /// let boxed = |body: ReplayBody<Full<Bytes>>| body.boxed_unsync();
    /// let stack = RetryLayer::new(3).http_client().map_request_body(boxed).layer(client);
    /// let echoed = stack.oneshot(Request::new(Full::from("content"))).await?;
    /// assert_eq!(echoed.into_body().collect().await?.to_bytes(), "content");
    /// # Ok(())
    /// # }
    /// ```
    fn map_request_body<N>(self, map: N) -> Self::With<Client<S, C, Replays<N, I>>>;
}

macro_rules! settings {
    ($(<$param:ident> $layer:ident<$($before:ident,)? .. $(, $after:ident)?>;)*) => {$(
        impl<S, C, M, I, $param> HttpRetryExt<S, C, M, I> for $layer<$($before,)? Client<S, C, Replays<M, I>> $(, $after)?> {
            fn max_body(self, bytes: u64) -> Self {
                self.map_ending(|mut client| {
                    client.replays.max_body = bytes;
                    client
                })
            }

            fn remember_endpoints(self) -> Self {
                self.map_ending(|mut client| {
                    client.replays.remembers_endpoints = true;
                    client
                })
            }

            fn replay_memory(self, memory: &'static ReplayMemory) -> Self {
                self.map_ending(|mut client| {
                    client.replays.memory = memory;
                    client
                })
            }

            fn idempotent<J: Fn(&Parts) -> bool>(self, idempotent: J) -> Self::With<Client<S, C, Replays<M, J>>> {
                self.map_ending(|client| client.map_replays(|replays| replays.idempotent(idempotent)))
            }

            fn map_request_body<N>(self, map: N) -> Self::With<Client<S, C, Replays<N, I>>> {
                self.map_ending(|client| client.map_replays(|replays| replays.map(map)))
            }
        }
    )*};
}

settings! {
    <A> FallbackLayer<A, ..>;
    <L> HedgeLayer<.., L>;
    <L> RetryLayer<.., L>;
}
