use std::path::Path;

use mesh::bus::Bus;
use mesh::db::{Databases, Files};
use mesh::demo::books::{self, Acknowledged, Books};
use mesh::mesh::Exit;
use serde_json::json;

use crate::support::{Shop, tea};

async fn audit(dir: &Path, acknowledged: &Acknowledged) -> Books {
    books::audit(&Databases::Files(Files(dir.to_owned())), &Bus::Log, acknowledged).await.unwrap()
}

async fn cook(dir: &Path, database: &str, sql: &'static str) {
    let file = dir.join(format!("{database}.db"));
    let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    let cooked = sqlx::query(sql).execute(&db).await.unwrap();
    assert_eq!(cooked.rows_affected(), 1, "{sql}");
    db.close().await;
}

#[tokio::test]
async fn the_audit_finds_cooked_books() {
    let shop = Shop::open().await;
    shop.customer.place(&tea()).await;
    let broke = json!({ "customer": "pip", "items": [{ "sku": "kettle", "quantity": 1 }] });
    shop.customer.place(&broke).await;
    shop.settled_books().await;
    let Shop { mesh, dir, .. } = shop;
    assert!(mesh.stop().await.iter().all(|(_, exit)| matches!(exit, Exit::Finished)));
    let books = audit(dir.path(), &Acknowledged::default()).await;
    assert!(books.right, "{books}");

    let crimes = [
        ("payment", "every account adds up", "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE id = 'bob'"),
        (
            "payment",
            "no customer was charged twice",
            "INSERT INTO ledger SELECT 'again', key, order_id, customer, amount_cents, at_ms FROM ledger",
        ),
        ("payment", "the shop has earned what it has sold", "UPDATE ledger SET amount_cents = 1"),
        (
            "inventory",
            "every piece is on hand, reserved or sold",
            "UPDATE products SET on_hand = on_hand - 1 WHERE sku = 'mug'",
        ),
        (
            "inventory",
            "every piece is on hand, reserved or sold",
            "UPDATE products SET on_hand = on_hand - 1, reserved = 1 WHERE sku = 'mug'",
        ),
        (
            "inventory",
            "what was sold is what was confirmed",
            "UPDATE products SET on_hand = on_hand - 1, sold = sold + 1 WHERE sku = 'mug'",
        ),
        (
            "order",
            "every order is confirmed or cancelled",
            "UPDATE orders SET state = 'pending' WHERE state = 'cancelled'",
        ),
        (
            "order",
            "every order's payments are its total, or nothing",
            "UPDATE orders SET state = 'cancelled' WHERE state = 'confirmed'",
        ),
        (
            "order",
            "every saga has ended, and none is stuck",
            "UPDATE buttress_saga SET status = 'stuck' WHERE status = 'completed'",
        ),
        ("order", "every saga has ended, and none is stuck", "DELETE FROM buttress_saga WHERE status = 'completed'"),
        ("shipping", "every confirmed order has one parcel, and no other", "DELETE FROM shipments"),
        (
            "shipping",
            "every confirmed order has one parcel, and no other",
            "INSERT INTO shipments (id, order_id, customer, created_ms) VALUES ('again', 'nobody', 'alice', 0)",
        ),
        (
            "notification",
            "customers were told everything, once",
            "DELETE FROM notifications WHERE kind = 'order_confirmed'",
        ),
        ("payment", "every event has left its outbox", "UPDATE buttress_outbox SET sent_at = NULL WHERE seq = 1"),
        (
            "inventory",
            "every event has reached all its consumers",
            "DELETE FROM buttress_inbox WHERE event_id = (SELECT MIN(event_id) FROM buttress_inbox)",
        ),
        (
            "events",
            "no event is a dead letter",
            "INSERT INTO buttress_log (topic, part, position, dedup, payload, published_at)
             VALUES ('dead.shipping.OrderConfirmed', 0, 0, 'x', '{}', 0)",
        ),
    ];
    for (service, found, crime) in crimes {
        let scene = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), scene.path().join(file.file_name())).unwrap();
        }
        cook(scene.path(), service, crime).await;
        let books = audit(scene.path(), &Acknowledged::default()).await;
        assert!(!books.right, "{crime}");
        let check = books.checks.iter().find(|check| check.what == found).unwrap();
        assert!(!check.right && !check.detail.is_empty(), "{crime}\n{books}");
    }
}

/// Runs `mesh audit`. Returns its exit code, and what it prints.
async fn audited(dir: &Path) -> (i32, String) {
    let dir = dir.to_owned();
    let audit = move || {
        std::process::Command::new(env!("CARGO_BIN_EXE_mesh")).arg("audit").arg("--data-dir").arg(dir).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(audit).await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn the_command_fails_if_the_books_are_wrong_or_cannot_be_read() {
    let shop = Shop::open().await;
    shop.customer.place(&tea()).await;
    shop.settled_books().await;
    let Shop { mesh, dir, .. } = shop;
    mesh.stop().await;
    let (code, printed) = audited(dir.path()).await;
    assert!(code == 0 && printed.contains("1 confirmed, 0 cancelled, 15.80 earned"), "{printed}");
    let sent = "UPDATE buttress_outbox SET sent_at = NULL WHERE seq = 1";
    cook(dir.path(), "payment", sent).await;
    let (code, printed) = audited(dir.path()).await;
    assert!(code == 3 && printed.contains("not settled, audit again later: 1 events in an outbox"), "{printed}");
    cook(dir.path(), "payment", "UPDATE buttress_outbox SET sent_at = 1 WHERE seq = 1").await;
    cook(dir.path(), "payment", "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE id = 'bob'").await;
    let (code, printed) = audited(dir.path()).await;
    assert!(code == 1 && printed.contains("WRONG  every account adds up: bob"), "{printed}");
    let nowhere = dir.path().join("nowhere");
    assert_eq!(audited(&nowhere).await.0, 1);
    assert!(!nowhere.exists(), "an audit creates nothing");
}

#[tokio::test]
async fn a_promise_without_an_order_is_found() {
    let shop = Shop::open().await;
    let never = vec!["never-placed".to_owned()];
    for acknowledged in [
        Acknowledged { confirmed: never.clone(), ..Acknowledged::default() },
        Acknowledged { cancelled: never, ..Acknowledged::default() },
    ] {
        assert!(!audit(shop.dir.path(), &acknowledged).await.right, "{acknowledged:?}");
    }
}
