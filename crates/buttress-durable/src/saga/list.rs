//! Reads sagas as an operator sees them, also those that nothing else can read.

use super::claim::{is_unreadable, unreadable};
use super::id::SagaId;
use super::state::{Status, Stuck};
use super::store;
use super::view::{Filter, SagaView};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};

/// Selects the keys and ids of a page. `$1` is a status; `$2` definition and `$3` step, or empty;
/// `$4` and
/// `$5` patterns for the JSON of reasons, and `$6` for a step's error, or empty; `$7` a moment;
/// `$8` and `$9` the last id of the previous page.
macro_rules! page {
    ($status:literal, $after:literal, $order:literal) => {
        concat!(
            "SELECT id, definition, COALESCE(own_id, id) FROM buttress_saga WHERE ",
            $status,
            " AND ($2 = '' OR definition = $2)
              AND ($3 = '' OR stuck LIKE $4 ESCAPE '\\' OR EXISTS (SELECT 1 FROM buttress_saga_step AS at
                      WHERE at.saga_id = buttress_saga.id AND at.step = buttress_saga.step AND at.name = $3))
              AND ($6 = '' OR LOWER(stuck) LIKE LOWER($5) ESCAPE '\\' OR LOWER(failure) LIKE LOWER($5) ESCAPE '\\'
                  OR EXISTS (SELECT 1 FROM buttress_saga_step AS at WHERE at.saga_id = buttress_saga.id
                      AND at.step = buttress_saga.step AND LOWER(at.error) LIKE LOWER($6) ESCAPE '\\'))
              AND updated_at < $7 AND ",
            $after,
            " ORDER BY ",
            $order,
            " LIMIT $10"
        )
    };
}

// A condition on the status in a statement of its own, so that the index on it can be used.
const BY_STATUS: [&str; 2] = [
    page!("status = $1", "(COALESCE(own_id, id), definition) > ($8, $9)", "COALESCE(own_id, id), definition"),
    page!(
        "status = $1",
        "($9 = '' OR (COALESCE(own_id, id), definition) < ($8, $9))",
        "COALESCE(own_id, id) DESC, definition DESC"
    ),
];
const ALL: [&str; 2] = [
    page!("$1 = ''", "(COALESCE(own_id, id), definition) > ($8, $9)", "COALESCE(own_id, id), definition"),
    page!(
        "$1 = ''",
        "($9 = '' OR (COALESCE(own_id, id), definition) < ($8, $9))",
        "COALESCE(own_id, id) DESC, definition DESC"
    ),
];

/// Returns the keys and ids of a page.
pub(super) async fn page<D: Database>(db: &Db<D>, filter: &Filter) -> Result<Vec<(String, SagaId)>, DbError> {
    let Filter { status, definition, step, error, updated_before, after, descending, limit } = filter;
    let status = status.map_or("", Status::as_str);
    let sql = if status.is_empty() { ALL } else { BY_STATUS }[usize::from(*descending)];
    let step = step.as_deref().unwrap_or_default();
    let error = error.as_deref().unwrap_or_default();
    let rows = db
        .read(
            sql,
            args![
                status,
                definition.as_deref().unwrap_or_default(),
                step,
                &format!("%\"step\":\"{}\"%", escaped(step)),
                &format!("%\"message\":\"%{}%", escaped(&in_json(error))),
                &if error.is_empty() { String::new() } else { format!("%{}%", escaped(error)) },
                updated_before.map_or(i64::MAX, Timestamp::as_millis),
                after.as_ref().map_or("", |after| after.id()),
                after.as_ref().map_or("", |after| after.definition()),
                i64::from(*limit),
            ],
        )
        .await?;
    rows.iter().map(|row| Ok((D::text(row, 0)?, SagaId::new(D::text(row, 1)?, D::text(row, 2)?)))).collect()
}

/// Escapes the wildcards of LIKE.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// The text as it is inside a JSON string.
fn in_json(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}

/// Reads a saga. One that cannot be read is shown with the reason, and without its steps.
pub(super) async fn show<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    key: &str,
) -> Result<Option<SagaView>, DbError> {
    match store::load(db, conn, key).await {
        Ok(saga) => Ok(saga.map(SagaView::from)),
        Err(error) if is_unreadable(&error) => show_unreadable(db, conn, key, &error).await,
        Err(error) => Err(error),
    }
}

async fn show_unreadable<D: Database>(
    db: &Db<D>,
    conn: &mut D::Connection,
    key: &str,
    error: &DbError,
) -> Result<Option<SagaView>, DbError> {
    let sql = "SELECT definition, COALESCE(own_id, id), version, status, stuck, data, wake_at, created_at, updated_at
               FROM buttress_saga WHERE id = $1";
    let rows = db.fetch(conn, sql, args![key]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |column| D::text(row, column).unwrap_or_default();
    let moment = |column| Timestamp::from_millis(D::int(row, column).unwrap_or_default());
    let status = Status::parse(&text(3)).unwrap_or(Status::Stuck);
    let stuck: Option<Stuck> = serde_json::from_str(&text(4)).ok();
    Ok(Some(SagaView {
        id: text(1),
        definition: text(0),
        version: store::version(D::int(row, 2).unwrap_or_default()).into(),
        status,
        failure: None,
        stuck: stuck.or_else(|| Some(unreadable(error, String::new(), status == Status::Compensating))),
        steps: Vec::new(),
        data: text(5),
        wake_at: moment(6),
        created_at: moment(7),
        updated_at: moment(8),
    }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_text_is_searched_for_as_it_is_written() {
        assert_eq!(super::escaped(r"100 %_\"), r"100 \%\_\\");
        assert_eq!(super::in_json(r#"a "b" \"#), r#"a \"b\" \\"#);
    }
}
