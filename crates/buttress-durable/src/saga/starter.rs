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

    /// Starts a saga in the caller's transaction: together with what it is about, or not at all. False if there is a saga
    /// with this id, which is then left alone. `trace` goes with every call and event of the saga.
    ///
    /// # Errors
    ///
    /// If the data does not serialise, or what the database says.
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

    /// Tells the coordinator of this process that a transaction with a new saga has committed, to save it the wait.
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
