//! Sagas: changes in several services that all happen or are all undone, without a distributed
//! transaction.
//!
//! A saga is a list of [`Step`]s, each with an action and, if there is something to undo, a
//! compensation. The [`Coordinator`] runs the actions in order. When a step fails for good, the
//! steps before it are compensated in reverse order.
//!
//! * One step may be the **pivot**, the point of no return. After it the saga only goes forward,
//!   and every later step must be [`retriable`](Step::retriable): it cannot be rejected and is
//!   repeated until it succeeds.
//! * A failure has a kind ([`StepError`]): *retriable* (it did not happen; try again), *terminal*
//!   (it did not happen and never will), *unknown* (a timeout or a crash hides the outcome). A step
//!   with an attempt of unknown outcome is compensated like one that succeeded, unless a later
//!   attempt succeeds.
//! * Every call carries the **idempotency key** `saga:step`, the same for each attempt and for the
//!   compensation. The participant does the work once for each key. When it is asked to compensate
//!   a key that it does not know, it must remember to reject that key, because the action may
//!   arrive later.
//! * A step that changes only the service's own database is [`local`](Step::local): it runs in the
//!   transaction that records its end, and therefore happens exactly once.
//!
//! # What is stored
//!
//! There is a row for the saga and one for each step that has begun. They are written before and
//! after each step, together with the step's events in the [outbox](crate::outbox). The end of a
//! step and the start of the next are recorded in one transaction. After a restart the coordinator
//! continues from the rows: a step that had begun is called again with the same key.
//!
//! A coordinator runs a saga under a lease. Each new owner has a higher generation, and every write
//! names its generation, so that a replaced owner writes nothing. Two coordinators therefore never
//! both advance a saga in the database. Calls that a replaced owner sent to a participant before
//! are made harmless by the idempotency key.
//!
//! # When it fails
//!
//! An action is tried up to its number of attempts, with pauses, within its deadlines. All of these
//! are measured in wall time and count across restarts. Then the saga is compensated; after the
//! pivot it is **stuck** instead. It is also stuck when a compensation has used up its attempts, or
//! when the saga was recovered from crashed coordinators too often without progress. A stuck saga
//! is never dropped: [`Admin`] lists it with its reason, an operator retries, skips or resolves it,
//! and [`Admin::counts`] counts it for a metric.

mod admin;
mod call;
mod coordinator;
mod definition;
mod error;
mod machine;
mod rules;
mod run;
mod scheduler;
mod starter;
mod state;
mod step;
mod store;
mod view;

pub(crate) use admin::purge;
pub use admin::{Admin, AdminError};
pub use call::{Call, Done};
pub use coordinator::{Coordinator, CoordinatorBuilder, Running};
pub use definition::Definition;
pub use error::{ErrorKind, StepError};
pub use starter::Starter;
pub use state::{Failure, Status, StepState, Stuck};
pub use step::Step;
pub use view::{Counts, Filter, SagaView, StepView};
