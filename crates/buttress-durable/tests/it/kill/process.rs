//! One process of the order service.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_durable::bus::{EventBus, KafkaBus, KafkaConfig, LogBus, Subscribe};
use buttress_durable::db::{Arg, FaultPoint};
use buttress_durable::saga::{Call, Coordinator, Definition};
use buttress_durable::{Db, Inbox, Outbox};
use futures_util::FutureExt;
use tokio::task;

use super::world::World;
use super::{Orders, VARIABLE};
use crate::shop::{Order, steps};
use crate::support::{Backend, eventually};

/// The entry point of the process. Without the environment variable it does nothing.
#[test]
fn a_process_that_may_be_killed() {
    let Ok(orders) = std::env::var(VARIABLE) else { return };
    let orders: Orders = serde_json::from_str(&orders).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match orders.postgres {
        false => runtime.block_on(work::<sqlx::Sqlite>(&orders)),
        true => runtime.block_on(work::<sqlx::Postgres>(&orders)),
    }
}

/// The boundaries of this process, and the one at which it kills itself.
#[derive(Clone, Debug)]
struct Fate {
    dies_at: Option<(String, u32)>,
    /// Number of occurrences of each boundary.
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    /// The last statement of each task, to name the commits.
    last: Arc<Mutex<HashMap<Option<task::Id>, &'static str>>>,
}

impl Fate {
    fn new(dies_at: Option<(String, u32)>) -> Self {
        Self { dies_at, seen: Arc::default(), last: Arc::default() }
    }

    fn point(&self, point: FaultPoint) {
        let (task, mut last) = (task::try_id(), self.last.lock().unwrap());
        let kind = match point {
            FaultPoint::Statement(sql) => {
                last.insert(task, sql);
                format!("before {sql}")
            }
            FaultPoint::BeforeCommit => format!("before the commit of {}", last.get(&task).unwrap_or(&"nothing")),
            FaultPoint::AfterCommit => format!("after the commit of {}", last.get(&task).unwrap_or(&"nothing")),
        };
        drop(last);
        self.boundary(kind);
    }

    fn boundary(&self, kind: String) {
        let mut seen = self.seen.lock().unwrap();
        let times = seen.entry(kind.clone()).or_default();
        *times += 1;
        if self.dies_at.as_ref().is_some_and(|(deadly, time)| (deadly, time) == (&kind, times)) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

async fn work<D: Backend>(orders: &Orders) {
    let fate = Fate::new(orders.dies_at.clone());
    let world = World::open(D::open_at(&orders.database).await);
    let faults = fate.clone();
    let db = D::open_at(&orders.database).await.with_faults(move |point: FaultPoint| {
        faults.point(point);
        false
    });
    let outbox = Outbox::new(db.clone()).with_lease(orders.lease);
    let bus: Arc<dyn EventBus> = match &orders.kafka {
        Some(brokers) => {
            Arc::new(KafkaBus::new(KafkaConfig::new(brokers.as_str()).session(Duration::from_secs(4))).unwrap())
        }
        None => Arc::new(LogBus::new(db.clone()).with_lease(orders.lease)),
    };
    let member = bus.subscribe(group(), Arc::new(listener(&db))).await.unwrap();
    let relay = outbox.relay(bus);
    let mut builder = Coordinator::builder(db.clone(), outbox).lease(orders.lease).poll(Duration::from_millis(100));
    let starter = builder.register(definition(&world, &fate)).unwrap();
    let running = builder.build().run();

    for id in &orders.places {
        let mut tx = db.begin().await.unwrap();
        starter.start(&mut tx, id, &Order { cents: 790, reservation: None }, None).await.unwrap();
        tx.commit().await.unwrap();
        starter.wake();
    }
    eventually("nothing is left to do", || async {
        // Others write too, and on SQLite a query may fail for that.
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.is_at_rest().await
    })
    .await;
    running.shutdown().await;
    relay.shutdown().await;
    member.shutdown().await;
    if let Some(census) = &orders.census {
        std::fs::write(census, serde_json::to_string(&*fate.seen.lock().unwrap()).unwrap()).unwrap();
    }
}

fn group() -> Subscribe {
    Subscribe::new("news", ["OrderConfirmed", "OrderCancelled"]).unwrap()
}

/// The effect of another service: it writes the events down.
fn listener<D: Backend>(db: &Db<D>) -> impl buttress_durable::bus::Handler {
    Inbox::new(db.clone(), "news").handler(|tx, event| {
        async move {
            D::lock_key(tx, 8).await?;
            let entry = format!("{} {}", event.event_type(), event.key());
            let sql = "INSERT INTO news (seq, entry) VALUES ((SELECT COUNT(*) FROM news), $1)";
            D::execute(tx, sql, &[Arg::Text(&entry)]).await?;
            Ok(())
        }
        .boxed()
    })
}

/// The saga of an order, with participants that outlive the process.
fn definition<D: Backend>(world: &World<D>, fate: &Fate) -> Definition<D, Order> {
    let remote = |step: &'static str, undo: bool| {
        let (world, fate) = (world.clone(), fate.clone());
        move |call: Call<Order>| {
            let (world, fate) = (world.clone(), fate.clone());
            async move {
                let seq = world.begins(&call).await?;
                let what = if undo { "undoing" } else { "doing" };
                fate.boundary(format!("before {what} {step}"));
                let result = if undo { world.undo(&call).await } else { world.act(&call, step).await };
                fate.boundary(format!("after {what} {step}"));
                world.ends(seq).await?;
                result.map(|()| call.done())
            }
        }
    };
    Definition::new("order", 1, steps(50, remote)).unwrap()
}
