//! Stock, in SQL.
//!
//! Every piece is counted in exactly one of `on_hand`, `reserved` and `sold`, and their sum never
//! changes. The three rules of the payment store apply: the key is the decision, the release of an
//! unknown key is recorded, and stock moves only on a change of state. So an order's stock may be
//! released by the saga's compensation or by the event that follows it, any number of times.

use buttress_durable::outbox::OutboxError;
use buttress_durable::{Database, Db, DbError, Outbox, Tx, args};

use super::domain::{Line, Product, ReserveOutcome, Shipped};
use crate::bus;
use crate::clock::now_ms;
use crate::db::{self, Home, MigrationFile};
use crate::events::{self, InventoryRejected, InventoryReleased, InventoryReserved, InventoryShipped, publish};
use crate::page::Page;

const MIGRATIONS: &[MigrationFile] = &[(1, "init", include_str!("../../migrations/inventory/0001_init.sql"))];

#[derive(Debug)]
pub struct Store<D: Database> {
    db: Db<D>,
    outbox: Outbox<D>,
}

const PUT_BACK: &str = "UPDATE products SET reserved = reserved - $1, on_hand = on_hand + $1 WHERE sku = $2";
const SELL: &str = "UPDATE products SET reserved = reserved - $1, sold = sold + $1 WHERE sku = $2";

impl<D: Database> Store<D> {
    pub async fn open<H: Home<Database = D>>(home: &H) -> Result<Self, DbError> {
        let db = db::open(home, "inventory", MIGRATIONS).await?;
        Ok(Self { outbox: bus::outbox(&db), db })
    }

    pub fn db(&self) -> &Db<D> {
        &self.db
    }

    pub fn outbox(&self) -> &Outbox<D> {
        &self.outbox
    }

    /// One page of the products, ordered by SKU, and one more if there is another page.
    pub async fn page(&self, page: &Page) -> Result<Vec<Product>, DbError> {
        let sql = "SELECT sku, name, price_cents, on_hand FROM products WHERE sku > $1 ORDER BY sku LIMIT $2";
        // Every SKU is greater than the empty text.
        let rows = self.db.rows(sql, args![page.after().unwrap_or_default(), page.rows()]).await?;
        Ok(rows.into_iter().map(product).collect())
    }

    /// Returns the products with these SKUs.
    pub async fn products(&self, skus: &[String]) -> Result<Vec<Product>, DbError> {
        // One lookup by primary key per line of an order. There are few, and a dynamic IN list is
        // avoided.
        let sql = "SELECT sku, name, price_cents, on_hand FROM products WHERE sku = $1";
        let mut found = Vec::new();
        for sku in skus {
            found.extend(self.db.row(sql, args![sku]).await?.map(product));
        }
        Ok(found)
    }

    /// Reserves all lines or none, once per key.
    pub async fn reserve(&self, key: &str, order_id: &str, lines: &[Line]) -> Result<ReserveOutcome, OutboxError> {
        // Products are always locked in the same order, so that two reservations cannot deadlock.
        let mut lines = lines.to_vec();
        lines.sort_by(|one, other| one.sku.cmp(&other.sku));
        let mut tx = self.db.begin().await?;
        if !claim(&mut tx, key, order_id, "reserved").await? {
            return Ok(decided(tx, key).await?);
        }
        for Line { sku, quantity } in &lines {
            let sql = "UPDATE products SET on_hand = on_hand - $1, reserved = reserved + $1
                       WHERE sku = $2 AND on_hand >= $1";
            if tx.execute(sql, args![*quantity, sku]).await? == 0 {
                // Undoes the lines before this one, and stores the refusal: a retry must get the
                // same answer.
                tx.rollback().await?;
                return self.refuse(key, order_id).await;
            }
            let sql = "INSERT INTO reservation_lines (key, sku, quantity) VALUES ($1, $2, $3)";
            tx.execute(sql, args![key, sku, *quantity]).await?;
        }
        let lines = lines.into_iter().map(|Line { sku, quantity }| events::Line { sku, quantity }).collect();
        publish(&self.outbox, &mut tx, &InventoryReserved { order_id: order_id.to_owned(), lines }).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(ReserveOutcome::Reserved)
    }

