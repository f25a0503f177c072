//! Sent notifications, in SQL.

use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, Db, DbError, Outbox, Tx, args};
use uuid::Uuid;

use crate::bus;
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::events::{NotificationSent, publish};

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/notification/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
    outbox: Outbox<D>,
}

#[derive(Clone, Debug)]
pub struct Notification {
    pub kind: String,
    pub text: String,
    pub sent_ms: i64,
}

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        let db = db::open(home, "notification", MIGRATIONS).await?;
        Ok(Self { outbox: bus::outbox(&db), db })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub fn outbox(&self) -> &Outbox<D> {
        &self.outbox
    }

    /// Records a notification, once per order and kind.
    pub async fn send(&self, tx: &mut Tx<D>, order_id: &str, kind: &str, text: &str) -> Result<(), OutboxError> {
        let sql = "INSERT INTO notifications (id, order_id, kind, text, sent_ms) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (order_id, kind) DO NOTHING";
        let id = Uuid::now_v7().to_string();
        if tx.execute(sql, args![&id, order_id, kind, text, now_ms()]).await? == 1 {
            let (order_id, kind) = (order_id.to_owned(), kind.to_owned());
            publish(&self.outbox, tx, &NotificationSent { order_id, kind }).await?;
        }
        Ok(())
    }

    /// The notifications of an order, oldest first.
    pub async fn of_order(&self, order_id: &str) -> Result<Vec<Notification>, DbError> {
        let sql = "SELECT kind, text, sent_ms FROM notifications WHERE order_id = $1 ORDER BY id";
        let rows: Vec<(String, String, i64)> = self.db.rows(sql, args![order_id]).await?;
        Ok(rows.into_iter().map(|(kind, text, sent_ms)| Notification { kind, text, sent_ms }).collect())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Sqlite;

    use super::*;
    use crate::db::Files;

    #[tokio::test]
    async fn a_message_is_sent_once_per_order_and_kind_and_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store: Store<Sqlite> = Store::open(&Files(dir.path().to_owned())).await.unwrap();
        let messages =
            [("o1", "b", "first"), ("o1", "a", "second"), ("o1", "b", "again"), ("o2", "b", "another order")];
        for (order, kind, text) in messages {
            let mut tx = store.db.begin().await.unwrap();
            store.send(&mut tx, order, kind, text).await.unwrap();
            tx.commit().await.unwrap();
        }
        let sent = store.of_order("o1").await.unwrap();
        let sent: Vec<_> = sent.iter().map(|message| (message.kind.as_str(), message.text.as_str())).collect();
        assert_eq!(sent, [("b", "first"), ("a", "second")]);
        assert_eq!(store.outbox.backlog().await.unwrap().unsent, 3, "an event for each that was sent");
    }
}
