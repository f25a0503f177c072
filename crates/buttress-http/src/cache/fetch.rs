use super::{
    freshness::{Freshness, Selected, make_conditional, update, without_connection},
    handle::Core,
    store::Entry,
};
use crate::{
    SharedBody,
    single_flight::{HttpLanding, RequestKey, Whole},
};
use buttress::{BoxError, Error, ending::SharedError, single_flight::Landed};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};
use tower_service::Service;

/// What the callers of one call share. Opaque: it is in the type of a future.
#[derive(Clone)]
pub struct Fetched(pub(super) Answer);

#[derive(Clone)]
pub(super) enum Answer {
    Stored(Arc<Entry>, Source),
    /// A whole response that is not stored, and the headers of requests that it is for.
    Passed(Whole, Arc<Selected>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// The response of the call.
    Stored,
    /// A stored response, which the backend confirmed.
    Revalidated,
    /// A stored response, because the call failed.
    IfError,
}

impl Fetched {
    pub(super) fn is_of(&self, request: &HeaderMap) -> bool {
        match &self.0 {
            Answer::Stored(entry, _) => entry.selected.is_of(request),
            Answer::Passed(_, selected) => selected.is_of(request),
        }
    }
}

/// One call, and what is known of its response.
pub(super) struct Fetch {
    core: Arc<Core>,
    key: RequestKey,
    request: HeaderMap,
    /// The stored response to revalidate.
    known: Option<Arc<Entry>>,
    /// Whether it is served if the call fails.
    if_error: bool,
    /// The count of purges at the start.
    asked: u64,
}

type Ended<B> = Landed<Result<Fetched, SharedError>, Response<SharedBody<B>>>;

impl Fetch {
    pub(super) fn new(
        core: Arc<Core>,
        key: RequestKey,
        request: HeaderMap,
        known: Option<Arc<Entry>>,
        if_error: bool,
    ) -> Self {
        let asked = core.store.now();
        Self { core, key, request, known, if_error, asked }
    }

    /// Makes the call, and stores its response.
    pub(super) async fn run<S, Req, Res>(self, mut service: S, mut request: Request<Req>) -> Ended<Res>
    where
        S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError>>,
        Res: Body<Error: Into<BoxError>>,
    {
        if let Some(known) = &self.known {
            make_conditional(request.headers_mut(), &known.parts.headers);
        }
        let sent = self.core.now();
        let called = match poll_fn(|cx| service.poll_ready(cx)).await {
            Ok(()) => service.call(request).await,
            Err(error) => Err(error),
        };
        // The service may hold a place for another call.
        drop(service);
        let response = match called {
            Ok(response) => response,
            Err(error) => {
                return self.stale().unwrap_or_else(|| failed(Error::from_inner(error)));
            }
        };
        let arrived = self.core.now();
        let delay = arrived.saturating_duration_since(sent);
        if let (StatusCode::NOT_MODIFIED, Some(known)) = (response.status(), &self.known) {
            return self.not_modified(known, response.headers(), delay, arrived);
        }
        if is_failure(response.status())
            && let Some(stale) = self.stale()
        {
            return stale;
        }
        self.read(response, delay, arrived).await
    }

    /// Returns the stored response, if it may be served now that the call has failed.
    fn stale<B>(&self) -> Option<Ended<B>> {
        let entry = self.known.clone().filter(|_| self.if_error)?;
        Some(Landed::Shared(Ok(Fetched(Answer::Stored(entry, Source::IfError)))))
    }

    fn not_modified<B>(&self, known: &Entry, headers: &HeaderMap, delay: Duration, arrived: Instant) -> Ended<B> {
        let Some(headers) = update(&known.parts.headers, headers) else {
            self.core.store.remove(&self.key);
            return failed(Error::from_inner(WrongValidator));
        };
        let mut parts = known.parts.clone();
        parts.headers = headers;
        // The response was stored before, so that it was read whole.
        let freshness = self.freshness(&parts, delay, arrived);
        let is_stored = freshness.is_some();
        let entry = self.entry(parts, known.content.clone(), freshness.unwrap_or(never_fresh()), arrived);
        if is_stored {
            self.core.store.put(self.key.clone(), entry.clone());
        } else {
            self.core.store.remove(&self.key);
        }
        Landed::Shared(Ok(Fetched(Answer::Stored(entry, Source::Revalidated))))
    }

    async fn read<B>(&self, response: Response<B>, delay: Duration, arrived: Instant) -> Ended<B>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let config = &self.core.config;
        let mut freshness = None;
        let shares = |response: &Response<B>| {
            let now = self.core.wall_time(arrived);
            freshness = Freshness::of(response.status(), response.headers(), config, delay, now);
            freshness.is_some()
        };
        let landed = HttpLanding::of(response, shares, &config.limits).await;
        let whole = match landed {
            Landed::Shared(Ok(whole)) => whole,
            Landed::Shared(Err(error)) => return Landed::Shared(Err(error)),
            Landed::Own(response) => {
                // What is stored is not what the backend has now. A failure says nothing of that.
                if !response.status().is_server_error() {
                    self.core.store.remove(&self.key);
                }
                return Landed::Own(response);
            }
        };
        let Some(freshness) = freshness.filter(|_| !whole.is_broken()) else {
            let selected = Arc::new(self.selected(whole.headers()));
            return Landed::Shared(Ok(Fetched(Answer::Passed(whole, selected))));
        };
        let (mut parts, content) = whole.into_parts();
        parts.headers = without_connection(&parts.headers);
        let entry = self.entry(parts, content, freshness, arrived);
        self.core.store.put(self.key.clone(), entry.clone());
        Landed::Shared(Ok(Fetched(Answer::Stored(entry, Source::Stored))))
    }

    fn freshness(&self, parts: &http::response::Parts, delay: Duration, arrived: Instant) -> Option<Freshness> {
        let now = self.core.wall_time(arrived);
        Freshness::of(parts.status, &parts.headers, &self.core.config, delay, now)
    }

    fn selected(&self, response: &HeaderMap) -> Selected {
        Selected::new(&self.request, response)
    }

    fn entry(
        &self,
        parts: http::response::Parts,
        content: Arc<crate::single_flight::Content>,
        freshness: Freshness,
        arrived: Instant,
    ) -> Arc<Entry> {
        let selected = self.selected(&parts.headers);
        Arc::new(Entry::new(&self.key, parts, content, selected, freshness, arrived, self.asked))
    }
}

/// Of a response that its last revalidation forbids to store.
fn never_fresh() -> Freshness {
    Freshness {
        initial_age: Duration::ZERO,
        lifetime: Duration::ZERO,
        never_stale: true,
        while_revalidate: Duration::ZERO,
        if_error: Duration::ZERO,
    }
}

fn failed<B>(error: Error) -> Ended<B> {
    Landed::Shared(Err(SharedError::new(error)))
}

/// RFC 5861, section 4.
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// The backend answered 304 and named another response than the one that was asked about.
#[derive(Debug)]
struct WrongValidator;

impl fmt::Display for WrongValidator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the backend answered 304 with another ETag than that of the request")
    }
}

impl std::error::Error for WrongValidator {}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").finish_non_exhaustive()
    }
}
