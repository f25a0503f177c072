use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use buttress_core::InvalidConfig;
use futures_util::future::BoxFuture;

use super::call::Outcome;
use super::decision::{Decision, Hook, Kind};
use super::rules::Rules;
use super::step::{Act, Step};
use crate::db::{Database, Tx};
use crate::event::is_topic;

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
pub struct Definition<D: Database, T> {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) rules: Vec<Rules>,
    pub(super) deadline: Option<Duration>,
    steps: Vec<Step<D, T>>,
    on_skip: Option<Box<Hook<D, T>>>,
    on_resolve: Option<Box<Hook<D, T>>>,
}

impl<D: Database, T> Definition<D, T> {
    /// Creates a definition. Versions begin with 1.
    ///
    /// # Errors
    ///
    /// If the version is 0, the definition's or a step's name is not 1 to 60 of `A-Za-z0-9._-`, two
    /// steps have the same name, there is no step or more than one pivot, a step after the pivot is
    /// not retriable, or a retriable step is not after the pivot.
    pub fn new(
        name: impl Into<String>,
        version: u32,
        steps: impl IntoIterator<Item = Step<D, T>>,
    ) -> Result<Self, InvalidConfig> {
        let name = name.into();
        let steps: Vec<_> = steps.into_iter().collect();
        let rules: Vec<_> = steps.iter().map(|step| step.rules.clone()).collect();
        if version == 0 {
            return Err(InvalidConfig::new("version", "must be at least 1"));
        }
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
        Ok(Self { name, version, rules, deadline: None, steps, on_skip: None, on_resolve: None })
    }

    /// Sets how long a saga may take until its pivot is called, in wall time. Then it is
    /// compensated, also if it waits for a participant that is down. Default: no limit.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets what else happens when an operator skips a step of a stuck saga: the hook runs in the
    /// transaction of the decision, which it can refuse with an error. Default: nothing.
    ///
    /// With a hook, only the [`Coordinator::admin`](super::Coordinator::admin) of a process that
    /// has registered the definition can skip.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// use buttress_durable::args;
    /// use buttress_durable::saga::{Call, Decision, Definition, Step};
    /// use futures_util::FutureExt;
    ///
    /// # let confirm = Step::<sqlx::Sqlite, i64>::new("confirm", |call: Call<i64>| async { Ok(call.done()) });
    /// let order = Definition::new("order", 1, [confirm])?.on_skip(|tx, decision: Decision<i64>| {
    ///     async move {
    ///         if decision.step() == "confirm" && !decision.is_compensating() {
    ///             let sql = "UPDATE orders SET state = 'confirmed' WHERE id = $1";
    ///             tx.execute(sql, args![decision.saga_id()]).await?;
    ///         }
    ///         Ok(decision.done())
    ///     }
    ///     .boxed()
    /// });
    /// # }
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[must_use]
    pub fn on_skip<F>(mut self, hook: F) -> Self
    where
        F: for<'a> Fn(&'a mut Tx<D>, Decision<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync + 'static,
    {
        self.on_skip = Some(Box::new(hook));
        self
    }

    /// Sets what else happens when an operator resolves a stuck saga, as with
    /// [`on_skip`](Self::on_skip). It is not called if the saga or its data cannot be read, since
    /// there must be a way to close that one as well.
    #[must_use]
    pub fn on_resolve<F>(mut self, hook: F) -> Self
    where
        F: for<'a> Fn(&'a mut Tx<D>, Decision<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync + 'static,
    {
        self.on_resolve = Some(Box::new(hook));
        self
    }

    pub(super) fn act(&self, step: usize, undo: bool) -> Option<&Act<D, T>> {
        let step = self.steps.get(step)?;
        if undo { step.compensation.as_ref() } else { Some(&step.action) }
    }

    pub(super) fn hook(&self, kind: Kind) -> Option<&Hook<D, T>> {
        match kind {
            Kind::Skip => self.on_skip.as_deref(),
            Kind::Resolve => self.on_resolve.as_deref(),
        }
    }

    /// The decisions that have a hook, as flags.
    pub(super) fn hooks(&self) -> i64 {
        [Kind::Skip, Kind::Resolve].into_iter().filter(|kind| self.hook(*kind).is_some()).map(Kind::flag).sum()
    }
}

impl<D: Database, T> fmt::Debug for Definition<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, version, deadline, steps, .. } = self;
        let mut debug = f.debug_struct("Definition");
        debug.field("name", name).field("version", version).field("deadline", deadline).field("steps", steps);
        debug.finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::super::call::Call;
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
    fn versions_begin_with_1() {
        let refused = Definition::new("d", 0, [step("a")]).unwrap_err();
        assert!(refused.to_string().contains("version"), "{refused}");
    }

    #[test]
    fn a_deadline_is_optional() {
        let plain = Definition::new("d", 7, [step("a")]).unwrap();
        assert_eq!((plain.deadline, plain.name.as_str(), plain.version), (None, "d", 7));
        assert_eq!(plain.deadline(Duration::from_secs(3)).deadline, Some(Duration::from_secs(3)));
    }
}
