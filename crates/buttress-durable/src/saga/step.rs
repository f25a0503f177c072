use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use buttress_core::Backoff;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::{Call, Outcome};
use super::rules::Rules;
use crate::db::{Database, Tx};

/// A step of a saga over data of type `T`: an action, an optional compensation, and their limits.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use buttress_durable::saga::{Call, Step, StepError};
/// # #[derive(Clone)] struct Payment;
/// # impl Payment {
/// #     async fn charge(&self, _key: &str, _cents: i64) -> Result<(), StepError> { Ok(()) }
/// #     async fn refund(&self, _key: &str) -> Result<(), StepError> { Ok(()) }
/// # }
/// # let payment = Payment;
/// struct Order { total_cents: i64 }
///
/// let charge = payment.clone();
/// let step = Step::<sqlx::Sqlite, Order>::new("process_payment", move |call: Call<Order>| {
///     let payment = charge.clone();
///     async move {
///         payment.charge(call.key(), call.data.total_cents).await?;
///         Ok(call.done())
///     }
/// })
/// .compensation(move |call: Call<Order>| {
///     let payment = payment.clone();
///     async move {
///         payment.refund(call.key()).await?;
///         Ok(call.done())
///     }
/// })
/// .pivot();
/// # }
/// ```
#[must_use]
pub struct Step<D: Database, T> {
    pub(super) rules: Rules,
    pub(super) action: Act<D, T>,
    pub(super) compensation: Option<Act<D, T>>,
}

type Remote<T> = dyn Fn(Call<T>) -> BoxFuture<'static, Outcome<T>> + Send + Sync;
type Local<D, T> = dyn for<'a> Fn(&'a mut Tx<D>, Call<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync;

pub(super) enum Act<D: Database, T> {
    Remote(Box<Remote<T>>),
    Local(Box<Local<D, T>>),
}

impl<D: Database, T> Step<D, T> {
    /// Creates a step that calls another service: 5 attempts of at most 10 s, with pauses of 100 ms
    /// to 10 s.
    ///
    /// `action` may be called repeatedly with the same [key](Call::key), also after a crash.
    pub fn new<F, Fut>(name: impl Into<String>, action: F) -> Self
    where
        F: Fn(Call<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome<T>> + Send + 'static,
    {
        Self::with(name.into(), Act::Remote(Box::new(move |call| action(call).boxed())))
    }

    /// Creates a step that changes only this database. It runs in the transaction that records its
    /// end, and therefore happens exactly once. It has no unknown outcomes, since a failure rolls
    /// the transaction back.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// use buttress_durable::args;
    /// use buttress_durable::saga::{Call, Step};
    /// use futures_util::FutureExt;
    ///
    /// // The compiler cannot tell the database from the closure: name it.
    /// let create = Step::<sqlx::Sqlite, i64>::local("create", |tx, call: Call<i64>| {
    ///     async move {
    ///         tx.execute("UPDATE orders SET state = 'open' WHERE id = $1", args![call.saga_id()]).await?;
    ///         Ok(call.done())
    ///     }
    ///     .boxed()
    /// });
    /// # let _: Step<sqlx::Sqlite, i64> = create;
    /// # }
    /// ```
    pub fn local<F>(name: impl Into<String>, action: F) -> Self
    where
        F: for<'a> Fn(&'a mut Tx<D>, Call<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync + 'static,
    {
        let mut step = Self::with(name.into(), Act::Local(Box::new(action)));
        step.rules.local = true;
        step
    }

    fn with(name: String, action: Act<D, T>) -> Self {
        Self { rules: Rules::new(name), action, compensation: None }
    }

    /// Sets how to undo the step. Without a compensation there is nothing to undo.
    ///
    /// It gets the same key as the action, must succeed even if the action never happened, and must
    /// ensure that the action does not happen later.
    pub fn compensation<F, Fut>(mut self, compensation: F) -> Self
    where
        F: Fn(Call<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome<T>> + Send + 'static,
    {
        self.compensation = Some(Act::Remote(Box::new(move |call| compensation(call).boxed())));
        (self.rules.undoable, self.rules.undo_local) = (true, false);
        self
    }

    /// Sets how to undo the step in this database only, exactly once.
    ///
    /// On the first step it also undoes what the caller wrote in the transaction that started the
    /// saga: it runs whenever the saga is compensated, also if the step was rejected or never
    /// called, for example because the saga's deadline had passed.
    pub fn local_compensation<F>(mut self, compensation: F) -> Self
    where
        F: for<'a> Fn(&'a mut Tx<D>, Call<T>) -> BoxFuture<'a, Outcome<T>> + Send + Sync + 'static,
    {
        self.compensation = Some(Act::Local(Box::new(compensation)));
        (self.rules.undoable, self.rules.undo_local) = (true, true);
        self
    }

    /// Makes this step the point of no return: once it is done, the saga only goes forward.
    ///
    /// Give it a compensation as well, for the case that its outcome stays unknown. Without one
    /// such a saga gets stuck.
    pub fn pivot(mut self) -> Self {
        self.rules.pivot = true;
        self
    }

    /// Makes this a step after the pivot: it cannot be rejected, and when its attempts are used up
    /// the saga is stuck, not compensated.
    pub fn retriable(mut self) -> Self {
        self.rules.retriable = true;
        self
    }

    /// Sets how often the action is tried. Default: 5. An attempt that a crash interrupted does not
    /// count, nor does a call that could [not be sent](super::StepError::not_sent).
    pub fn attempts(mut self, attempts: NonZeroU32) -> Self {
        self.rules.attempts = attempts.get();
        self
    }

    /// Sets the pauses between attempts. Default: equal jitter, 100 ms to 10 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.rules.backoff = backoff;
        self
    }

