use super::{Call, LoadShed, LoadShedPermit};
use crate::{
    ending::NoEnding,
    gate::{Gate, GateLayer},
    per_request::{By, PerRequest, Same},
    shell::opaque_debug,
};
use buttress_core::{Name, Policy, Refused, Rejection};
use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
    ops::Deref,
    time::Duration,
};

/// A [`LoadShed`] as a layer. The [module](super) has an example.
///
/// `X` says which calls are exempt, `T` who makes them, and `W` how long they have waited.
pub type LoadShedLayer<E = NoEnding, X = Same, T = Same, W = Same> = GateLayer<ShedBy<X, T, W>, E>;

/// A service behind a [`LoadShed`].
pub type LoadShedService<S, E, X = Same, T = Same, W = Same> = Gate<S, ShedBy<X, T, W>, E>;

/// The policy of a [`LoadShedLayer`]: a [`LoadShed`], and how to read requests.
///
/// ```
/// use buttress::LoadShedLayer;
///
/// let layer = LoadShedLayer::new("orders");
/// assert_eq!(layer.handle().share(), 0.0); // the methods of `LoadShed`
/// ```
#[derive(Clone)]
pub struct ShedBy<X = Same, T = Same, W = Same> {
    shed: LoadShed,
    exempt: X,
    tenant: T,
    waited: W,
}

opaque_debug!(ShedBy<X, T, W>);

impl LoadShedLayer {
    /// Creates a layer without monitors, which rejects only calls whose deadline cannot be met.
    ///
    /// ```
    /// use buttress::LoadShedLayer;
    ///
    /// let layer = LoadShedLayer::new("orders");
    /// assert_eq!(layer.handle().name(), "orders");
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        LoadShed::new(name).into()
    }
}

impl From<LoadShed> for LoadShedLayer {
    fn from(shed: LoadShed) -> Self {
        Self::with_policy(ShedBy { shed, exempt: Same, tenant: Same, waited: Same })
    }
}

impl<E, X, T, W> LoadShedLayer<E, X, T, W> {
    /// Admits the calls for which `exempt` returns true, whatever the load is: probes of health.
    ///
    /// ```
    /// use buttress::{LoadShedLayer, PlainExt};
    ///
    /// let layer = LoadShedLayer::new("orders").exempt(|path: &String| path == "/healthz").plain();
    /// # let _ = layer;
    /// ```
    pub fn exempt<Req, F: Fn(&Req) -> bool>(self, exempt: F) -> LoadShedLayer<E, Exempt<F>, T, W> {
        self.map_policy(|ShedBy { shed, exempt: _, tenant, waited }| ShedBy {
            shed,
            exempt: Exempt(exempt),
            tenant,
            waited,
        })
    }

    /// Makes a call less important the more its tenant asks for: within its class, by the tenant's
    /// share of the recent calls. The memory does not grow with the number of tenants.
    ///
    /// ```
    /// use buttress::{LoadShedLayer, PlainExt};
    ///
    /// let layer = LoadShedLayer::new("orders").fair_by(|(tenant, _): &(u32, String)| *tenant).plain();
    /// # let _ = layer;
    /// ```
    pub fn fair_by<Req, K: Hash, F: Fn(&Req) -> K>(self, tenant: F) -> LoadShedLayer<E, X, TenantOf<F>, W> {
        self.map_policy(|ShedBy { shed, exempt, tenant: _, waited }| ShedBy {
            shed,
            exempt,
            tenant: TenantOf { tenant, secret: RandomState::new() },
            waited,
        })
    }

    /// Reads how long a call has waited before it came here, such as since a proxy or an acceptor
    /// stamped it. For a [`LoadShed`] that [watches waits](super::Builder::waits).
    ///
    /// ```
    /// use buttress::{LoadShed, LoadShedLayer, PlainExt, load_shed::QueueDelay};
    /// use std::time::Duration;
    ///
    /// struct Job {
    ///     queued_for: Duration,
    /// }
    ///
    /// let waits = QueueDelay::new(Duration::from_millis(20), Duration::from_millis(100))?;
    /// let shed = LoadShed::builder("jobs").waits(waits).build()?;
    /// let layer = LoadShedLayer::from(shed).waited_by(|job: &Job| Some(job.queued_for)).plain();
    /// # let _ = layer;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn waited_by<Req, F: Fn(&Req) -> Option<Duration>>(self, waited: F) -> LoadShedLayer<E, X, T, By<F>> {
        self.map_policy(|ShedBy { shed, exempt, tenant, waited: _ }| ShedBy {
            shed,
            exempt,
            tenant,
            waited: By(waited),
        })
    }
}

/// The methods of the handle.
impl<X, T, W> Deref for ShedBy<X, T, W> {
    type Target = LoadShed;

    fn deref(&self) -> &LoadShed {
        &self.shed
    }
}

impl<Req, X, T, W> Policy<Req> for ShedBy<X, T, W>
where
    X: PerRequest<Req, bool>,
    T: PerRequest<Req, u64>,
    W: PerRequest<Req, Duration>,
{
    type Permit = LoadShedPermit;

    #[inline]
    fn admit(&self, request: &Req) -> Result<LoadShedPermit, Rejection> {
        let mut call = Call::default();
        call.is_exempt = self.exempt.of(request).unwrap_or(false);
        call.tenant = self.tenant.of(request);
        call.waited = self.waited.of(request);
        self.shed.admit_call(call)
    }

    fn unready(&self) -> Option<Result<LoadShedPermit, Refused>> {
        Policy::<Req>::unready(&self.shed)
    }
}

/// Exempts the calls for which a function returns true. Made by [`LoadShedLayer::exempt`].
#[derive(Clone, Copy)]
pub struct Exempt<F>(F);

/// Hashes the tenant that a function reads, with a secret: nobody can choose a name that counts as
/// another tenant's. Made by [`LoadShedLayer::fair_by`].
#[derive(Clone)]
pub struct TenantOf<F> {
    tenant: F,
    secret: RandomState,
}

opaque_debug!(Exempt<F>);
opaque_debug!(TenantOf<F>);

impl<Req, F: Fn(&Req) -> bool> PerRequest<Req, bool> for Exempt<F> {
    #[inline]
    fn of(&self, request: &Req) -> Option<bool> {
        Some((self.0)(request))
    }
}

impl<Req, K: Hash, F: Fn(&Req) -> K> PerRequest<Req, u64> for TenantOf<F> {
    #[inline]
    fn of(&self, request: &Req) -> Option<u64> {
        Some(self.secret.hash_one((self.tenant)(request)))
    }
}
