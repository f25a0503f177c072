use std::{fmt, sync::Arc};

/// Makes the body of a request again, for bodies that are too large to be kept, such as files.
///
/// As an extension of the request. The request has its body as usual; each further attempt gets a
/// body from the function, so nothing is kept, and the body may have any size. `B` must be the type
/// of the request's body, or the factory is not found. A body that opens its file should do so when
/// it is polled first, because the function cannot wait.
///
/// ```
/// use buttress_http::{prelude::*, replay::BodyFactory};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), buttress_http::buttress::BoxError> {
/// let backend = service_fn(async |request: Request<buttress_http::ReplayBody<Full<Bytes>>>| {
///     let is_first = !request.headers().contains_key("x-retry-attempt");
///     let content = request.into_body().collect().await?.to_bytes();
///     let status = if is_first { 503 } else { 200 };
///     Ok::<_, buttress_http::buttress::BoxError>(Response::builder().status(status).body(Full::new(content))?)
/// });
/// let client = RetryLayer::new(2).http_client().max_body(0).layer(backend);
///
/// let open = || Full::from("a large file");
/// let request = Request::put("http://backend/file").extension(BodyFactory::new(open)).body(open())?;
/// let response = client.oneshot(request).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "a large file");
/// # Ok(())
/// # }
/// ```
pub struct BodyFactory<B>(Arc<dyn Fn() -> B + Send + Sync>);

impl<B> BodyFactory<B> {
    /// Creates a factory from a function that returns the body from its start.
    pub fn new(make: impl Fn() -> B + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(super) fn make(&self) -> B {
        (self.0)()
    }
}

impl<B> Clone for BodyFactory<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> fmt::Debug for BodyFactory<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyFactory(..)")
    }
}