    /// Releases the stock, once per key. A key that does not exist yet is recorded as revoked.
    pub async fn release(&self, key: &str, order_id: &str) -> Result<(), OutboxError> {
        let mut tx = self.db.begin().await?;
        // If the key did not exist, the tombstone is the only effect: there is nothing to release.
        if !claim(&mut tx, key, order_id, "revoked").await? {
            self.put_back(&mut tx, order_id).await?;
        }
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }

    /// Releases an order's reserved stock, if it has any.
    pub async fn put_back(&self, tx: &mut Tx<D>, order_id: &str) -> Result<(), OutboxError> {
        if let Some(key) = change(tx, order_id, "released").await? {
            shift(tx, &key, PUT_BACK).await?;
            publish(&self.outbox, tx, &InventoryReleased { order_id: order_id.to_owned() }).await?;
        }
        Ok(())
    }

    /// Marks the reserved stock of a confirmed order as sold.
    pub async fn ship(&self, tx: &mut Tx<D>, order_id: &str) -> Result<Shipped, OutboxError> {
        if let Some(key) = change(tx, order_id, "sold").await? {
            shift(tx, &key, SELL).await?;
            publish(&self.outbox, tx, &InventoryShipped { order_id: order_id.to_owned() }).await?;
            return Ok(Shipped::Now);
        }
        let sql = "SELECT key FROM reservations WHERE order_id = $1 AND state = 'sold'";
        let before: Option<(String,)> = tx.row(sql, args![order_id]).await?;
        Ok(if before.is_some() { Shipped::Before } else { Shipped::NothingReserved })
    }

    /// The state of an order's reservation.
    pub async fn reservation(&self, order_id: &str) -> Result<Option<String>, DbError> {
        let sql = "SELECT state FROM reservations WHERE order_id = $1 ORDER BY created_ms DESC LIMIT 1";
        Ok(self.db.row::<(String,)>(sql, args![order_id]).await?.map(|(state,)| state))
    }

    /// Records that a reservation was refused, unless the key has been decided meanwhile.
    async fn refuse(&self, key: &str, order_id: &str) -> Result<ReserveOutcome, OutboxError> {
        let mut tx = self.db.begin().await?;
        if !claim(&mut tx, key, order_id, "out_of_stock").await? {
            return Ok(decided(tx, key).await?);
        }
        publish(&self.outbox, &mut tx, &InventoryRejected { order_id: order_id.to_owned() }).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(ReserveOutcome::OutOfStock)
    }
}

fn product((sku, name, price_cents, on_hand): (String, String, i64, i64)) -> Product {
    Product { sku, name, price_cents, on_hand }
}

/// Inserts the key with a first decision. Returns false if the key was decided before.
async fn claim<D: Database>(tx: &mut Tx<D>, key: &str, order_id: &str, state: &str) -> Result<bool, DbError> {
    let sql = "INSERT INTO reservations (key, order_id, state, created_ms, updated_ms)
               VALUES ($1, $2, $3, $4, $4) ON CONFLICT (key) DO NOTHING";
    Ok(tx.execute(sql, args![key, order_id, state, now_ms()]).await? == 1)
}

/// Changes the state of an order's active reservation and returns its key. `None` if there is none.
async fn change<D: Database>(tx: &mut Tx<D>, order_id: &str, to: &str) -> Result<Option<String>, DbError> {
    let sql = "UPDATE reservations SET state = $1, updated_ms = $2 WHERE order_id = $3 AND state = 'reserved'
               RETURNING key";
    Ok(tx.row::<(String,)>(sql, args![to, now_ms(), order_id]).await?.map(|(key,)| key))
}

/// Moves the stock of every line of a reservation.
async fn shift<D: Database>(tx: &mut Tx<D>, key: &str, movement: &'static str) -> Result<(), DbError> {
    let sql = "SELECT sku, quantity FROM reservation_lines WHERE key = $1 ORDER BY sku";
    for (sku, quantity) in tx.rows::<(String, i64)>(sql, args![key]).await? {
        tx.execute(movement, args![quantity, &sku]).await?;
    }
    Ok(())
}

