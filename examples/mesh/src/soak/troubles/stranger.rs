//! A stranger on the customers' ports asks for what is not theirs.

use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;

use crate::launch::Name;
use crate::soak::hostile::{ask, get, order, reveals};
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// Asks for operators' pages and metrics, orders with a forged token, and tries to continue a trace
/// of its own.
#[derive(Debug)]
pub(super) struct Stranger;

const PRIVATE: [&str; 7] =
    ["/metrics", "/admin", "/admin/state", "/admin/faults", "/admin/sagas", "/admin/attention/sagas", "/dashboard"];
/// Unsigned, with the header that switches checks off in careless libraries.
const FORGED: &str = "authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.\r\n";
const TRACE: &str = "5742a4e6e65f4a7bb1d8f1b1a6c0ffee";

impl Trouble for Stranger {
    fn name(&self) -> &'static str {
        "stranger"
    }

    fn harmless(&self) -> bool {
        true
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            for name in Name::ALL {
                for path in PRIVATE {
                    if let Some(status) = reveals(world.children.address(name), &get(path, "")).await {
                        world.wrong.push(format!("stranger: {} answers {path} with {status}", name.as_str()));
                    }
                }
            }
            let gateway = world.children.address(Name::Gateway);
            let body = br#"{"customer":"alice","items":[{"sku":"tea","quantity":1}]}"#;
            for more in ["", FORGED] {
                let status = ask(gateway, &order(more, body)).await;
                if status.is_none_or(|status| status != 401) {
                    world.wrong.push(format!("stranger: an order with {more:?} was answered {status:?}, and not 401"));
                }
            }
            let traced = format!("{}traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n", world.authorization());
            ask(gateway, &order(&traced, body)).await;
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            // The gateway may name the trace; the services behind it must have another.
            for name in Name::ALL.into_iter().filter(|name| *name != Name::Gateway) {
                let log = std::fs::read(world.children.log(name)).context("cannot read a log")?;
                if String::from_utf8_lossy(&log).contains(TRACE) {
                    world.wrong.push(format!("stranger: their trace goes on in {}", name.as_str()));
                }
            }
            Ok(())
        }
        .boxed_local()
    }
}
