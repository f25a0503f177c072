//! Injects faults: errors, latency, calls that hang, and with HTTP broken bodies. Behind the
//! feature `chaos`.
//!
//! ```
//! use buttress::{PlainExt, chaos::{Chaos, ChaosLayer, Faults}};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::InvalidConfig> {
//! let chaos = Chaos::new(); // off
//! let backend = service_fn(async |_: ()| Ok::<_, buttress::Error>("response"));
//! let service = ChaosLayer::from(chaos.clone()).plain().layer(backend);
//! assert_eq!(service.clone().oneshot(()).await.unwrap(), "response");
//!
//! chaos.set(Faults::builder().errors(1.0).build()?); // from a test, or by an operator
//! assert_eq!(service.clone().oneshot(()).await.unwrap_err().to_string(), "injected fault: error");
//!
//! chaos.off();
//! assert_eq!(service.oneshot(()).await.unwrap(), "response");
//! # Ok(())
//! # }
//! ```
//!
//! For some requests only, repeatable, and with a bound on the damage:
//!
//! ```
//! use buttress::{PlainExt, chaos::{Chaos, ChaosLayer, Faults, Strike}};
//! use std::time::Duration;
//!
//! struct Request {
//!     tenant: &'static str,
//! }
//!
//! let chaos = Chaos::builder().name("stock").seed(7).max_active(10).build()?;
//! chaos.set(
//!     Faults::builder()
//!         .errors(0.01)
//!         .latency(0.2, Duration::from_millis(50)..=Duration::from_millis(500))
//!         .hangs(0.001)
//!         .strike(Strike::Either)
//!         .build()?,
//! );
//! let layer = ChaosLayer::from(chaos).only(|request: &Request| request.tenant == "test").plain();
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # The faults
//!
//! | fault | `.plain()` | HTTP and gRPC endings of `buttress-http` |
//! |---|---|---|
//! | [`errors`](FaultsBuilder::errors) | an error | a response with a status, 503 or `UNAVAILABLE` by default |
//! | [`latency`](FaultsBuilder::latency) | the inner service is called late | the same |
//! | [`hangs`](FaultsBuilder::hangs) | no response until the faults are changed or switched off | the same |
//! | [`resets`](FaultsBuilder::resets) | none | the body ends with an error: hyper breaks the connection, or resets the stream |
//! | [`truncations`](FaultsBuilder::truncations) | none | the body ends in the middle of its first frame |
//! | [`lost_trailers`](FaultsBuilder::lost_trailers) | none | the trailers are missing, with them the status of gRPC |
//! | [`slow_bodies`](FaultsBuilder::slow_bodies) | none | each frame is late |
//!
//! A call may suffer from several. Latency comes first, then an error or a hang on the side of the
//! inner service that [`Strike`] says, then the faults of the body.
//!
//! # How it shows
//!
//! Layers outside take an injected fault for a real one: it opens circuits, and is repeated. What
//! tells it apart is [`Injected`]: it is in the chain of the error, and in the extensions of the
//! response. [`Chaos`] reports how often each fault was injected.
//!
//! # Safety
//!
//! * Nothing is injected before [`Chaos::set`] was called.
//! * [`Chaos::off`] stops it at once, and ends hanging calls.
//! * At most [`max_active`](Builder::max_active) calls suffer at a time, 100 by default.
//! * No header of a request has an effect, unless [`ChaosLayer::by`] reads one.
//! * Without the feature `chaos` none of this is in a program.
//!
//! # When to use it
//!
//! In tests of a stack, and in a running system to see whether its circuits, retries and fallbacks
//! do what they are for. With a seed and a paused clock, a run is repeatable.
//!
//! # Where it belongs
//!
//! Innermost: in a client next to the transport, in a server next to the handler, so that all
//! layers see the fault.
//!
//! # Differences
//!
//! * Polly has a strategy for each fault, with a rate of its own and a switch. Here one layer has
//!   them all, and their draws are independent too.
//! * Envoy and gRPC (gRFC A33) delay and abort requests, by headers if that is configured, with a
//!   bound on the number of active faults. The bound is here too; broken bodies are not there.

mod layer;
mod service;

pub use buttress_core::chaos::{Builder, Chaos, Drawn, Fault, Faults, FaultsBuilder, Injected, Injection, Strike};
pub use layer::{ChaosLayer, Only};
pub use service::ChaosService;

use buttress_core::{Class, Reason};

/// The call fails by an injected fault. For endings whose only failures are rejections.
pub static INJECTED: Reason = Reason::new("injected_fault", "injected fault", Class::Unavailable);

/// The future of a [`ChaosService`].
pub mod future {
    pub use super::service::ResponseFuture;
}
