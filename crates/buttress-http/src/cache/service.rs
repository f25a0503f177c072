use super::{
    Cache, CacheLayer, CacheStatus,
    fetch::{Answer, Fetch, Fetched, Source},
    freshness::Use,
    status::{Line, mark},
    store::Entry,
};
use crate::{SharedBody, cache_control::RequestControl, single_flight::RequestKey};
use buttress::{
    BoxError, Error, Rejection, context,
    ending::SharedError,
    policy::CallContext,
    ready_call::ReadyCall,
    single_flight::{Arrival, CallPanicked, Entered, Participant, TOO_MANY_WAITERS},
};
use http::{Request, Response, StatusCode, Uri, header};
use http_body::Body;
use pin_project::pin_project;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Instant,
};
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`CacheLayer`]. It is always ready: a response can be served from the cache
/// while the inner service is not ready.
///
/// ```
/// use buttress_http::cache::{Cache, CacheLayer, CacheService};
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> CacheService<S> {
///     CacheLayer::from(Cache::new("rows")).layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct CacheService<S> {
    inner: S,
    cache: Cache,
}

impl<S> CacheService<S> {
    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Consumes the service and returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> CacheService<S> {
        CacheService { inner, cache: self.handle().clone() }
    }
}

/// One caller of a call.
type Caller<B> = Participant<RequestKey, Result<Fetched, SharedError>, Response<SharedBody<B>>>;

impl<S, Req, Res> Service<Request<Req>> for CacheService<S>
where
    S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError> + Send, Future: Send + 'static>,
    S: Clone + Send + 'static,
    Req: Body + Send + 'static,
    Res: Body<Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<SharedBody<Res>>;
    type Error = Error;
    type Future = ResponseFuture<S, Request<Req>, S::Future, Caller<Res>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let core = &self.cache.core;
        let control = RequestControl::of(request.headers());
        if control.no_store || !core.config.key.takes(&request) {
            return self.bypass(request);
        }
        let key = core.config.key.of(&request);
        let now = core.now();
        let known = core.store.get(&key).filter(|entry| entry.selected.is_of(request.headers()));
        let usable =
            known.as_ref().map(|entry| entry.freshness.use_for(&control, now.saturating_duration_since(entry.arrived)));
        let state = match (usable, known) {
            (Some(Use::Fresh), Some(entry)) => {
                core.counts.hits.fetch_add(1, Ordering::Relaxed);
                State::Hit { served: Some((entry, CacheStatus::Hit)), now }
            }
            (Some(Use::Accepted), Some(entry)) => {
                core.counts.stale.fetch_add(1, Ordering::Relaxed);
                State::Hit { served: Some((entry, CacheStatus::Stale)), now }
            }
            (Some(Use::WhileRevalidating), Some(entry)) => {
                core.counts.stale.fetch_add(1, Ordering::Relaxed);
                self.revalidate(key, request, entry.clone());
                State::Hit { served: Some((entry, CacheStatus::Stale)), now }
            }
            _ if control.only_if_cached => State::Unsatisfied,
            (usable, known) => {
                let if_error = matches!(usable, Some(Use::Revalidate { if_error: true }));
                self.fetch(key, request, known, if_error)
            }
        };
        ResponseFuture { state, cache: self.cache.clone() }
    }
}

impl<S: Clone> CacheService<S> {
    fn bypass<Req, Res>(&self, request: Request<Req>) -> ResponseFuture<S, Request<Req>, S::Future, Caller<Res>>
    where
        S: Service<Request<Req>>,
        Res: Send + 'static,
    {
        self.cache.core.counts.bypassed.fetch_add(1, Ordering::Relaxed);
        let changes = (!request.method().is_safe()).then(|| request.uri().clone());
        let call = ReadyCall::new(self.inner.clone(), request);
        ResponseFuture { state: State::Bypass { call, changes }, cache: self.cache.clone() }
    }

