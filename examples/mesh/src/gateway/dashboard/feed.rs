//! Polls the state of every service while a dashboard is open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::now_ms;
use crate::gateway::rest::Rest;
use crate::launch::{Addresses, Name};
use crate::stack;

/// Short enough to show an open circuit, long enough not to affect the measurements.
const TICK: Duration = Duration::from_millis(500);

/// The latest state of the mesh, for the dashboards. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Feed {
    states: watch::Sender<Option<Arc<str>>>,
    services: Arc<[(Name, Rest)]>,
}

impl Feed {
    pub(in crate::gateway) fn new(addresses: &Addresses) -> Self {
        let rest = |name: Name| (name, Rest::new(name.as_str(), stack::admin_client(), addresses.of(name)));
        Self { states: watch::Sender::new(None), services: Name::ALL.into_iter().rev().map(rest).collect() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.states.subscribe()
    }

    /// Polls until the future is dropped.
    pub(in crate::gateway) async fn run(self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.states.receiver_count() > 0 {
                let state = self.look().await.to_string();
                self.states.send_replace(Some(state.into()));
            }
        }
    }

    /// Reads the state of all services. A service that does not answer has `null`.
    async fn look(&self) -> Value {
        let states = join_all(self.services.iter().map(async |(name, rest)| {
            let state = rest.get("/admin/state").await.ok().flatten();
            json!({ "name": name.as_str(), "state": state })
        }));
        let sagas = async {
            let order = self.services.iter().find(|(name, _)| *name == Name::Order)?;
            order.1.get("/admin/sagas?newest=true&limit=12").await.ok().flatten()
        };
        let (states, sagas) = tokio::join!(states, sagas);
        json!({ "at_ms": now_ms(), "services": states, "sagas": sagas })
    }
}
