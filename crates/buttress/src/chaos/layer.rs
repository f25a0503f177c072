use super::{Chaos, Faults};
use crate::{
    ending::{Ending, NoEnding},
    per_request::{By, PerRequest, Same},
    shell::opaque_debug,
};

/// The injection of faults as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) has examples.
///
/// ```
/// use buttress::{PlainExt, chaos::{Chaos, ChaosLayer}};
///
/// let chaos = Chaos::new(); // kept, to switch it on
/// let layer = ChaosLayer::from(chaos.clone()).plain();
/// assert!(!layer.handle().is_on());
/// ```
#[derive(Clone, Debug)]
pub struct ChaosLayer<E = NoEnding, Scope = Same> {
    pub(super) chaos: Chaos,
    pub(super) scope: Scope,
    pub(super) ends: E,
}

impl From<Chaos> for ChaosLayer {
    fn from(chaos: Chaos) -> Self {
        Self { chaos, scope: Same, ends: NoEnding }
    }
}

/// Injects faults into requests that a function chooses. Made by [`ChaosLayer::only`].
#[derive(Clone, Copy)]
pub struct Only<F>(F);

// Closures have no `Debug`.
opaque_debug!(Only<F>);

impl<Req, F: Fn(&Req) -> bool> PerRequest<Req, Faults> for Only<F> {
    fn of(&self, request: &Req) -> Option<Faults> {
        (!(self.0)(request)).then(Faults::default)
    }
}

impl<E, Scope> ChaosLayer<E, Scope> {
    /// Returns the switch.
    pub fn handle(&self) -> &Chaos {
        &self.chaos
    }

    /// Injects faults only into requests for which `scope` returns true. It is called while the
    /// switch is on.
    ///
    /// ```
    /// use buttress::{PlainExt, chaos::{Chaos, ChaosLayer}};
    ///
    /// let layer = ChaosLayer::from(Chaos::new()).only(|path: &&str| path.starts_with("/stock")).plain();
    /// # let _ = layer;
    /// ```
    pub fn only<Req, F: Fn(&Req) -> bool>(self, scope: F) -> ChaosLayer<E, Only<F>> {
        ChaosLayer { chaos: self.chaos, scope: Only(scope), ends: self.ends }
    }

    /// Reads the faults of a call from its request; `None` uses those of the switch. It is called
    /// while the switch is on, which may be with no faults of its own.
    ///
    /// A function that reads what a caller sends must know that it may ask for faults.
    ///
    /// ```
    /// use buttress::{PlainExt, chaos::{Chaos, ChaosLayer, Faults}};
    ///
    /// struct Request {
    ///     is_test: bool,
    /// }
    ///
    /// let chaos = Chaos::new();
    /// chaos.set(Faults::default()); // on, without faults
    /// let errors = Faults::builder().errors(1.0).build()?;
    /// let layer = ChaosLayer::from(chaos).by(move |request: &Request| request.is_test.then(|| errors.clone()));
    /// # let _ = layer.plain();
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn by<Req, F: Fn(&Req) -> Option<Faults>>(self, faults: F) -> ChaosLayer<E, By<F>> {
        ChaosLayer { chaos: self.chaos, scope: By(faults), ends: self.ends }
    }
}

impl<E, Scope> Ending for ChaosLayer<E, Scope> {
    type Now = E;
    type With<Next> = ChaosLayer<Next, Scope>;

    fn end<Next>(self, ends: Next) -> ChaosLayer<Next, Scope> {
        ChaosLayer { chaos: self.chaos, scope: self.scope, ends }
    }
}
