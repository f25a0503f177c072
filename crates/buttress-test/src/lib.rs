//! Test tools for Tower layers over HTTP and gRPC: a contract, a traffic harness, and a mock
//! backend.
//!
//! | item | purpose |
//! |---|---|
//! | [`contract`] | the rules that hold for every layer: readiness, clones, dropped futures and bodies, panics, lost permits |
//! | [`traffic`] | sends the traffic of production through a layer or a stack: rare calls, long streams, hang-ups, outages, crowds |
//! | [`Inner`] | a mock backend with scripted readiness, answers and bodies; records the requests that it received |
//! | [`Plan`], [`Answer`], [`Ready`] | the behaviour of an [`Inner`] |
//! | [`TestBody`], [`Part`] | a body that follows a script, with an exact length and end |
//!
//! The tools test any layer over `http::Request`, not only those of [`buttress`]. Time is virtual:
//! every scenario runs on tokio's paused clock, so a call of 60 days does not hold a test up.
//!
//! # Test a layer of your own
//!
//! A layer that adds a header, in a test with the contract, the traffic and a mock backend:
//!
//! ```
//! use buttress_test::{Inner, Plan, TestBody, contract, traffic::Traffic};
//! use http::{HeaderValue, Request};
//! use std::task::{Context, Poll};
//! use tower::{Layer, Service, ServiceExt, layer::layer_fn};
//!
//! #[derive(Clone)]
//! struct SetTenant<S>(S);
//!
//! impl<S: Service<Request<B>>, B> Service<Request<B>> for SetTenant<S> {
//!     type Response = S::Response;
//!     type Error = S::Error;
//!     type Future = S::Future;
//!
//!     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
//!         self.0.poll_ready(cx)
//!     }
//!
//!     fn call(&mut self, mut request: Request<B>) -> S::Future {
//!         request.headers_mut().insert("x-tenant", HeaderValue::from_static("acme"));
//!         self.0.call(request)
//!     }
//! }
//!
//! // The rules for every layer.
//! contract::check(|| layer_fn(SetTenant));
//!
//! // The traffic of production. The layer makes no promise, so it must admit every call.
//! Traffic::through("set tenant", || layer_fn(SetTenant)).check();
//!
//! // Its own behaviour.
//! # tokio_test::block_on(async {
//! let backend = Inner::new(Plan::healthy());
//! let service = layer_fn(SetTenant).layer(backend.clone());
//! service.oneshot(Request::new(TestBody::default())).await.unwrap();
//! assert_eq!(backend.received()[0].headers["x-tenant"], "acme");
//! # });
//! ```
//!
//! A layer with a bound or a circuit breaker states it: see [`contract::check_bound_of_one`],
//! [`Traffic::at_once`](traffic::Traffic::at_once) and [`Traffic::opens`](traffic::Traffic::opens).
//!
//! # Features
//!
//! None. Rust 1.88 or newer.

mod body;
pub mod contract;
mod inner;
mod subject;
pub mod traffic;

pub use body::{Part, TestBody};
pub use inner::{Answer, Inner, MakeError, Plan, Ready, Received};

/// Any error, as in tower.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
