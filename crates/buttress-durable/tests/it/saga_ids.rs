//! Ids belong to their definition, and rows from before they did go on with the keys they had.

use std::sync::{Arc, Mutex};

use buttress_durable::db::Arg;
use buttress_durable::saga::{Call, Coordinator, Definition, Filter, SagaId, Starter, Status, Step};
use buttress_durable::{Db, Outbox, args};
use sqlx::Sqlite;

use crate::support::{Backend, close, execute, ints, on_both};

on_both!(
    two_definitions_may_have_sagas_with_the_same_id,
    a_row_from_before_keeps_its_id_and_its_keys,
    a_process_from_before_neither_runs_nor_doubles_a_new_saga,
);

struct Noted<D: Backend> {
    db: Db<D>,
    coordinator: Coordinator<D>,
    order: Starter<D, i64>,
    returns: Starter<D, i64>,
    keys: Arc<Mutex<Vec<String>>>,
}

/// Two definitions with a step of the same name, which notes its keys.
fn noted<D: Backend>(db: Db<D>) -> Noted<D> {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let definition = |name: &str| {
        let keys = keys.clone();
        let pay = move |call: Call<i64>| {
            keys.lock().unwrap().push(format!("{} of {}", call.key(), call.saga_id()));
            async { Ok(call.done()) }
        };
        Definition::new(name, 1, [Step::new("pay", pay)]).unwrap()
    };
    let mut builder = Coordinator::builder(db.clone(), Outbox::new(db.clone())).concurrency(1);
    let order = builder.register(definition("order")).unwrap();
    let returns = builder.register(definition("return")).unwrap();
    Noted { db, coordinator: builder.build(), order, returns, keys }
}

impl<D: Backend> Noted<D> {
    async fn start(&self, starter: &Starter<D, i64>, id: &str) -> bool {
        let mut tx = self.db.begin().await.unwrap();
        let new = starter.start(&mut tx, id, &7, None).await.unwrap();
        tx.commit().await.unwrap();
        new
    }

    async fn status(&self, id: &SagaId) -> Status {
        self.coordinator.admin().get(id).await.unwrap().unwrap().status
    }

    fn keys(&self) -> Vec<String> {
        let mut keys = self.keys.lock().unwrap().clone();
        keys.sort();
        keys
    }
}

/// As the version before wrote it.
const OLD: &str = "INSERT INTO buttress_saga (id, definition, version, status, step, data, wake_at, recoveries,
                       generation, expires_at, created_at, updated_at)
                   VALUES ('7', 'order', 1, 'running', 0, '7', 0, 0, 0, 0, 0, 0)";

async fn two_definitions_may_have_sagas_with_the_same_id<D: Backend>() {
    let home = D::create().await;
    let noted = noted(D::connect(&home).await);
    assert!(noted.start(&noted.order, "7").await);
    assert!(noted.start(&noted.returns, "7").await, "another definition");
    assert!(!noted.start(&noted.order, "7").await, "the same one");
    assert_eq!(noted.coordinator.run_due().await.unwrap(), 2);
    assert_eq!(noted.keys(), ["order:7:pay of 7", "return:7:pay of 7"], "each with keys of its own");
    for id in [noted.order.id("7"), noted.returns.id("7")] {
        assert_eq!(noted.status(&id).await, Status::Completed, "{id}");
    }
    let only = Filter { definition: Some("return".to_owned()), ..Filter::default() };
    let listed = noted.coordinator.admin().list(&only).await.unwrap();
    assert_eq!(listed.iter().map(|saga| saga.saga_id().to_string()).collect::<Vec<_>>(), ["return:7"]);
    let page = Filter { after: Some(noted.order.id("7")), ..Filter::default() };
    assert_eq!(noted.coordinator.admin().list(&page).await.unwrap().len(), 1, "pages go on between equal ids");
    close(noted.db).await;
    D::destroy(home).await;
}

async fn a_row_from_before_keeps_its_id_and_its_keys<D: Backend>() {
    let home = D::create().await;
    let noted = noted(D::connect(&home).await);
    let mut tx = noted.db.begin().await.unwrap();
    execute::<D>(&mut tx, OLD, &[]).await;
    tx.commit().await.unwrap();
    assert!(!noted.start(&noted.order, "7").await, "its id is taken");
    assert!(noted.start(&noted.returns, "7").await);
    assert_eq!(noted.coordinator.run_due().await.unwrap(), 2);
    assert_eq!(noted.keys(), ["7:pay of 7", "return:7:pay of 7"]);
    assert_eq!(noted.status(&noted.order.id("7")).await, Status::Completed);
    let saga = noted.coordinator.admin().get(&noted.order.id("7")).await.unwrap().unwrap();
    assert_eq!((saga.id.as_str(), saga.definition.as_str(), saga.version), ("7", "order", 1));
    close(noted.db).await;
    D::destroy(home).await;
}

async fn a_process_from_before_neither_runs_nor_doubles_a_new_saga<D: Backend>() {
    let home = D::create().await;
    let noted = noted(D::connect(&home).await);
    assert!(noted.start(&noted.order, "7").await);
    // What it claims by.
    let claimable = "SELECT COUNT(*) FROM buttress_saga WHERE definition = 'order' AND version = 1";
    assert_eq!(ints(&noted.db, claimable).await, [0]);
    let mut tx = noted.db.begin().await.unwrap();
    let doubled = D::execute(&mut tx, OLD, &[] as &[Arg<'_>]).await;
    assert!(doubled.is_err(), "an error, rather than a second saga of the order");
    drop(tx);
    assert_eq!(noted.coordinator.run_due().await.unwrap(), 1);
    close(noted.db).await;
    D::destroy(home).await;
}

/// The tables of the version before, with a saga that is under way, are migrated.
#[tokio::test]
async fn sagas_under_way_survive_the_migration() {
    let home = <Sqlite as Backend>::create().await;
    let path = <Sqlite as Backend>::address(&home);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(include_str!("../../migrations/sqlite/0001_init.sql")).execute(&pool).await.unwrap();
    sqlx::raw_sql(OLD).execute(&pool).await.unwrap();
    let step = "INSERT INTO buttress_saga_step (saga_id, step, name, state, attempts, uncertain, started_at)
                VALUES ('7', 0, 'pay', 'waiting', 2, 1, 5)";
    sqlx::raw_sql(step).execute(&pool).await.unwrap();
    sqlx::raw_sql(include_str!("../../migrations/sqlite/0003_saga.sql")).execute(&pool).await.unwrap();
    let noted = noted(Db::<Sqlite>::new(pool));
    let saga = noted.coordinator.admin().get(&noted.order.id("7")).await.unwrap().unwrap();
    assert_eq!((saga.status, saga.steps[0].attempts, saga.steps[0].uncertain), (Status::Running, 2, true));
    let row: Option<(i64,)> = noted.db.row("SELECT refused FROM buttress_saga_step", args![]).await.unwrap();
    assert_eq!(row, Some((0,)));
    assert_eq!(noted.coordinator.run_due().await.unwrap(), 1);
    assert_eq!(
        (noted.keys(), noted.status(&noted.order.id("7")).await),
        (vec!["7:pay of 7".to_owned()], Status::Completed)
    );
    close(noted.db).await;
}
