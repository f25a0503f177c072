use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Identifies an endpoint among those of one balancer.
pub type EndpointId = u64;

/// The endpoints that attempts of a call were sent to: an extension of its requests, which all of
/// its attempts share.
///
/// A retry layer with [`remember_endpoints`](crate::HttpRetryExt::remember_endpoints) puts one into
/// each request. A balancer inside it adds the endpoint of each attempt, and prefers endpoints that
/// are not on the list. Up to four endpoints need no allocation but that of the list itself.
///
/// ```
/// use buttress_http::replay::{Attempted, EndpointId};
/// use http::Extensions;
///
/// /// A balancer's choice: an endpoint that no attempt was sent to, or else the first one.
/// fn choose(endpoints: &[EndpointId], extensions: &Extensions) -> Option<EndpointId> {
///     let attempted = extensions.get::<Attempted>();
///     let is_new = |id: &&EndpointId| !attempted.is_some_and(|attempted| attempted.contains(**id));
///     let chosen = endpoints.iter().find(is_new).or(endpoints.first()).copied()?;
///     if let Some(attempted) = attempted {
///         attempted.insert(chosen);
///     }
///     Some(chosen)
/// }
///
/// let mut extensions = Extensions::new();
/// extensions.insert(Attempted::new());
/// assert_eq!(choose(&[1, 2], &extensions), Some(1));
/// assert_eq!(choose(&[1, 2], &extensions), Some(2));
/// assert_eq!(choose(&[1, 2], &extensions), Some(1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attempted(Arc<Mutex<SmallVec<[EndpointId; 4]>>>);

impl Attempted {
    /// Makes an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an endpoint, if it is not on the list.
    pub fn insert(&self, endpoint: EndpointId) {
        let mut endpoints = self.endpoints();
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }

    /// Returns whether an attempt was sent to the endpoint.
    pub fn contains(&self, endpoint: EndpointId) -> bool {
        self.endpoints().contains(&endpoint)
    }

    /// Returns the number of endpoints that attempts were sent to.
    pub fn len(&self) -> usize {
        self.endpoints().len()
    }

    /// Returns whether no attempt was sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn endpoints(&self) -> MutexGuard<'_, SmallVec<[EndpointId; 4]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReplayBody, prelude::*};
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Empty;
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        time::Duration,
    };
    use tower::{Layer, ServiceExt, service_fn};

    type Body = ReplayBody<Empty<Bytes>>;

    /// Returns the endpoints that each attempt saw, where each attempt goes to another one.
    async fn seen(
        retry: impl Fn(RetryLayer) -> RetryLayer<crate::ending::HttpClient>,
        own: Option<Attempted>,
    ) -> Vec<Option<usize>> {
        let (seen, next) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let backend = {
            let seen = seen.clone();
            service_fn(move |request: Request<Body>| {
                let attempted = request.extensions().get::<Attempted>();
                seen.lock().unwrap().push(attempted.map(Attempted::len));
                if let Some(attempted) = attempted {
                    attempted.insert(next.fetch_add(1, SeqCst));
                }
                std::future::ready(Ok::<_, Infallible>(
                    Response::builder().status(503).body(Empty::<Bytes>::new()).unwrap(),
                ))
            })
        };
        let layer = retry(RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)));
        let mut request = Request::new(Empty::new());
        if let Some(own) = own {
            request.extensions_mut().insert(own);
        }
        layer.layer(backend).oneshot(request).await.unwrap();
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn every_attempt_sees_the_endpoints_of_those_before_it() {
        let remembering = |retry: RetryLayer| retry.http_client().remember_endpoints();
        assert_eq!(seen(remembering, None).await, [Some(0), Some(1), Some(2)]);
        let own = Attempted::new();
        own.insert(7);
        assert_eq!(seen(remembering, Some(own.clone())).await, [Some(1), Some(2), Some(3)]);
        assert!(own.contains(7) && own.contains(0) && !own.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_are_not_remembered_by_default() {
        assert_eq!(seen(|retry| retry.http_client(), None).await, [None; 3]);
    }

    #[test]
    fn an_endpoint_is_on_the_list_once() {
        let attempted = Attempted::new();
        (0..3).for_each(|_| attempted.insert(1));
        assert_eq!((attempted.len(), attempted.contains(1), attempted.contains(2)), (1, true, false));
    }
}
