//! A definition as the coordinator sees it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, Done, Meta, Outcome};
use super::decision::{About, Decision, Kind};
use super::definition::Definition;
use super::error::StepError;
use super::rules::Rules;
use super::step::Act;
use crate::db::{Database, Tx};
use crate::event::DomainEvent;

/// A definition whose data is JSON, so that one coordinator can run sagas of several types.
pub(super) trait Flow<D: Database>: Send + Sync {
    fn name(&self) -> &str;
    fn version(&self) -> u32;
    fn rules(&self) -> &[Rules];

    /// Whether the action or the compensation runs in the coordinator's transaction.
    fn is_local(&self, step: usize, undo: bool) -> bool;

    /// Calls the action or the compensation of a step. `tx` is set if it is local.
    fn call<'a>(
        &'a self,
        step: usize,
        undo: bool,
        meta: Meta,
        data: &'a str,
        tx: Option<&'a mut Tx<D>>,
    ) -> BoxFuture<'a, Result<Called, CallError>>;

    /// Calls the hook for a decision. `None` if there is none.
    fn decide<'a>(
        &'a self,
        kind: Kind,
        about: About,
        data: &'a str,
        tx: &'a mut Tx<D>,
    ) -> Option<BoxFuture<'a, Result<Called, CallError>>>;
}

/// The result of a step: the data as JSON, and its events.
pub(super) struct Called {
    pub(super) data: String,
    pub(super) events: Vec<DomainEvent>,
}

pub(super) enum CallError {
    Step(StepError),
    /// This definition cannot run the saga.
    Misfit(String),
}

impl<D, T> Flow<D> for Definition<D, T>
where
    D: Database,
    T: DeserializeOwned + Serialize + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn rules(&self) -> &[Rules] {
        &self.rules
    }

    fn is_local(&self, step: usize, undo: bool) -> bool {
        matches!(self.act(step, undo), Some(Act::Local(_)))
    }

    fn call<'a>(
        &'a self,
        step: usize,
        undo: bool,
        meta: Meta,
        data: &'a str,
        tx: Option<&'a mut Tx<D>>,
    ) -> BoxFuture<'a, Result<Called, CallError>> {
        guarded(async move {
            let call = Call { data: read(data)?, meta };
            let outcome = match (self.act(step, undo), tx) {
                (Some(Act::Remote(act)), _) => act(call).await,
                (Some(Act::Local(act)), Some(tx)) => act(tx, call).await.map_err(StepError::of_local_step),
                _ => {
                    let message = format!("the definition has no such action or compensation at step {step}");
                    return Err(CallError::Misfit(message));
                }
            };
            called(outcome)
        })
        .boxed()
    }

    fn decide<'a>(
        &'a self,
        kind: Kind,
        about: About,
        data: &'a str,
        tx: &'a mut Tx<D>,
    ) -> Option<BoxFuture<'a, Result<Called, CallError>>> {
        let hook = self.hook(kind)?;
        let decide = async move { called(hook(tx, Decision { data: read(data)?, about }).await) };
        Some(guarded(decide).boxed())
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, CallError> {
    let misfit = |error| CallError::Misfit(format!("the saga's data does not fit the definition: {error}"));
    serde_json::from_str(data).map_err(misfit)
}

fn called<T: Serialize>(outcome: Outcome<T>) -> Result<Called, CallError> {
    let Done { data, events } = outcome.map_err(CallError::Step)?;
    let misfit = |error| CallError::Misfit(format!("the saga's data cannot be serialised: {error}"));
    Ok(Called { data: serde_json::to_string(&data).map_err(misfit)?, events })
}

/// Converts a panic into an unknown outcome, since the step may have done its work before. The
/// step's function is called inside, so that a panic before its first `await` is caught as well.
async fn guarded(call: impl Future<Output = Result<Called, CallError>>) -> Result<Called, CallError> {
    let panicked = |_| Err(CallError::Step(StepError::unknown("the step panicked")));
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(panicked)
}
