//! Priorities on the wire, retries of the caller and for the caller, and the context of a call
//! around the body of its response.

use crate::{
    classify,
    ending::{Client, Server},
    retried,
};
use buttress::{
    context::{Carry, Known, Retried, Stay},
    policy::{CallContext, Priority},
};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The header of a priority: a class, and a level after a semicolon, such as `1` or `1;20`.
const PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// The longest value of the header that is read. `0;127` needs five bytes; there may be spaces.
const LONGEST: usize = 16;

/// Reads the priority of the caller. None if the header is repeated or is no priority: what a
/// caller sends is never an error.
fn read(headers: &HeaderMap) -> Option<Priority> {
    let mut values = headers.get_all(PRIORITY).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    if value.len() > LONGEST {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// Returns the value of the header. Classes without a level take no allocation.
fn write(priority: Priority) -> Option<HeaderValue> {
    const CLASSES: [&str; 4] = ["0", "1", "2", "3"];
    if priority == Priority::new(priority.criticality()) {
        return Some(HeaderValue::from_static(CLASSES[priority.criticality() as usize]));
    }
    HeaderValue::from_str(&priority.to_string()).ok()
}

fn extension(extensions: &Extensions) -> Option<Priority> {
    extensions.get().copied()
}

/// Takes the context from the request. A priority that the layer or an outer layer chose wins over
/// the header. A header that does not say the priority of the call is removed, so that a proxy does
/// not pass it on to services that trust it.
impl<S, C, R, B> Carry<Request<B>> for Server<S, C, R> {
    fn carry(&self, request: &mut Request<B>, known: &Known) -> CallContext {
        let header = read(request.headers());
        let trusted = header.filter(|_| known.trusts_priority);
        let set = extension(request.extensions());
        let context = known.context(set.or(trusted));
        // Not a matter of trust: calls that are marked only do not add to retry budgets.
        let context = context.with_repeated(context.is_repeated || retried::is_repeated(request.headers()));
        if trusted.is_none() || trusted != context.priority {
            request.headers_mut().remove(PRIORITY);
        }
        if let Some(priority) = context.priority.filter(|_| context.priority != set) {
            request.extensions_mut().insert(priority);
        }
        context
    }
}

/// Keeps the body of the response in the context: a handler that streams makes calls while its body
/// is polled.
impl<S, C, R, B> Stay<Response<B>> for Server<S, C, R> {
    type Response = Response<ContextBody<B>>;

    const TELLS_RETRIED: bool = true;

    #[cold]
    fn tell_retried(&self, response: &mut Response<B>, retries: u32) {
        let headers = response.headers();
        let outcome = classify::grpc_headers(headers);
        if outcome.unwrap_or_else(|| classify::http_status(response.status(), headers)).is_failure() {
            retried::mark(response.headers_mut(), retries);
        }
    }

    fn stay(&self, context: CallContext, response: Response<B>) -> Self::Response {
        response.map(|inner| ContextBody { inner, context })
    }
}

/// Puts the context into the request. A header that the caller has set is left as it is, and is the
/// priority of the call also here if it is valid.
impl<S, C, R, B> Carry<Request<B>> for Client<S, C, R> {
    fn carry(&self, request: &mut Request<B>, known: &Known) -> CallContext {
        if request.headers().contains_key(PRIORITY) {
            let context = known.context(extension(request.extensions()));
            return read(request.headers()).map_or(context, |priority| context.with_priority(priority));
        }
        let context = known.context(extension(request.extensions()));
        if let Some(value) = context.priority.and_then(write) {
            request.headers_mut().insert(PRIORITY, value);
        }
        context
    }
}

/// Leaves the response as it is: the caller reads its body, in a context of its own. Notes that a
/// service below has repeated the call, for a client without a retry layer.
impl<S, C, R, B> Stay<Response<B>> for Client<S, C, R> {
    type Response = Response<B>;

    #[inline]
    fn stay(&self, _: CallContext, response: Response<B>) -> Response<B> {
        if retried::is_marked(response.headers()) {
            Retried::note(0);
        }
        response
    }
}

/// A response body that is polled in the context of its call. Made by the server endings of
/// [`ContextLayer`](buttress::ContextLayer).
///
/// ```
/// use buttress_http::{ContextBody, prelude::*};
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new("content".to_owned())));
/// let server = ContextLayer::new().http().layer(handler);
/// let response: Response<ContextBody<String>> = server.oneshot(Request::new(())).await?;
/// # let _ = response;
/// # Ok(())
/// # }
/// ```
#[pin_project]
#[derive(Clone, Debug, Default)]
pub struct ContextBody<B> {
    #[pin]
    inner: B,
    context: CallContext,
}

impl<B: Body> Body for ContextBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let _entered = this.context.enter();
        this.inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
