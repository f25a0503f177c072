//! A shop to run sagas in: participants that follow the rules and outlive the coordinator's
//! crashes, and the saga of an order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buttress_core::Backoff;
use buttress_durable::db::Arg;
use buttress_durable::saga::{
    Call, Coordinator, CoordinatorBuilder, Definition, Done, SagaId, Starter, Status, Step, StepError,
};
use buttress_durable::{Db, DomainEvent, Outbox, Timestamp};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::support::{Backend, Crash, execute};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Order {
    pub(crate) cents: i64,
    /// The first participant's answer, for the later steps.
    pub(crate) reservation: Option<String>,
}

/// How a participant reacts to a new call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    Done,
    Declined,
    Busy,
    /// The work is done, and the answer is lost.
    LostAnswer,
    /// The call is lost.
    LostCall,
    Panic,
    /// No answer until the gate is opened.
    Gate,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    Done,
    Declined,
    Revoked,
}

/// Inventory and payment: one effect for each key, however often it is requested.
#[derive(Clone, Debug)]
pub(crate) struct Participants {
    pub(crate) effects: Arc<Mutex<BTreeMap<String, Effect>>>,
    /// Every effect that was made or undone, in order: `+key`, `-key`.
    pub(crate) ledger: Arc<Mutex<Vec<String>>>,
    /// Keys of the calls, in order; of a compensation with `-`.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    /// Running calls by saga, and the highest number there was for one saga.
    pub(crate) busy: Arc<Mutex<(HashMap<String, usize>, usize)>>,
    pub(crate) gate: Arc<Semaphore>,
    script: Arc<Mutex<HashMap<String, VecDeque<Reply>>>>,
}

impl Participants {
    pub(crate) fn new() -> Self {
        Self {
            effects: Arc::default(),
            ledger: Arc::default(),
            calls: Arc::default(),
            busy: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            script: Arc::default(),
        }
    }

    /// Sets the next replies of an action (`pay`) or a compensation (`-pay`). Later ones are
    /// `Done`.
    pub(crate) fn script(&self, step: &str, replies: &[Reply]) {
        self.script.lock().unwrap().insert(step.to_owned(), replies.iter().copied().collect());
    }

    fn reply(&self, step: &str) -> Reply {
        self.script.lock().unwrap().get_mut(step).and_then(VecDeque::pop_front).unwrap_or(Reply::Done)
    }

    async fn call(&self, crash: &Crash, call: &Call<Order>, step: &str, undo: bool) -> Result<(), StepError> {
        let saga = call.saga_id().to_owned();
        {
            let (now, most) = &mut *self.busy.lock().unwrap();
            let count = now.entry(saga.clone()).or_default();
            *count += 1;
            *most = (*most).max(*count);
        }
        let _leave = Leave(self, saga);
        crash.boundary().await;
        let result = self.answer(call.key(), step, undo).await;
        crash.boundary().await;
        result
    }

    async fn answer(&self, key: &str, step: &str, undo: bool) -> Result<(), StepError> {
        // All sagas of a shop have one definition. What is written down is shorter without its
        // name.
        let key = key.strip_prefix("order:").unwrap_or(key);
        let sign = if undo { "-" } else { "" };
        self.calls.lock().unwrap().push(format!("{sign}{key}"));
        let reply = self.reply(&format!("{sign}{step}"));
        match reply {
            Reply::Busy => return Err(StepError::retriable("busy")),
            Reply::LostCall => return Err(StepError::unknown("the call was lost")),
            Reply::Panic => std::panic::resume_unwind(Box::new("a bug in the client")),
            Reply::Gate => self.gate.acquire().await.map_err(StepError::unknown)?.forget(),
            Reply::Done | Reply::Declined | Reply::LostAnswer => {}
        }
        let mut effects = self.effects.lock().unwrap();
        let known = effects.get(key).copied();
        if undo {
            if known == Some(Effect::Done) {
                self.ledger.lock().unwrap().push(format!("-{key}"));
            }
            effects.insert(key.to_owned(), Effect::Revoked);
        } else {
            let effect = known.unwrap_or(if reply == Reply::Declined { Effect::Declined } else { Effect::Done });
            effects.insert(key.to_owned(), effect);
            if known.is_none() && effect == Effect::Done {
                self.ledger.lock().unwrap().push(format!("+{key}"));
            }
            if effect != Effect::Done {
                return Err(StepError::terminal(format!("{effect:?}")));
            }
        }
        if reply == Reply::LostAnswer { Err(StepError::unknown("the answer was lost")) } else { Ok(()) }
    }

    pub(crate) fn ledger(&self) -> Vec<String> {
        self.ledger.lock().unwrap().clone()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

struct Leave<'a>(&'a Participants, String);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap().0.entry(self.1.clone()).or_default() -= 1;
    }
}

/// The saga of an order, with participants that outlive the coordinator's crashes.
pub(crate) fn definition<D: Backend>(participants: &Participants, crash: &Crash) -> Definition<D, Order> {
    let remote = |step: &'static str, undo: bool| {
        let (participants, crash) = (participants.clone(), crash.clone());
        move |mut call: Call<Order>| {
            let (participants, crash) = (participants.clone(), crash.clone());
            async move {
                participants.call(&crash, &call, step, undo).await?;
                if step == "reserve" && !undo {
                    call.data.reservation = Some(call.key().to_owned());
                }
                if step == "ship" {
                    assert!(call.data.reservation.is_some(), "what an earlier step has learned is still known");
                }
                Ok(call.done())
            }
        }
    };
    Definition::new("order", 1, steps(3, remote)).unwrap().deadline(Duration::from_secs(600))
}

