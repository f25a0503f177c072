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
//!   attempt succeeds. *Not sent* (the call was not made: an open circuit, a full bulkhead) is no
//!   attempt at all.
//! * The **start** is an effect, too. The caller starts a saga in a transaction, and may write more
//!   in it. If the first step has a [local compensation](Step::local_compensation), that undoes it:
//!   it runs whenever the saga is compensated, also if no step was ever called. Let the first step
//!   own the row that the saga is about.
//! * Every call carries the **idempotency key** `definition:saga:step`, the same for each attempt
//!   and for the compensation. The participant does the work once for each key. When it is asked to
//!   compensate a key that it does not know, it must remember to reject that key, because the
//!   action may arrive later.
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
//! pivot it is **stuck** instead. It is also stuck
//!
//! * when a compensation has used up its attempts, or was rejected;
//! * when the saga was recovered from crashed coordinators too often without progress;
//! * when its row or its data cannot be read. The others go on.
//!
//! A stuck saga is never dropped: [`Admin`] lists it with its reason, an operator retries, skips or
//! resolves it, one by one or [by filter](Admin::retry_all), and [`Admin::counts`] counts it for a
//! metric. Hooks of the definition ([`on_skip`](Definition::on_skip),
//! [`on_resolve`](Definition::on_resolve)) run in the transaction of the decision, so that the
//! business's rows follow it.
//!
//! # Outages
//!
//! An outage of any length uses up no attempts, if the step tells it apart:
//!
//! | what is down | what the step returns | what happens |
//! |---|---|---|
//! | a participant, and the call was not made | [`StepError::not_sent`] | waits by the step's backoff, then tries again |
//! | a participant, after the call was made | [`StepError::unknown`] with [`uncounted`](StepError::uncounted) | the same, and the step counts as one that may have happened |
//! | this database, in a local step | its error, by `?` | the same; the rollback has undone the step |
//! | this database, otherwise | | the coordinator waits; it is no recovery either |
//!
//! The deadlines hold meanwhile: of the saga before its pivot, then it is compensated, and of the
//! step. Steps after the pivot and compensations without a deadline wait until the outage is over.
//! For an action before the pivot, whose outcome a customer waits for, count the attempts instead.
//!
//! # Versions, and rolling updates
//!
//! Only the version that started a saga runs it. Sagas whose version no coordinator of a process
//! has registered are logged at its start and every 10 minutes, and [`Counts::unregistered`] counts
//! them.
//!
//! Ids belong to their definition since migration 3 of the tables. Processes from before it can run
//! beside those from after it: they go on with the sagas they have started, which keep their keys
//! (`saga:step`) and are run by either. They leave alone those that a newer process has started,
//! and fail to start one with the id of such a saga.

mod admin;
mod bulk;
mod call;
mod claim;
mod coordinator;
mod decide;
mod decision;
mod definition;
mod error;
mod flow;
mod id;
mod list;
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
pub use bulk::Bulk;
pub use call::{Call, Done};
pub use coordinator::{Coordinator, CoordinatorBuilder, Running};
pub use decision::Decision;
pub use definition::Definition;
pub use error::{ErrorKind, StepError};
pub use id::{InvalidSagaId, SagaId};
pub use starter::Starter;
pub use state::{Failure, Status, StepState, Stuck};
pub use step::Step;
pub use view::{Counts, Filter, SagaView, StepView};
