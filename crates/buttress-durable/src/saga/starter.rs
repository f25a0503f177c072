use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::definition::Definition;
use super::id::SagaId;
use super::machine::Progress;
use super::store::{self, New};
use crate::db::{Database, Db, DbError};
use crate::event::TraceContext;
use crate::text::storable;

/// Starts sagas of one definition.
/// [`CoordinatorBuilder::register`](super::CoordinatorBuilder::register) returns it.
pub struct Starter<D: Database, T> {
    db: Db<D>,
    name: String,
    version: u32,
    deadline: Option<Duration>,
    hooks: i64,
    woken: Arc<watch::Sender<()>>,
    data: PhantomData<fn(&T)>,
}

impl<D: Database, T> Starter<D, T> {
    pub(super) fn new(db: Db<D>, definition: &Definition<D, T>, woken: Arc<watch::Sender<()>>) -> Self {
        let Definition { name, version, deadline, .. } = definition;
        let (name, hooks) = (name.clone(), definition.hooks());
        Self { db, name, version: *version, deadline: *deadline, hooks, woken, data: PhantomData }
    }

    /// Returns the full id of a saga of this definition, by which it is waited for and shown.
    pub fn id(&self, id: impl Into<String>) -> SagaId {
        SagaId::new(self.name.as_str(), id)
    }

    /// Starts a saga in the caller's transaction. Returns false, without a change, if this
    /// definition has a saga with this id, in any version.
    ///
    /// If the saga is compensated, the local compensation of its first step undoes what the
    /// transaction has written besides: it runs even if no step did. See
    /// [`Step::local_compensation`](super::Step::local_compensation).
    ///
    /// `trace` is passed on with every call and event of the saga.
    ///
    /// # Errors
    ///
    /// If the data cannot be serialised or the database fails.
    pub async fn start(
        &self,
        conn: &mut D::Connection,
        id: &str,
        data: &T,
        trace: Option<&TraceContext>,
    ) -> Result<bool, DbError>
    where
        T: Serialize,
    {
        let unwritable = |error: serde_json::Error| DbError::Unreadable { what: "data", value: storable(error) };
        let data = serde_json::to_string(data).map_err(unwritable)?;
        let trace = store::text("trace", &trace)?;
        let progress = Progress::new(0, self.db.now(), self.deadline);
        let new = New {
            id: &self.id(id),
            version: self.version,
            hooks: self.hooks,
            progress: &progress,
            data: &data,
            trace: trace.as_deref(),
        };
        store::insert(&self.db, conn, new).await
    }

    /// Wakes the coordinator of this process after a commit, so that the saga does not wait for the
    /// next poll. Optional.
    pub fn wake(&self) {
        self.woken.send_replace(());
    }
}

impl<D: Database, T> fmt::Debug for Starter<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Starter").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

impl<D: Database, T> Clone for Starter<D, T> {
    fn clone(&self) -> Self {
        let Self { db, name, version, deadline, hooks, woken, data } = self;
        let (db, name, woken) = (db.clone(), name.clone(), woken.clone());
        Self { db, name, version: *version, deadline: *deadline, hooks: *hooks, woken, data: *data }
    }
}
