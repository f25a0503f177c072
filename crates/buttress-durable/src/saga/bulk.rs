//! One decision about many stuck sagas.

use super::admin::{Admin, AdminError};
use super::decide::Choice;
use super::id::SagaId;
use super::state::Status;
use super::view::Filter;
use crate::db::{Database, DbErrorKind};

/// The result of a decision about many sagas.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Bulk {
    /// How many sagas the decision was carried out for.
    pub done: u64,
    /// The sagas for which it was not, and why.
    pub failed: Vec<(SagaId, AdminError)>,
    /// Where to continue with [`Filter::after`]: the last saga, if the limit was reached or the
    /// database failed. `None` if there are no more.
    pub next: Option<SagaId>,
}

impl<D: Database> Admin<D> {
    /// [Retries](Self::retry) the stuck sagas that `filter` selects, at most [`Filter::limit`].
    ///
    /// Its status is ignored, since only stuck sagas can be decided about. Each saga has a
    /// transaction of its own: one that fails does not stop the others.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::Db;
    /// use buttress_durable::saga::{Admin, Filter};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let admin = Admin::new(Db::open(dir.path().join("orders.db")).await?);
    /// // After an outage of payment:
    /// let mut filter = Filter { step: Some("process_payment".into()), ..Filter::default() };
    /// loop {
    ///     let bulk = admin.retry_all(&filter).await?;
    ///     println!("retried {}, failed {:?}", bulk.done, bulk.failed);
    ///     filter.after = bulk.next;
    ///     if filter.after.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the database fails before the first saga.
    pub async fn retry_all(&self, filter: &Filter) -> Result<Bulk, AdminError> {
        self.decide_all(filter, Choice::Retry).await
    }

    /// [Skips](Self::skip) the current step of the stuck sagas that `filter` selects, as
    /// [`retry_all`](Self::retry_all) does. Name the [step](Filter::step).
    ///
    /// # Errors
    ///
    /// If the database fails before the first saga.
    pub async fn skip_all(&self, filter: &Filter) -> Result<Bulk, AdminError> {
        self.decide_all(filter, Choice::Skip).await
    }

    /// [Resolves](Self::resolve) the stuck sagas that `filter` selects, with the same note, as
    /// [`retry_all`](Self::retry_all) does.
    ///
    /// # Errors
    ///
    /// If the database fails before the first saga.
    pub async fn resolve_all(&self, filter: &Filter, note: &str) -> Result<Bulk, AdminError> {
        self.decide_all(filter, Choice::Resolve(note)).await
    }

    async fn decide_all(&self, filter: &Filter, choice: Choice<'_>) -> Result<Bulk, AdminError> {
        let filter = Filter { status: Some(Status::Stuck), ..filter.clone() };
        let ids = self.page(&filter).await?;
        let reached = ids.len() >= usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let mut bulk = Bulk { next: ids.last().filter(|_| reached).cloned(), ..Bulk::default() };
        for id in ids {
            match self.decide(&id, choice).await {
                Ok(()) => bulk.done += 1,
                Err(error) => {
                    let down = matches!(&error, AdminError::Db(error) if error.kind() == DbErrorKind::Unavailable);
                    bulk.failed.push((id.clone(), error));
                    if down {
                        bulk.next = Some(id);
                        break;
                    }
                }
            }
        }
        Ok(bulk)
    }
}
