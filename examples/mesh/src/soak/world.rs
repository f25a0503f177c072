//! Everything that a trouble acts on: the processes, their databases, bus and clocks.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;

use super::Options;
use super::orders::{Counts, Orders};
use super::place::Place;
use super::report::Recovery;
use super::server::Server;
use super::timeline::Timeline;
use super::troubles::clock::Clocks;
use super::vitals::{self, Readings};
use crate::clock::{now, now_ms};
use crate::customers::Customers;
use crate::db::{self, Databases, Files};
use crate::demo::Brokers;
use crate::demo::Home;
use crate::demo::books::Acknowledged;
use crate::demo::processes::Children;
use crate::launch::Name;
use crate::probe;

/// Brokers of the mock cluster.
const BROKERS: i32 = 3;
/// Pause between two looks at the processes.
const TICK: Duration = Duration::from_millis(200);
/// Pause between two lines about the orders.
const NEWS: Duration = Duration::from_secs(15);
/// Before the first trouble, so that pools and caches have filled.
const SETTLE_IN: Duration = Duration::from_secs(5);

pub(super) struct World {
    pub(super) children: Children,
    /// The databases, without the proxy.
    pub(super) databases: Databases,
    pub(super) server: Option<Server>,
    pub(super) brokers: Brokers,
    pub(super) clocks: Result<Clocks, String>,
    pub(super) place: Place,
    pub(super) orders: Orders,
    pub(super) rng: fastrand::Rng,
    /// Everything that was not as it must be.
    pub(super) wrong: Vec<String>,
    timeline: Timeline,
    told: (Duration, Counts),
}

impl World {
    pub(super) async fn start(options: &Options) -> anyhow::Result<Self> {
        let timeline = Timeline::new();
        let place = Place::new(options.data_dir.clone(), options.server.is_none())?;
        let brokers = Brokers::with_mock_of(BROKERS, options.kafka.clone())?;
        let (mut server, mut databases) = (None, Databases::Files(Files(place.data.clone())));
        if let Some(options) = &options.server {
            databases = Databases::Server(db::Server::new(&options.url, &options.prefix)?);
            server = Some(Server::new(options.clone()).await?);
        }
        let url = server.as_ref().map(Server::url).transpose()?;
        let prefix = options.server.as_ref().map_or("", |server| server.prefix.as_str());
        let home = Home::at(databases.clone(), place.dir.clone());
        let mut children =
            Children::new(&home, url.as_deref().map(|url| (url, prefix)), brokers.address(), options.seed)?;
        let clocks = Clocks::new(&place.dir);
        if let Ok(clocks) = &clocks {
            Name::ALL.into_iter().for_each(|name| children.set_environment(name, clocks.environment(name)));
        }
        timeline.say(format_args!("starting the services; logs are in {}", place.dir.display()));
        children.start_all().await?;
        let customers = Customers::new(&children.url(Name::Gateway), options.seed, children.tokens().clone());
        let orders = Orders::start(customers, options.rate);
        timeline.say(format_args!("all are ready; {} orders a second from now on", options.rate));
        Ok(Self {
            children,
            databases,
            server,
            brokers,
            clocks,
            place,
            orders,
            rng: fastrand::Rng::with_seed(options.seed),
            wrong: Vec::new(),
            timeline,
            told: (timeline.elapsed(), Counts::default()),
        })
    }

    pub(super) fn say(&self, what: impl fmt::Display) {
        self.timeline.say(what);
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.timeline.elapsed()
    }

    pub(super) async fn settle_in(&mut self) {
        self.pass(SETTLE_IN).await;
    }

    /// Lets time pass. Meanwhile, watches the processes and prints how the orders go.
    pub(super) async fn pass(&mut self, time: Duration) {
        let start = now();
        while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(TICK)).await;
            self.look_for_deaths().await;
            let (at, before) = self.told;
            if self.elapsed() - at >= NEWS {
                let counts = self.orders.counts();
                self.say(format_args!("  orders: {}", counts - before));
                self.told = (self.elapsed(), counts);
            }
        }
    }

    /// Waits until an order is confirmed and all services are ready.
    pub(super) async fn recover(&mut self, limit: Duration) -> Recovery {
        let (over, mut recovery) = (now(), Recovery::default());
        while over.elapsed() < limit && (recovery.first_success.is_none() || recovery.all_ready.is_none()) {
            if recovery.first_success.is_none() && self.orders.confirmed_since(over) {
                recovery.first_success = Some(over.elapsed());
                self.say(format_args!("  first order after {:.1} s", over.elapsed().as_secs_f64()));
            }
            if recovery.all_ready.is_none() && self.unready().await.is_empty() {
                recovery.all_ready = Some(over.elapsed());
                self.say(format_args!("  all ready after {:.1} s", over.elapsed().as_secs_f64()));
            }
            self.pass(TICK).await;
        }
        recovery
    }

    /// The services that are not ready.
    pub(super) async fn unready(&self) -> Vec<Name> {
        let probes = Name::ALL.map(async |name| {
            let answer = probe::probe(self.children.address(name), "/readyz").await;
            (answer != Some(StatusCode::OK)).then_some(name)
        });
        join_all(probes).await.into_iter().flatten().collect()
    }

    /// Records and restarts the services that have ended by themselves.
    pub(super) async fn look_for_deaths(&mut self) {
        for (name, status) in self.children.take_ended() {
            self.say(format_args!("  {} ENDED BY ITSELF: {status}", name.as_str()));
            self.wrong.push(format!("{} ended by itself: {status}", name.as_str()));
            let restarted = self.children.start(name);
            self.check(name.as_str(), restarted).await;
        }
    }

    /// Records that a step of the soak did not work.
    pub(super) async fn check(&mut self, what: &str, done: anyhow::Result<()>) {
        if let Err(error) = done {
            self.say(format_args!("  {what} FAILED: {error:#}"));
            self.wrong.push(format!("{what}: {error:#}"));
        }
    }

    pub(super) fn vitals(&self) -> Readings {
        let read = |name: Name| Some((name.as_str(), vitals::read(self.children.pid(name)?)?));
        Name::ALL.into_iter().filter_map(read).collect()
    }

    /// Ends the flow of orders.
    pub(super) async fn last_orders(&mut self) -> (Counts, Acknowledged) {
        self.say("no more orders; waiting for the last answers");
        self.orders.stop().await
    }

    /// Removes what was created. Returns the directory of logs, and of databases if they were kept.
    pub(super) fn finish(self, right: bool) -> PathBuf {
        let Self { children, place, .. } = self;
        drop(children);
        place.finish(right)
    }

    /// The header lines of a customer who may order.
    pub(super) fn authorization(&self) -> String {
        let token = "alice".parse().map(|alice| self.children.tokens().issue(&alice, now_ms())).unwrap_or_default();
        format!("authorization: Bearer {token}\r\n")
    }

    /// A random service.
    pub(super) fn any(&mut self) -> Name {
        Name::ALL[self.rng.usize(..Name::ALL.len())]
    }
}
