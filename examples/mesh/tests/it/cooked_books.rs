use std::path::Path;

use mesh::demo::books;
use mesh::mesh::{Exit, Name};
use serde_json::json;

use crate::support::{Shop, tea};

async fn cook(dir: &Path, service: Name, sql: &'static str) {
    let file = dir.join(format!("{}.db", service.as_str()));
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
    let books = books::audit(dir.path(), &[]).await.unwrap();
    assert!(books.right, "{books}");

    let crimes = [
        (
            Name::Payment,
            "every account adds up",
            "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE id = 'bob'",
        ),
        (
            Name::Payment,
            "nobody was charged twice",
            "INSERT INTO ledger SELECT 'again', key, order_id, customer, amount_cents, at_ms FROM ledger",
        ),
        (Name::Payment, "the shop has earned what it has sold", "UPDATE ledger SET amount_cents = 1"),
        (
            Name::Inventory,
            "every piece is on hand, reserved or sold",
            "UPDATE products SET on_hand = on_hand - 1 WHERE sku = 'mug'",
        ),
        (
            Name::Inventory,
            "every piece is on hand, reserved or sold",
            "UPDATE products SET on_hand = on_hand - 1, reserved = 1 WHERE sku = 'mug'",
        ),
        (
            Name::Inventory,
            "what was sold is what was confirmed",
            "UPDATE products SET on_hand = on_hand - 1, sold = sold + 1 WHERE sku = 'mug'",
        ),
        (
            Name::Order,
            "every order is confirmed or cancelled",
            "UPDATE orders SET state = 'charged' WHERE state = 'cancelled'",
        ),
        (
            Name::Order,
            "every order's payments are its total, or nothing",
            "UPDATE orders SET state = 'cancelled' WHERE state = 'confirmed'",
        ),
    ];
    for (service, found, crime) in crimes {
        let scene = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), scene.path().join(file.file_name())).unwrap();
        }
        cook(scene.path(), service, crime).await;
        let books = books::audit(scene.path(), &[]).await.unwrap();
        assert!(!books.right, "{crime}");
        let check = books.checks.iter().find(|check| check.what == found).unwrap();
        assert!(!check.right && !check.detail.is_empty(), "{crime}\n{books}");
    }
}

#[tokio::test]
async fn a_promise_without_an_order_is_found() {
    let shop = Shop::open().await;
    let books = books::audit(shop.dir.path(), &["never-placed".to_owned()]).await.unwrap();
    assert!(!books.right);
}
