//! Do stock and money add up?
//!
//! The audit reads the three databases directly and trusts no service, no answer and no counter. It compares what the
//! order service believes with what payment and inventory have done.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::db;

#[derive(Clone, Debug, Serialize)]
pub struct Books {
    /// All checks passed.
    pub right: bool,
    pub confirmed: usize,
    pub cancelled: usize,
    pub revenue_cents: i64,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub what: &'static str,
    pub right: bool,
    /// The first of what is wrong, and how much more there is.
    pub detail: String,
}

/// Waits until no order is under way.
pub(super) async fn settled(data_dir: &Path) -> Result<(), sqlx::Error> {
    let orders = db::open_read_only(&data_dir.join("order.db")).await?;
    loop {
        let (open,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM orders WHERE state NOT IN ('confirmed', 'cancelled')")
                .fetch_one(&orders)
                .await?;
        if open == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Audits the databases in `data_dir`. `told_confirmed`: the orders that customers believe they have.
pub async fn audit(data_dir: &Path, told_confirmed: &[String]) -> Result<Books, sqlx::Error> {
    let facts = Facts::read(data_dir).await?;
    let checks = vec![
        check("every order is confirmed or cancelled", facts.unfinished()),
        check("customers have what they were told", facts.promises(told_confirmed)),
        check("every piece is on hand, reserved or sold", facts.pieces()),
        check("what was sold is what was confirmed", facts.sales()),
        check("every account adds up", facts.accounts()),
        check("every order's payments are its total, or nothing", facts.payments()),
        check("nobody was charged twice", facts.double_charges()),
        check("the shop has earned what it has sold", facts.revenue()),
    ];
    Ok(Books {
        right: checks.iter().all(|check| check.right),
        confirmed: facts.orders.values().filter(|order| order.state == "confirmed").count(),
        cancelled: facts.orders.values().filter(|order| order.state == "cancelled").count(),
        revenue_cents: facts.ledger.iter().map(|entry| entry.cents).sum(),
        checks,
    })
}

struct Order {
    state: String,
    total: i64,
}

struct Entry {
    order: String,
    customer: String,
    cents: i64,
}

/// sku, initial, on hand, reserved, sold
type Product = (String, i64, i64, i64, i64);

struct Facts {
    orders: HashMap<String, Order>,
    /// Pieces of each product on confirmed orders.
    ordered: HashMap<String, i64>,
    products: Vec<Product>,
    /// id, opening, balance
    accounts: Vec<(String, i64, i64)>,
    ledger: Vec<Entry>,
}

impl Facts {
    async fn read(data_dir: &Path) -> Result<Self, sqlx::Error> {
        let orders_db = db::open_read_only(&data_dir.join("order.db")).await?;
        let payment_db = db::open_read_only(&data_dir.join("payment.db")).await?;
        let inventory_db = db::open_read_only(&data_dir.join("inventory.db")).await?;
        let orders: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT id, state, total_cents FROM orders").fetch_all(&orders_db).await?;
        let ordered: Vec<(String, i64)> = sqlx::query_as(
            "SELECT sku, SUM(quantity) FROM order_lines JOIN orders ON orders.id = order_id
             WHERE state = 'confirmed' GROUP BY sku",
        )
        .fetch_all(&orders_db)
        .await?;
        let products = sqlx::query_as("SELECT sku, initial, on_hand, reserved, sold FROM products")
            .fetch_all(&inventory_db)
            .await?;
        let accounts =
            sqlx::query_as("SELECT id, opening_cents, balance_cents FROM accounts").fetch_all(&payment_db).await?;
        let ledger: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT order_id, customer, amount_cents FROM ledger").fetch_all(&payment_db).await?;
        Ok(Self {
            orders: orders.into_iter().map(|(id, state, total)| (id, Order { state, total })).collect(),
            ordered: ordered.into_iter().collect(),
            products,
            accounts,
            ledger: ledger.into_iter().map(|(order, customer, cents)| Entry { order, customer, cents }).collect(),
        })
    }

    fn confirmed(&self, id: &str) -> bool {
        self.orders.get(id).is_some_and(|order| order.state == "confirmed")
    }

    fn unfinished(&self) -> Vec<String> {
        let open = self.orders.iter().filter(|(_, order)| !matches!(order.state.as_str(), "confirmed" | "cancelled"));
        open.map(|(id, order)| format!("order {id} is {}", order.state)).collect()
    }

    fn promises(&self, told_confirmed: &[String]) -> Vec<String> {
        let broken = told_confirmed.iter().filter(|id| !self.confirmed(id));
        broken.map(|id| format!("order {id} was told confirmed and is not")).collect()
    }

    fn pieces(&self) -> Vec<String> {
        let all_settled = self.unfinished().is_empty();
        let wrong = self.products.iter().filter(|(_, initial, on_hand, reserved, sold)| {
            *initial != on_hand + reserved + sold || (all_settled && *reserved != 0)
        });
        wrong
            .map(|(sku, initial, on_hand, reserved, sold)| {
                format!("{sku}: {initial} at first, {on_hand} on hand, {reserved} reserved, {sold} sold")
            })
            .collect()
    }

    fn sales(&self) -> Vec<String> {
        let ordered = |sku: &String| self.ordered.get(sku).copied().unwrap_or(0);
        let wrong = self.products.iter().filter(|(sku, .., sold)| *sold != ordered(sku));
        wrong.map(|(sku, .., sold)| format!("{sku}: {sold} sold, {} on confirmed orders", ordered(sku))).collect()
    }

    fn accounts(&self) -> Vec<String> {
        let mut spent: HashMap<&str, i64> = HashMap::new();
        for entry in &self.ledger {
            *spent.entry(&entry.customer).or_default() += entry.cents;
        }
        let spent = |id: &str| spent.get(id).copied().unwrap_or(0);
        let wrong = self.accounts.iter().filter(|(id, opening, balance)| *opening != balance + spent(id));
        wrong
            .map(|(id, opening, balance)| format!("{id}: {opening} at first, {balance} now, {} spent", spent(id)))
            .collect()
    }

    fn payments(&self) -> Vec<String> {
        let mut paid: HashMap<&str, i64> = self.orders.keys().map(|id| (id.as_str(), 0)).collect();
        for entry in &self.ledger {
            *paid.entry(&entry.order).or_default() += entry.cents;
        }
        let due =
            |id: &str| self.orders.get(id).filter(|order| order.state == "confirmed").map_or(0, |order| order.total);
        let wrong = paid.into_iter().filter(|(id, cents)| *cents != due(id));
        wrong.map(|(id, cents)| format!("order {id}: {cents} paid, {} due", due(id))).collect()
    }

    fn double_charges(&self) -> Vec<String> {
        let mut charges: HashMap<&str, usize> = HashMap::new();
        for entry in self.ledger.iter().filter(|entry| entry.cents > 0) {
            *charges.entry(&entry.order).or_default() += 1;
        }
        let twice = charges.into_iter().filter(|(_, count)| *count > 1);
        twice.map(|(id, count)| format!("order {id} was charged {count} times")).collect()
    }

    fn revenue(&self) -> Vec<String> {
        let earned: i64 = self.ledger.iter().map(|entry| entry.cents).sum();
        let sold: i64 = self.orders.values().filter(|order| order.state == "confirmed").map(|order| order.total).sum();
        if earned == sold { Vec::new() } else { vec![format!("{earned} earned, {sold} sold")] }
    }
}

fn check(what: &'static str, mut wrong: Vec<String>) -> Check {
    wrong.sort();
    let detail = match wrong.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first}; and {} more", more.len()),
    };
    Check { what, right: wrong.is_empty(), detail }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, cents) = (self.revenue_cents / 100, (self.revenue_cents % 100).abs());
        writeln!(f, "books: {} confirmed, {} cancelled, {whole}.{cents:02} earned", self.confirmed, self.cancelled)?;
        for check in &self.checks {
            let mark = if check.right { "right" } else { "WRONG" };
            writeln!(f, "  {mark}  {}{}{}", check.what, if check.right { "" } else { ": " }, check.detail)?;
        }
        writeln!(f, "{}", if self.right { "the books are right" } else { "THE BOOKS ARE WRONG" })
    }
}