/// The steps of an order: `create` (local), `reserve`, `pay` (pivot), `confirm` (local), `ship`.
///
/// `remote` returns the call of a step by its name; the flag selects the compensation. Each is
/// attempted up to `attempts` times, 10 ms apart.
pub(crate) fn steps<D, F, Fut>(attempts: u32, remote: impl Fn(&'static str, bool) -> F) -> [Step<D, Order>; 5]
where
    D: Backend,
    F: Fn(Call<Order>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Done<Order>, StepError>> + Send + 'static,
{
    let (attempts, pause) = (NonZeroU32::new(attempts).unwrap(), Backoff::constant(Duration::from_millis(10)));
    let steps = [
        create_order(),
        Step::new("reserve", remote("reserve", false)).compensation(remote("reserve", true)),
        Step::new("pay", remote("pay", false)).compensation(remote("pay", true)).pivot(),
        confirm_order().retriable(),
        Step::new("ship", remote("ship", false)).retriable(),
    ];
    steps.map(|step| step.attempts(attempts).backoff(pause).compensation_attempts(attempts).compensation_backoff(pause))
}

fn create_order<D: Backend>() -> Step<D, Order> {
    Step::local("create", |tx, call: Call<Order>| {
        let id = call.saga_id().to_owned();
        async move {
            D::execute(tx, "INSERT INTO orders (id, state) VALUES ($1, 'pending')", &[Arg::Text(&id)]).await?;
            told(call, "OrderCreated")
        }
        .boxed()
    })
    .local_compensation(|tx, call: Call<Order>| set(tx, call, "cancelled", "OrderCancelled").boxed())
}

fn confirm_order<D: Backend>() -> Step<D, Order> {
    Step::local("confirm", |tx, call: Call<Order>| set(tx, call, "confirmed", "OrderConfirmed").boxed())
}

async fn set<D: Backend>(
    tx: &mut buttress_durable::Tx<D>,
    call: Call<Order>,
    state: &str,
    event: &str,
) -> Result<Done<Order>, StepError> {
    let id = call.saga_id().to_owned();
    let sql = "UPDATE orders SET state = $1, changes = changes + 1 WHERE id = $2";
    D::execute(tx, sql, &[Arg::Text(state), Arg::Text(&id)]).await?;
    told(call, event)
}

fn told(call: Call<Order>, event: &str) -> Result<Done<Order>, StepError> {
    let event = DomainEvent::new(event, call.saga_id(), Timestamp::default(), &call.data.cents);
    let event = event.map_err(StepError::terminal)?;
    Ok(call.done().event(event))
}

/// The full id of an order's saga.
pub(crate) fn order(id: &str) -> SagaId {
    SagaId::new("order", id)
}

/// One process of the order service.
pub(crate) struct Shop<D: Backend> {
    pub(crate) db: Db<D>,
    pub(crate) coordinator: Coordinator<D>,
    pub(crate) orders: Starter<D, Order>,
}

pub(crate) async fn schema<D: Backend>(db: &Db<D>) {
    let mut tx = db.begin().await.unwrap();
    let sql = "CREATE TABLE IF NOT EXISTS orders
               (id TEXT PRIMARY KEY, state TEXT NOT NULL, changes BIGINT NOT NULL DEFAULT 0)";
    execute::<D>(&mut tx, sql, &[]).await;
    tx.commit().await.unwrap();
}

pub(crate) fn open_shop<D: Backend>(db: Db<D>, participants: &Participants, crash: &Crash) -> Shop<D> {
    open_shop_with(db, participants, crash, |builder| builder)
}

/// Opens a shop with other settings of its coordinator.
pub(crate) fn open_shop_with<D: Backend>(
    db: Db<D>,
    participants: &Participants,
    crash: &Crash,
    settings: impl FnOnce(CoordinatorBuilder<D>) -> CoordinatorBuilder<D>,
) -> Shop<D> {
    let builder = Coordinator::builder(db.clone(), Outbox::new(db.clone()));
    let mut builder = settings(builder.poll(Duration::from_millis(5)).concurrency(4));
    let orders = builder.register(definition(participants, crash)).unwrap();
    Shop { db, coordinator: builder.build(), orders }
}

impl<D: Backend> Shop<D> {
    pub(crate) async fn order(&self, id: &str) -> bool {
        let mut tx = self.db.begin().await.unwrap();
        let order = Order { cents: 790, reservation: None };
        let new = self.orders.start(&mut tx, id, &order, None).await.unwrap();
        tx.commit().await.unwrap();
        self.orders.wake();
        new
    }

    pub(crate) async fn saga(&self, id: &str) -> buttress_durable::saga::SagaView {
        self.coordinator.admin().get(&order(id)).await.unwrap().unwrap()
    }

    /// Runs what is due and advances the clock, until all sagas have ended or are stuck.
    pub(crate) async fn settle(&self, hand: &buttress_durable::ManualClock) {
        loop {
            self.coordinator.run_due().await.unwrap();
            let counts = self.coordinator.admin().counts().await.unwrap();
            if counts.running + counts.compensating == 0 {
                return;
            }
            hand.advance(Duration::from_secs(1));
        }
    }

    pub(crate) async fn status(&self, id: &str) -> Status {
        self.saga(id).await.status
    }
}