    /// Makes the call, or joins the one that is under way.
    fn fetch<Req, Res>(
        &self,
        key: RequestKey,
        request: Request<Req>,
        known: Option<Arc<Entry>>,
        if_error: bool,
    ) -> State<S, Request<Req>, S::Future, Caller<Res>>
    where
        S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError> + Send, Future: Send + 'static>,
        S: Send + 'static,
        Req: Send + 'static,
        Res: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let (core, context) = (&self.cache.core, CallContext::current());
        match core.flights.enter(key.clone(), context, core.config.max_waiters) {
            Entered::First(mut caller) => {
                let fetch = Fetch::new(core.clone(), key, request.headers().clone(), known, if_error);
                let work = fetch.run(self.inner.clone(), request);
                caller.start(context::with(context, work));
                State::Sharing { caller, kept: None, context }
            }
            Entered::Joined(caller) => State::Sharing { caller, kept: Some((self.inner.clone(), request)), context },
            Entered::Full => State::Failed { error: Some(Rejection::labelled(core.label(), &TOO_MANY_WAITERS).into()) },
            Entered::Alone => State::Again { call: ReadyCall::new(self.inner.clone(), request) },
        }
    }

    /// Revalidates a response in the background, unless that is under way.
    fn revalidate<Req, Res>(&self, key: RequestKey, request: Request<Req>, entry: Arc<Entry>)
    where
        S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError> + Send, Future: Send + 'static>,
        S: Send + 'static,
        Req: Send + 'static,
        Res: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let core = &self.cache.core;
        // No caller waits for it, so that it has no deadline.
        let context = CallContext::default().with_priority(CallContext::current().priority.unwrap_or_default());
        let entered: Entered<_, Result<Fetched, SharedError>, Response<SharedBody<Res>>> =
            core.flights.enter(key.clone(), context, core.config.max_waiters);
        let Entered::First(mut caller) = entered else { return };
        let fetch = Fetch::new(core.clone(), key, request.headers().clone(), Some(entry), false);
        caller.start(context::with(context, fetch.run(self.inner.clone(), request)));
        self.cache.spawn(async move {
            poll_fn(|cx| caller.poll(cx)).await;
        });
    }
}

/// The future of a [`CacheService`].
#[pin_project]
pub struct ResponseFuture<S, Req, F, P> {
    #[pin]
    state: State<S, Req, F, P>,
    cache: Cache,
}

#[pin_project(project = StateProj)]
enum State<S, Req, F, P> {
    Hit {
        served: Option<(Arc<Entry>, CacheStatus)>,
        now: Instant,
    },
    /// `only-if-cached`, and nothing is.
    Unsatisfied,
    /// Takes part in a call. The request is kept by those who joined it.
    Sharing {
        caller: P,
        kept: Option<(S, Req)>,
        context: CallContext,
    },
    /// Makes a call after the result of another one could not be shared.
    Again {
        #[pin]
        call: ReadyCall<S, Req, F>,
    },
    Bypass {
        #[pin]
        call: ReadyCall<S, Req, F>,
        changes: Option<Uri>,
    },
    Failed {
        error: Option<Error>,
    },
}

