//! One decision about one stuck saga, with the definition's hook, in one transaction.

use super::admin::{Admin, AdminError};
use super::claim::is_unreadable;
use super::decision::{About, Kind};
use super::error::StepError;
use super::flow::{CallError, Called};
use super::id::SagaId;
use super::machine::Progress;
use super::state::Stuck;
use super::store::{self, Lease, Owned};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, DbError, Tx};
use crate::event::DomainEvent;
use crate::outbox::OutboxError;
use crate::text::storable;

/// What an operator decides about a stuck saga.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice<'a> {
    Retry,
    Skip,
    Resolve(&'a str),
}

impl Choice<'_> {
    /// The decision in which the definition may take part.
    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Retry => None,
            Self::Skip => Some(Kind::Skip),
            Self::Resolve(_) => Some(Kind::Resolve),
        }
    }

    pub(super) fn note(&self) -> Option<&str> {
        match self {
            Self::Resolve(note) => Some(note),
            _ => None,
        }
    }

    pub(super) fn apply(self, progress: &mut Progress, now: Timestamp) {
        match self {
            Self::Retry => progress.retry(now),
            Self::Skip => progress.skip(now),
            Self::Resolve(note) => progress.resolve(note),
        }
    }
}

impl<D: Database> Admin<D> {
    pub(super) async fn decide(&self, id: &SagaId, choice: Choice<'_>) -> Result<(), AdminError> {
        let mut tx = self.db.begin().await?;
        // Takes the saga from concurrent decisions: PostgreSQL locks the row, and the other one
        // finds it no longer stuck.
        let sql = "UPDATE buttress_saga SET generation = generation + 1
                   WHERE COALESCE(own_id, id) = $1 AND definition = $2 AND status = 'stuck' RETURNING id";
        let rows = self.db.fetch(&mut tx, sql, args![id.id(), id.definition()]).await?;
        let Some(row) = rows.first() else { return Err(AdminError::NotStuck(id.clone())) };
        let key = D::text(row, 0).map_err(DbError::from)?;
        let mut saga = match (store::load(&self.db, &mut tx, &key).await, choice) {
            (Ok(Some(saga)), _) => saga,
            (Ok(None), _) => return Err(AdminError::NotStuck(id.clone())),
            (Err(error), Choice::Resolve(note)) if is_unreadable(&error) => {
                return Ok(self.close_unreadable(tx, &key, note).await?);
            }
            (Err(error), _) => return Err(error.into()),
        };
        let name = self.step_name(&saga);
        let events = self.consult(&mut tx, &mut saga, &name, choice).await?;
        choice.apply(&mut saga.progress, self.db.now());
        saga.recoveries = 0;
        let mut names = saga.names.clone();
        // A step that got stuck before it began has no row.
        names.extend((saga.names.len() < saga.progress.steps.len()).then_some(name));
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        store::save(&self.db, &mut tx, &mut saga, &names, Lease::GiveBack).await?;
        self.publish(&mut tx, &saga, &events).await?;
        tx.commit().await?;
        if let Some(scheduler) = &self.scheduler {
            scheduler.outbox.wake();
            scheduler.woken.send_replace(());
        }
        Ok(())
    }

    /// Runs the definition's hook. Returns its events.
    async fn consult(
        &self,
        tx: &mut Tx<D>,
        saga: &mut Owned,
        step: &str,
        choice: Choice<'_>,
    ) -> Result<Vec<DomainEvent>, AdminError> {
        let Some(kind) = choice.kind() else { return Ok(Vec::new()) };
        let id = SagaId::clone(&saga.id);
        let flow = self.scheduler.as_ref().and_then(|scheduler| scheduler.flow(id.definition(), saga.version));
        let Some(flow) = flow else {
            let missing = saga.hooks & kind.flag() != 0;
            return if missing { Err(AdminError::NoDefinition { id, version: saga.version }) } else { Ok(Vec::new()) };
        };
        let about = About {
            id: saga.id.clone(),
            step: step.to_owned(),
            compensating: saga.progress.stuck.as_ref().is_some_and(|stuck| stuck.compensating),
            failure: saga.progress.failure.clone(),
            note: choice.note().map(storable),
        };
        let Some(hook) = flow.decide(kind, about, &saga.data, tx) else { return Ok(Vec::new()) };
        match hook.await {
            Ok(Called { data, events }) => {
                saga.data = data;
                Ok(events)
            }
            Err(CallError::Step(error)) => Err(AdminError::Refused { id, error }),
            Err(CallError::Misfit(reason)) if choice.note().is_some() => {
                tracing::warn!(saga = %id, reason, "resolving a saga without its hook");
                Ok(Vec::new())
            }
            Err(CallError::Misfit(reason)) => Err(AdminError::Refused { id, error: StepError::terminal(reason) }),
        }
    }

    async fn publish(&self, tx: &mut Tx<D>, saga: &Owned, events: &[DomainEvent]) -> Result<(), AdminError> {
        let Some(scheduler) = &self.scheduler else { return Ok(()) };
        for event in events {
            let appended = scheduler.outbox.append(tx, &saga.traced(event.clone())).await;
            appended.map_err(|error| match error {
                OutboxError::Db(error) => AdminError::Db(error),
                other => AdminError::Refused { id: SagaId::clone(&saga.id), error: StepError::terminal(other) },
            })?;
        }
        Ok(())
    }

    /// The name of the step at which a saga is stuck.
    fn step_name(&self, saga: &Owned) -> String {
        let told = saga.progress.stuck.as_ref().map(|stuck| stuck.step.clone());
        // A saga that could not be read may not tell.
        told.filter(|step| !step.is_empty()).or_else(|| self.rule_name(saga)).unwrap_or_default()
    }

    fn rule_name(&self, saga: &Owned) -> Option<String> {
        let flow = self.scheduler.as_ref()?.flow(saga.id.definition(), saga.version)?;
        Some(flow.rules().get(saga.progress.step)?.name.clone())
    }

    async fn close_unreadable(&self, mut tx: Tx<D>, key: &str, note: &str) -> Result<(), DbError> {
        let rows = self.db.fetch(&mut tx, "SELECT stuck FROM buttress_saga WHERE id = $1", args![key]).await?;
        let stuck = rows.first().and_then(|row| serde_json::from_str::<Stuck>(&D::text(row, 0).ok()?).ok());
        let mut stuck = stuck.unwrap_or_else(|| Stuck {
            step: String::new(),
            message: "cannot be read".to_owned(),
            compensating: false,
            note: None,
        });
        stuck.note = Some(storable(note));
        let sql = "UPDATE buttress_saga SET status = 'resolved', stuck = $1, updated_at = $2 WHERE id = $3";
        let stuck = store::text("stuck", &Some(stuck))?;
        self.db.execute(&mut tx, sql, args![stuck.as_deref(), self.db.now(), key]).await?;
        tracing::warn!(saga = key, "resolving a saga that cannot be read, without its hook");
        tx.commit().await
    }
}
