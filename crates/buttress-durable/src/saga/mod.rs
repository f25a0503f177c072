//! Sagas: several services change together, or not at all, without a transaction across them.
//!
//! A saga is a list of [`Step`]s, each with an action and, where there is something to undo, a compensation. The
//! [`Coordinator`] runs them in order. When a step fails for good, the steps before it are undone in reverse order.
//!
//! * A step may be the **pivot**, the point of no return: after it the saga only goes forward, and every later step must be
//!   [`retriable`](Step::retriable), one that cannot be refused and is repeated until it succeeds.
//! * A failure is typed ([`StepError`]): *retriable* (it did not happen, try again), *terminal* (it did not happen and never
//!   will), *unknown* (nobody can tell: a timeout, a crash). A step of which any attempt ended unknown is undone like one
//!   that succeeded, unless it succeeds after all.
//! * Every call carries the **idempotency key** `saga:step`, the same for each attempt and for the compensation. The
//!   participant does the work once for a key; and when asked to undo a key that it has never seen, it remembers to refuse
//!   it, because the action may still be on its way.
//! * A step that changes only the service's own database is [`local`](Step::local): it runs in the transaction that notes its
//!   end, and so happens exactly once.
//!
//! # What is stored
//!
//! A row for the saga and one for each step that has begun, written before the step runs and after it, together with the
//! step's events in the [outbox](crate::outbox). The row after one step and the row before the next are one transaction. A
//! restart reads the rows and goes on: a step that had begun is called again with the same key.
//!
//! A coordinator works on a saga under a lease. Each new owner has a higher generation, and every write names the
//! generation it belongs to: an owner that was believed dead and was not writes nothing. So two coordinators never run one
//! saga, as far as anything in the database goes; what a stale owner has sent to a participant before, the idempotency key
//! catches.
//!
//! # What happens when it does not work
//!
//! An action is tried up to its number of attempts, with pauses, within its deadlines, all in wall time and counted across
//! restarts. Then the saga is undone; or, past the pivot, it is **stuck**, as it is when a compensation has used up its own
//! attempts, or when the saga has killed its coordinator too often without getting any further. A stuck saga is never
//! dropped: it is in the [`Admin`] list with its reason, waits for somebody to retry, skip or resolve it, and is counted by
//! [`Admin::counts`] for a metric.

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

pub use admin::{Admin, AdminError, Counts, Filter, SagaView, StepView};
pub use call::{Call, Done};
pub use coordinator::{Coordinator, CoordinatorBuilder, Running};
pub use definition::Definition;
pub use error::{ErrorKind, StepError};
pub use starter::Starter;
pub use state::{Failure, Status, StepState, Stuck};
pub use step::Step;