    /// Sets how long one attempt of the action or the compensation may take. Default: 10 s. After
    /// that it has failed with [`ErrorKind::Unknown`].
    ///
    /// [`ErrorKind::Unknown`]: super::ErrorKind::Unknown
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.rules.timeout = timeout;
        self
    }

    /// Sets how long all attempts of the action may take together, from the first one on, in wall
    /// time and across restarts. Default: no limit except the saga's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.rules.deadline = Some(deadline);
        self
    }

    /// Sets how often the compensation is tried before the saga is stuck. Default: 20.
    pub fn compensation_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.rules.undo_attempts = attempts.get();
        self
    }

    /// Sets the pauses between attempts of the compensation. Default: equal jitter, 200 ms to 60 s.
    pub fn compensation_backoff(mut self, backoff: Backoff) -> Self {
        self.rules.undo_backoff = backoff;
        self
    }
}

impl<D: Database, T> fmt::Debug for Step<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("rules", &self.rules).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    type OnSqlite = Step<sqlx::Sqlite, ()>;

    #[test]
    fn every_setting_of_a_step_is_its_own() {
        let two = NonZeroU32::MIN.saturating_add(1);
        let three = NonZeroU32::MIN.saturating_add(2);
        let (short, long) = (Backoff::constant(Duration::from_secs(1)), Backoff::constant(Duration::from_secs(2)));
        let Rules { attempts, backoff, timeout, deadline, undo_attempts, undo_backoff, .. } =
            OnSqlite::new("a", |call: Call<()>| async { Ok(call.done()) })
                .attempts(two)
                .backoff(short)
                .timeout(Duration::from_secs(3))
                .deadline(Duration::from_secs(4))
                .compensation_attempts(three)
                .compensation_backoff(long)
                .rules;
        assert_eq!((attempts, backoff, timeout), (2, short, Duration::from_secs(3)));
        assert_eq!((deadline, undo_attempts, undo_backoff), (Some(Duration::from_secs(4)), 3, long));
    }

    #[test]
    fn a_step_is_what_it_was_declared_to_be() {
        let kind = |step: &OnSqlite| {
            let rules = &step.rules;
            (rules.local, rules.pivot, rules.retriable, rules.undoable)
        };
        let remote = || OnSqlite::new("a", |call: Call<()>| async { Ok(call.done()) });
        let local = || OnSqlite::local("a", |_, call| async { Ok(call.done()) }.boxed());
        assert_eq!(kind(&remote()), (false, false, false, false));
        assert_eq!(kind(&local()), (true, false, false, false));
        assert_eq!(kind(&remote().pivot()), (false, true, false, false));
        assert_eq!(kind(&remote().retriable()), (false, false, true, false));
        let undone = remote().compensation(|call: Call<()>| async { Ok(call.done()) });
        assert_eq!(kind(&undone), (false, false, false, true));
        let undone_here = remote().local_compensation(|_, call| async { Ok(call.done()) }.boxed());
        assert_eq!(kind(&undone_here), (false, false, false, true));
    }
}