/// The outcome that the first attempt with this key had.
async fn decided<D: Database>(mut tx: Tx<D>, key: &str) -> Result<ReserveOutcome, DbError> {
    let state: Option<(String,)> = tx.row("SELECT state FROM reservations WHERE key = $1", args![key]).await?;
    tx.rollback().await?;
    Ok(match state.as_ref().map(|(state,)| state.as_str()) {
        Some("reserved" | "sold") => ReserveOutcome::Reserved,
        Some("out_of_stock") => ReserveOutcome::OutOfStock,
        _ => ReserveOutcome::Revoked,
    })
}

#[cfg(test)]
mod tests {
    use sqlx::Sqlite;

    use super::*;
    use crate::db::Files;

    async fn store() -> (Store<Sqlite>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(&Files(dir.path().to_owned())).await.unwrap(), dir)
    }

    fn line(sku: &str, quantity: i64) -> Line {
        Line { sku: sku.into(), quantity }
    }

    async fn ship(store: &Store<Sqlite>) -> Shipped {
        let mut tx = store.db.begin().await.unwrap();
        let shipped = store.ship(&mut tx, "o1").await.unwrap();
        tx.commit().await.unwrap();
        shipped
    }

    /// On hand, reserved, sold.
    async fn shelf(store: &Store<Sqlite>, sku: &str) -> (i64, i64, i64) {
        let sql = "SELECT on_hand, reserved, sold FROM products WHERE sku = $1";
        store.db.row(sql, args![sku]).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_repeated_reservation_takes_the_pieces_once() {
        let (store, _dir) = store().await;
        for _ in 0..3 {
            let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2), line("mug", 1)]).await.unwrap();
            assert_eq!(outcome, ReserveOutcome::Reserved);
        }
        assert_eq!(shelf(&store, "tea").await, (999_998, 2, 0));
        assert_eq!(shelf(&store, "mug").await, (999_999, 1, 0));
        assert_eq!(store.outbox.backlog().await.unwrap().unsent, 1, "and publishes one event");
    }

    #[tokio::test]
    async fn a_refused_line_leaves_the_other_lines_on_the_shelf() {
        let (store, _dir) = store().await;
        for _ in 0..2 {
            let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2), line("lamp", 1)]).await.unwrap();
            assert_eq!(outcome, ReserveOutcome::OutOfStock);
        }
        assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
    }

    #[tokio::test]
    async fn what_is_released_goes_back_once() {
        let (store, _dir) = store().await;
        store.reserve("o1:reserve", "o1", &[line("tea", 2)]).await.unwrap();
        for _ in 0..2 {
            store.release("o1:reserve", "o1").await.unwrap();
            assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
        }
        assert_eq!(ship(&store).await, Shipped::NothingReserved);
    }

    #[tokio::test]
    async fn what_is_shipped_has_left_once_and_does_not_come_back() {
        let (store, _dir) = store().await;
        store.reserve("o1:reserve", "o1", &[line("tea", 2), line("mug", 1)]).await.unwrap();
        assert_eq!(ship(&store).await, Shipped::Now);
        assert_eq!(ship(&store).await, Shipped::Before);
        store.release("o1:reserve", "o1").await.unwrap();
        assert_eq!(shelf(&store, "tea").await, (999_998, 0, 2));
        assert_eq!(store.reservation("o1").await.unwrap().as_deref(), Some("sold"));
    }

    #[tokio::test]
    async fn a_reservation_that_comes_after_its_release_takes_nothing() {
        let (store, _dir) = store().await;
        store.release("o1:reserve", "o1").await.unwrap();
        let outcome = store.reserve("o1:reserve", "o1", &[line("tea", 2)]).await.unwrap();
        assert_eq!(outcome, ReserveOutcome::Revoked);
        assert_eq!(shelf(&store, "tea").await, (1_000_000, 0, 0));
    }

    #[tokio::test]
    async fn products_are_found_by_sku() {
        let (store, _dir) = store().await;
        let found = store.products(&["tea".into(), "unobtainium".into()]).await.unwrap();
        assert_eq!(found.iter().map(|product| product.sku.as_str()).collect::<Vec<_>>(), ["tea"]);
    }

    #[tokio::test]
    async fn the_last_piece_can_be_reserved_and_no_more() {
        let (store, _dir) = store().await;
        let all = store.reserve("o1:reserve", "o1", &[line("tea", 1_000_000)]).await.unwrap();
        let more = store.reserve("o2:reserve", "o2", &[line("mug", 1), line("tea", 1)]).await.unwrap();
        assert_eq!((all, more), (ReserveOutcome::Reserved, ReserveOutcome::OutOfStock));
        assert_eq!(shelf(&store, "tea").await, (0, 1_000_000, 0));
        assert_eq!(shelf(&store, "mug").await, (1_000_000, 0, 0));
        // There would be enough now, but the refusal stands.
        store.release("o1:reserve", "o1").await.unwrap();
        let again = store.reserve("o2:reserve", "o2", &[line("mug", 1), line("tea", 1)]).await.unwrap();
        assert_eq!(again, ReserveOutcome::OutOfStock);
        assert_eq!(store.reservation("o1").await.unwrap().as_deref(), Some("released"));
        assert_eq!(store.reservation("o2").await.unwrap().as_deref(), Some("out_of_stock"));
        assert_eq!(store.reservation("o3").await.unwrap(), None);
    }

    #[tokio::test]
    async fn orders_do_not_touch_each_others_pieces() {
        let (store, _dir) = store().await;
        for (key, order, quantity) in [("k1", "o1", 2), ("k2", "o2", 30)] {
            store.reserve(key, order, &[line("tea", quantity), line("mug", 1)]).await.unwrap();
        }
        assert_eq!(ship(&store).await, Shipped::Now);
        assert_eq!(shelf(&store, "tea").await, (999_968, 30, 2));
        assert_eq!(shelf(&store, "mug").await, (999_998, 1, 1));
        let mut tx = store.db.begin().await.unwrap();
        store.put_back(&mut tx, "o2").await.unwrap();
        store.put_back(&mut tx, "o2").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(shelf(&store, "tea").await, (999_998, 0, 2));
    }

    #[tokio::test]
    async fn every_movement_is_published_once() {
        let (store, _dir) = store().await;
        let events = async || {
            let sql = "SELECT payload FROM buttress_outbox ORDER BY seq";
            let rows: Vec<(Vec<u8>,)> = store.db.rows(sql, args![]).await.unwrap();
            let event = |(json,): &(Vec<u8>,)| serde_json::from_slice::<buttress_durable::DomainEvent>(json).unwrap();
            let told = |event: buttress_durable::DomainEvent| (event.topic().to_owned(), event.key().to_owned());
            rows.iter().map(event).map(told).collect::<Vec<_>>()
        };
        for _ in 0..2 {
            store.reserve("k1", "o1", &[line("tea", 1)]).await.unwrap();
            ship(&store).await;
            store.reserve("k2", "o2", &[line("tea", 1)]).await.unwrap();
            store.release("k2", "o2").await.unwrap();
            store.reserve("k3", "o3", &[line("lamp", 1)]).await.unwrap();
            store.release("k4", "o4").await.unwrap();
        }
        let expected = [
            ("InventoryReserved", "o1"),
            ("InventoryShipped", "o1"),
            ("InventoryReserved", "o2"),
            ("InventoryReleased", "o2"),
            ("InventoryRejected", "o3"),
        ];
        assert_eq!(events().await, expected.map(|(kind, order)| (kind.to_owned(), order.to_owned())));
    }

    #[tokio::test]
    async fn the_catalogue_shows_price_and_stock_page_by_page() {
        let (store, _dir) = store().await;
        store.reserve("k1", "o1", &[line("mug", 3)]).await.unwrap();
        let shown = |product: Product| (product.sku, product.name, product.price_cents, product.on_hand);
        let mug = ("mug".to_owned(), "Stoneware mug".to_owned(), 1450, 999_997);
        assert_eq!(store.products(&["mug".into()]).await.unwrap().into_iter().map(shown).collect::<Vec<_>>(), [mug]);
        let mut skus = Vec::new();
        let mut after = None;
        loop {
            let page = Page::new(2, after).unwrap();
            let (products, next) = page.cut(store.page(&page).await.unwrap(), |product| product.sku.clone());
            skus.push(products.into_iter().map(|product| product.sku).collect::<Vec<_>>());
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(skus, [vec!["honey", "kettle"], vec!["lamp", "mug"], vec!["tea"]]);
    }
}
