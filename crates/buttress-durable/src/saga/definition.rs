use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use buttress_core::InvalidConfig;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, Done, Meta};
use super::error::StepError;
use super::rules::Rules;
use super::step::{Act, Step};
use crate::db::{Database, Tx};
use crate::event::{DomainEvent, is_topic};

/// The steps of a saga, under a name and a version.
///
/// Each saga stores the version it was started with, and only that version runs it. If you change
/// the steps or the data, use a new version, and register both until the last saga of the old one
/// has ended.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use buttress_durable::saga::{Call, Definition, Step};
/// use std::time::Duration;
///
/// let reserve = Step::<sqlx::Sqlite, i64>::new("reserve", |call: Call<i64>| async { Ok(call.done()) })
///     .compensation(|call: Call<i64>| async { Ok(call.done()) });
/// let pay = Step::new("pay", |call: Call<i64>| async { Ok(call.done()) }).pivot();
/// let order = Definition::new("order", 1, [reserve, pay])?.deadline(Duration::from_secs(60));
/// # }
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Debug)]
pub struct Definition<D: Database, T> {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) rules: Vec<Rules>,
    pub(super) deadline: Option<Duration>,
    steps: Vec<Step<D, T>>,
}

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

impl<D: Database, T> Definition<D, T> {
    /// Creates a definition. Versions begin with 1.
    ///
    /// # Errors
    ///
    /// If the definition's or a step's name is not 1 to 60 of `A-Za-z0-9._-`, two steps have the
    /// same name, there is no step or more than one pivot, a step after the pivot is not retriable,
    /// or a retriable step is not after the pivot.
    pub fn new(
        name: impl Into<String>,
        version: u32,
        steps: impl IntoIterator<Item = Step<D, T>>,
    ) -> Result<Self, InvalidConfig> {
        let name = name.into();
        let steps: Vec<_> = steps.into_iter().collect();
        let rules: Vec<_> = steps.iter().map(|step| step.rules.clone()).collect();
        let legal = |name: &str| is_topic(name, 60);
        if !legal(&name) {
            return Err(InvalidConfig::new("name", "must be 1 to 60 of the characters A-Z, a-z, 0-9, '.', '_', '-'"));
        }
        let names: BTreeSet<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
        if names.len() != rules.len() || rules.is_empty() || !names.iter().all(|name| legal(name)) {
            let rule = "must be at least one, each with a unique name of 1 to 60 of A-Z, a-z, 0-9, '.', '_', '-'";
            return Err(InvalidConfig::new("steps", rule));
        }
        if rules.iter().filter(|rule| rule.pivot).count() > 1 {
            return Err(InvalidConfig::new("steps", "must have at most one pivot"));
        }
        let pivot = rules.iter().position(|rule| rule.pivot).unwrap_or(rules.len());
        if rules.iter().enumerate().any(|(index, rule)| rule.retriable != (index > pivot)) {
            let rule = "must be retriable after the pivot, where nothing can be compensated, and only there";
            return Err(InvalidConfig::new("steps", rule));
        }
        Ok(Self { name, version, rules, deadline: None, steps })
    }

    /// Sets how long a saga may take until its pivot is called, in wall time. Then it is
    /// compensated. Default: no limit.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    fn act(&self, step: usize, undo: bool) -> Option<&Act<D, T>> {
        let step = self.steps.get(step)?;
        if undo { step.compensation.as_ref() } else { Some(&step.action) }
    }
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
        async move {
            let data = serde_json::from_str(data)
                .map_err(|error| CallError::Misfit(format!("the saga's data does not fit the definition: {error}")))?;
            let call = Call { data, meta };
            let outcome = match (self.act(step, undo), tx) {
                (Some(Act::Remote(act)), _) => guarded(async { act(call).await }).await,
                (Some(Act::Local(act)), Some(tx)) => guarded(act(tx, call)).await,
                _ => {
                    return Err(CallError::Misfit(format!(
                        "the definition has no such action or compensation at step {step}"
                    )));
                }
            };
            let Done { data, events } = outcome.map_err(CallError::Step)?;
            let data = serde_json::to_string(&data)
                .map_err(|error| CallError::Misfit(format!("the saga's data cannot be serialised: {error}")))?;
            Ok(Called { data, events })
        }
        .boxed()
    }
}

/// Converts a panic into an unknown outcome, since the step may have done its work before.
async fn guarded<T>(act: impl Future<Output = Result<T, StepError>>) -> Result<T, StepError> {
    AssertUnwindSafe(act).catch_unwind().await.unwrap_or_else(|_| Err(StepError::unknown("the step panicked")))
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    fn step(name: &str) -> Step<sqlx::Sqlite, ()> {
        Step::new(name, |call: Call<()>| async { Ok(call.done()) })
    }

    #[test]
    fn names_have_1_to_60_legal_characters() {
        let define = |definition: &str, first: &str| Definition::new(definition, 1, [step(first)]).is_ok();
        assert!(define(&"d".repeat(60), &"s".repeat(60)) && define("A-Z.a_z-09", "a"));
        for wrong in ["", "a b", "a:b", &"x".repeat(61)] {
            assert!(!define(wrong, "a") && !define("a", wrong), "{wrong:?}");
        }
    }

    #[test]
    fn the_steps_after_the_pivot_are_retriable_and_no_others() {
        let define = |steps: Vec<Step<_, ()>>| Definition::new("d", 1, steps).is_ok();
        assert!(define(vec![step("a"), step("b").pivot(), step("c").retriable(), step("d").retriable()]));
        assert!(define(vec![step("a"), step("b")]) && define(vec![step("a").pivot()]));
        assert!(!define(vec![step("a").retriable()]), "there is no pivot before it");
        assert!(!define(vec![step("a").pivot().retriable()]), "the pivot itself may be rejected");
        assert!(!define(vec![step("a").pivot(), step("b").retriable(), step("c")]));
    }

    #[test]
    fn a_deadline_is_optional() {
        let plain = Definition::new("d", 7, [step("a")]).unwrap();
        assert_eq!((plain.deadline, plain.name.as_str(), plain.version), (None, "d", 7));
        assert_eq!(plain.deadline(Duration::from_secs(3)).deadline, Some(Duration::from_secs(3)));
    }
}
