//! Polls the state of every service while a dashboard is open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;
use crate::gateway::admin::Listeners;
use crate::launch::Name;

/// Short enough to show an open circuit, long enough not to affect the measurements.
const TICK: Duration = Duration::from_millis(500);

/// The latest state of the mesh, for the dashboards. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Feed {
    states: watch::Sender<Option<Arc<str>>>,
    services: Listeners,
    stop: CancellationToken,
}

impl Feed {
    /// The pages' streams end with `stop`.
    pub(in crate::gateway) fn new(services: Listeners, stop: CancellationToken) -> Self {
        Self { states: watch::Sender::new(None), services, stop }
    }

    /// The latest state, each time that it changes, until the gateway stops: an open page must not
    /// delay a shutdown.
    pub(super) fn watch(&self) -> impl Stream<Item = Arc<str>> + use<> {
        let states = WatchStream::new(self.states.subscribe()).filter_map(std::future::ready);
        states.take_until(self.stop.clone().cancelled_owned())
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
            let order = self.services.of(Name::Order.as_str()).ok()?;
            order.get("/admin/sagas?newest=true&limit=12").await.ok().flatten()
        };
        let (states, sagas) = tokio::join!(states, sagas);
        json!({ "at_ms": now_ms(), "services": states, "sagas": sagas })
    }
}
