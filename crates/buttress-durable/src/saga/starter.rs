use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::definition::Definition;
use super::machine::Progress;
use super::store;
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
    woken: Arc<watch::Sender<()>>,
    data: PhantomData<fn(&T)>,
}

impl<D: Database, T> Starter<D, T> {
    pub(super) fn new(db: Db<D>, definition: &Definition<D, T>, woken: Arc<watch::Sender<()>>) -> Self {
        let Definition { name, version, deadline, .. } = definition;
        Self { db, name: name.clone(), version: *version, deadline: *deadline, woken, data: PhantomData }
    }

    /// Starts a saga in the caller's transaction. Returns false, without a change, if there is a
    /// saga with this id.
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
        let definition = (self.name.as_str(), self.version);
        store::insert(&self.db, conn, id, definition, (&progress, &data, trace.as_deref())).await
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
        let Self { db, name, version, deadline, woken, data } = self;
        let (db, name, woken) = (db.clone(), name.clone(), woken.clone());
        Self { db, name, version: *version, deadline: *deadline, woken, data: *data }
    }
}
