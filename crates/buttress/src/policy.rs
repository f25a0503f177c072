//! Items for custom policies.
//!
//! A policy decides whether calls may start. With a [`GateLayer`] around it and an
//! [ending](crate::ending), it is a layer like those of this crate:
//!
//! ```
//! use buttress::policy::{Class, Clock, GateLayer, Permit, Policy, Reason, Rejection, TokioClock};
//! use buttress::PlainExt;
//! use std::{sync::{Arc, Mutex}, time::{Duration, Instant}};
//!
//! /// At most one call in each interval.
//! #[derive(Clone)]
//! struct Paced(Arc<Mutex<Option<Instant>>>, Duration);
//!
//! static TOO_SOON: Reason = Reason::new("too_soon", "too soon after the last call", Class::RateLimited);
//!
//! impl<Req: ?Sized> Policy<Req> for Paced {
//!     type Permit = ();
//!
//!     fn admit(&self, _: &Req) -> Result<(), Rejection> {
//!         let (mut next, now) = (self.0.lock().unwrap(), TokioClock.now());
//!         let wait = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
//!         if !wait.is_zero() {
//!             return Err(Rejection::new("pace", &TOO_SOON).after(Some(wait)));
//!         }
//!         *next = Some(now + self.1);
//!         Ok(())
//!     }
//! }
//!
//! let paced = Paced(Arc::default(), Duration::from_secs(1));
//! assert!(paced.admit("a request").is_ok());
//! assert_eq!(paced.admit("a request").unwrap_err().reason(), &TOO_SOON);
//! let layer = GateLayer::with_policy(paced).plain();
//! # let _ = layer;
//! ```
//!
//! # Rejections
//!
//! A [`Reason`] is a `static` beside the policy. It has a word for metrics and protocols, a text
//! for people, and a [`Class`], which determines the status: [`wire`](crate::wire) has the table.
//! The policy above returns 429 in HTTP and `RESOURCE_EXHAUSTED` in gRPC.
//!
//! # Time
//!
//! Take the time from [`TokioClock`], so that tests can pause it.
//!
//! # Other features of policies
//!
//! | feature | implement |
//! |---|---|
//! | count calls in flight, or use outcomes | your own [`Permit`] |
//! | reject before the inner service is ready | [`Policy::peek`] |
//! | backpressure | [`Reserve`] |
//! | one policy for each tenant, host or route | [`Idle`] and [`Report`] |
//! | calls that wait for their start | [`Schedule`], and [`Policy::undo`] |
//! | several policies on one call, all or nothing | nothing: put [`AllOf`] around them, and implement [`Policy::undo`] if a call uses something up by its start |
//! | the headers `RateLimit` in HTTP | [`Metered`], and [`Label::with_quota`] for rejections |
//! | metrics by reason of rejection | nothing: put a [`Counted`] around the policy |
//! | metrics of its own | [`Report`] |

mod counted;

pub use counted::Counted;

pub use crate::{clock::TokioClock, gate::GateLayer, in_flight::InFlight};
pub use buttress_core::{
    AllOf, Both, Class, Clock, Criticality, Idle, Label, ManualClock, Name, Permit, Policy, Priority, Progress, Reason,
    Refused, Rejection, Reserve, Schedule, Scheduled, TimeoutKind, Waiters,
    context::CallContext,
    policy::NOT_READY,
    rate_limit::{Advertised, LiveQuota, Metered, Quota, Usage},
    report::{LabelValues, Metric, MetricKind, Report, Sink, Value},
};
