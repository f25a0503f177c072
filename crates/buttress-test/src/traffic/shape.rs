use super::Row;
use crate::{Part, Plan, TestBody};
use http::{HeaderMap, Method, Request};
use std::time::Duration;

/// The protocol of the calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP, for layers that read the status of a response: the endings `.http()` and
    /// `.http_client()`.
    Http,
    /// gRPC: for the endings `.grpc()` and `.grpc_client()`, and for the HTTP endings, which detect
    /// gRPC by its content type.
    Grpc,
    /// HTTP, for layers that do not read responses: the ending `.plain()`. Every response counts as
    /// a success.
    Plain,
}

/// The meaning of a call for the health of its backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Means {
    /// The call counts as a success.
    Success,
    /// The call is no evidence: it counts neither as a success nor as a failure.
    Nothing,
    /// The call counts as a failure.
    Failure,
    /// The call may count in any way, but must not lose a permit.
    Anything,
}

/// The behaviour of the caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller {
    /// Reads the response to its end.
    ReadsAll,
    /// Reads this number of frames of the body, then drops the body.
    ReadsFrames(usize),
    /// Polls the call this number of times, 1 ms apart, then drops it.
    Polls(usize),
    /// Drops the call or the body when this time has passed since the call.
    HangsUpAfter(Duration),
    /// Makes the service ready, waits for this time, then drops the service.
    LeavesWhenReady(Duration),
    /// Makes the service ready, waits for this time, then calls it and reads the response.
    IdlesWhenReady(Duration),
}

/// One kind of call: its request, its backend, its caller, its interval and its meaning.
///
/// See the [module](super) for the rules that are checked.
///
/// ```
/// use buttress_test::{Answer, Part, Plan, traffic::{Caller, Means, Row, Shape, Traffic}};
/// use http::Method;
/// use std::time::Duration;
/// use tower::layer::util::Identity;
///
/// let feed = vec![Part::Data("first"), Part::Wait(Duration::from_secs(30)), Part::Data("second")];
/// let shape = Shape::new(Row::Streams, "a feed that the caller leaves after its first event")
///     .method(Method::POST)
///     .header("content-type", "application/json")
///     .body([Part::Data("{}")])
///     .backend(Plan::of(Answer::Body(feed)))
///     .caller(Caller::ReadsFrames(1))
///     .every(Duration::from_secs(60))
///     .times(10)
///     .means(Means::Success);
/// Traffic::through("no layer", Identity::new).send(&shape);
/// ```
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
    /// Makes a shape: 60 GET requests, one per second, that succeed at once. `row` and `name`
    /// appear in the message of a failure.
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

    /// Sets the behaviour of the backend. Default [`Plan::healthy`].
    pub fn backend(self, backend: Plan) -> Self {
        Self { backend, ..self }
    }

    /// Sets the behaviour of the caller. Default [`Caller::ReadsAll`].
    pub fn caller(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// Sets the meaning of the call. Default [`Means::Success`].
    pub fn means(self, means: Means) -> Self {
        Self { means, ..self }
    }

    /// Sets the pause between two calls. Default 1 second.
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Sets the number of calls through a closed circuit. Default 60, which is enough for a failure
    /// rate with the usual minimum of calls.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Sets the method of the request. Default GET.
    pub fn method(mut self, method: Method) -> Self {
        self.request.method = method;
        self
    }

    /// Adds a header to the request.
    ///
    /// # Panics
    ///
    /// Panics if `name` or `value` is not valid in a header.
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Sets the body of the request. Default empty.
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