impl<S, Req, F, P> fmt::Debug for ResponseFuture<S, Req, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, Req, Res> Future for ResponseFuture<S, Request<Req>, S::Future, Caller<Res>>
where
    S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError>>,
    Res: Body<Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<Response<SharedBody<Res>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let cache = &*this.cache;
        let line = || Line::of(&cache.core.config.name);
        loop {
            let (caller, kept, context) = match this.state.as_mut().project() {
                StateProj::Hit { served, now } => {
                    let (entry, status) = served.take().expect("a future is not polled after its end");
                    return Poll::Ready(Ok(serve(&entry, status, *now, line().with("hit"))));
                }
                StateProj::Unsatisfied => {
                    let mut response = Response::new(SharedBody::default());
                    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                    mark(&mut response, CacheStatus::Miss, line());
                    return Poll::Ready(Ok(response));
                }
                StateProj::Sharing { caller, kept, context } => (caller, kept, context),
                StateProj::Again { call } => {
                    let response = ready!(call.poll(cx)).map_err(Error::from_inner)?;
                    return Poll::Ready(Ok(missed(cache, response.map(SharedBody::inner), line())));
                }
                StateProj::Bypass { call, changes } => {
                    let response = ready!(call.poll(cx)).map_err(Error::from_inner)?;
                    // RFC 9111, section 4.4: what an unsafe request may have changed.
                    let is_error = response.status().is_client_error() || response.status().is_server_error();
                    if let Some(uri) = changes.take().filter(|_| !is_error) {
                        cache.purge(&uri);
                    }
                    let mut response = response.map(SharedBody::inner);
                    mark(&mut response, CacheStatus::Bypass, line().with("fwd=bypass"));
                    return Poll::Ready(Ok(response));
                }
                StateProj::Failed { error } => {
                    return Poll::Ready(Err(error.take().expect("a future is not polled after its end")));
                }
            };
            let own_deadline = context.deadline;
            let has_more_time =
                caller.deadline().is_some_and(|end| own_deadline.is_none_or(|own_deadline| own_deadline > end));
            let joined = kept.is_some();
            match (ready!(caller.poll(cx)), kept.take()) {
                (Arrival::Shared(Err(error)), Some((service, request))) if has_more_time && error.is_late() => {
                    this.state.set(State::Again { call: ReadyCall::new(service, request) });
                }
                // Of the same key, and yet of another variant of the response.
                (Arrival::Shared(Ok(fetched)), Some((service, request))) if !fetched.is_of(request.headers()) => {
                    this.state.set(State::Again { call: ReadyCall::new(service, request) });
                }
                (Arrival::Shared(Ok(fetched)), _) => {
                    return Poll::Ready(Ok(respond(cache, fetched, joined, line())));
                }
                (Arrival::Shared(Err(error)), _) => return Poll::Ready(Err(error.into_error())),
                (Arrival::Own(response), _) => return Poll::Ready(Ok(missed(cache, response, line()))),
                (Arrival::Unshared, Some((service, request))) => {
                    this.state.set(State::Again { call: ReadyCall::new(service, request) });
                }
                (Arrival::Panicked | Arrival::Unshared, _) => return Poll::Ready(Err(Error::from_inner(CallPanicked))),
            }
        }
    }
}

/// Serves a stored response, with its age.
fn serve<B>(entry: &Entry, status: CacheStatus, now: Instant, line: Line) -> Response<SharedBody<B>> {
    let age = entry.freshness.age(now.saturating_duration_since(entry.arrived)).as_secs();
    let age = i64::try_from(age).unwrap_or(i64::MAX);
    let lifetime = i64::try_from(entry.freshness.lifetime.as_secs()).unwrap_or(i64::MAX);
    let mut response = SharedBody::respond(entry.parts.clone(), entry.content.clone());
    response.headers_mut().insert(header::AGE, age.into());
    mark(&mut response, status, line.with_number("ttl", lifetime.saturating_sub(age)));
    response
}

/// Returns the response of a call that was not stored.
fn missed<B>(cache: &Cache, mut response: Response<SharedBody<B>>, line: Line) -> Response<SharedBody<B>> {
    cache.core.counts.misses.fetch_add(1, Ordering::Relaxed);
    mark(&mut response, CacheStatus::Miss, line.with("fwd=miss"));
    response
}

/// Returns the response of a call to one of its callers.
fn respond<B>(cache: &Cache, fetched: Fetched, joined: bool, line: Line) -> Response<SharedBody<B>> {
    let (counts, now) = (&cache.core.counts, cache.core.now());
    let collapsed = |line: Line| if joined { line.with("collapsed") } else { line };
    match fetched.0 {
        Answer::Stored(entry, Source::Stored) => {
            counts.misses.fetch_add(1, Ordering::Relaxed);
            serve(&entry, CacheStatus::Miss, now, collapsed(line.with("fwd=miss").with("stored")))
        }
        Answer::Stored(entry, Source::Revalidated) => {
            counts.revalidated.fetch_add(1, Ordering::Relaxed);
            let line = line.with("fwd=stale").with("fwd-status=304");
            serve(&entry, CacheStatus::Revalidated, now, collapsed(line))
        }
        Answer::Stored(entry, Source::IfError) => {
            counts.stale.fetch_add(1, Ordering::Relaxed);
            serve(&entry, CacheStatus::Stale, now, collapsed(line.with("fwd=stale")))
        }
        Answer::Passed(whole, _) => {
            let response = whole.response();
            missed(cache, response, line)
        }
    }
}
