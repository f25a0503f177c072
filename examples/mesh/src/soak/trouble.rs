//! What a trouble is.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::world::World;

/// Something that goes wrong for a while, and then no longer does.
pub(super) trait Trouble {
    /// The name on the command line and in the report.
    fn name(&self) -> &'static str;

    /// Returns why the trouble cannot happen here, if it cannot.
    fn possible(&self, _world: &World) -> Result<(), String> {
        Ok(())
    }

    /// Whether orders must be confirmed while it lasts.
    fn harmless(&self) -> bool {
        false
    }

    /// Time between `begin` and `end`.
    fn lasts(&self) -> Duration;

    /// Starts the trouble. An error means that the soak, and not a service, has failed.
    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a>;

    /// Ends the trouble. Called also if `begin` has failed.
    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a>;
}

pub(super) type Step<'a> = LocalBoxFuture<'a, anyhow::Result<()>>;
