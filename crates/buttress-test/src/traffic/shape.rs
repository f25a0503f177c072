use super::Row;
use crate::{Part, Plan, TestBody};
use http::{HeaderMap, Method, Request};
use std::time::Duration;

/// What the calls speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP. For the endings `.http()` and `.http_client()`.
    Http,
    /// gRPC. For the endings `.grpc()` and `.grpc_client()`, and for the HTTP endings, which
    /// recognise it.
    Grpc,
    /// HTTP requests through layers that look at no response: for the ending `.plain()`.
    Plain,
}

/// What a call means for a backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Means {
    /// The backend is well.
    Success,
    /// It is no evidence.
    Nothing,
    /// The backend fails.
    Failure,
    /// It may count or not, but must not break anything.
    Anything,
}

/// What the caller does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller {
    /// Reads the response to its end.
    ReadsAll,
    /// Reads so many frames of the body, and drops it.
    ReadsFrames(usize),
    /// Polls the call so many times, a millisecond apart, and drops it.
    Polls(usize),
    /// Drops the call, or the body, at this time after the call.
    HangsUpAfter(Duration),
    /// Makes the service ready, and drops it after this time.
    LeavesWhenReady(Duration),
    /// Makes the service ready, and calls it after this time.
    IdlesWhenReady(Duration),
}

/// One kind of call. See the [module](super).
#[derive(Clone, Debug)]
pub struct Shape {
    pub(super) row: Row,
    pub(super) name: String,
    pub(super) means: Means,
    pub(super) every: Duration,
    pub(super) times: usize,
    pub(super) backend: Plan,
    pub(super) caller: Caller,
    pub(super) request: Outgoing,
}

/// A request that can be made again.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<Part>,
}

impl Shape {
    /// A GET that succeeds at once, and every second. It is a success.
    pub fn new(row: Row, name: impl Into<String>) -> Self {
        Self {
            row,
            name: name.into(),
            means: Means::Success,
            every: Duration::from_secs(1),
            times: 60,
            backend: Plan::healthy(),
            caller: Caller::ReadsAll,
            request: Outgoing::default(),
        }
    }

    /// What the backend does.
    pub fn backend(self, backend: Plan) -> Self {
        Self { backend, ..self }
    }

    /// What the caller does.
    pub fn caller(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// What it means.
    pub fn means(self, means: Means) -> Self {
        Self { means, ..self }
    }

    /// How often it comes.
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// How many times it is sent through a closed circuit. Default 60, which is enough for any rate
    /// rule with the usual minimum.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// The method of the request.
    pub fn method(mut self, method: Method) -> Self {
        self.request.method = method;
        self
    }

    /// A header of the request.
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// The body of the request.
    pub fn body(mut self, body: impl IntoIterator<Item = Part>) -> Self {
        self.request.body = body.into_iter().collect();
        self
    }
}

impl Outgoing {
    pub(super) fn new(method: Method) -> Self {
        Self { method, ..Self::default() }
    }

    pub(super) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(name, value.parse().expect("a header value"));
        self
    }

    pub(super) fn body(self, body: &[Part]) -> Self {
        Self { body: body.to_vec(), ..self }
    }

    pub(super) fn make(&self) -> Request<TestBody> {
        let mut request = Request::new(TestBody::new(self.body.iter().cloned()));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}
