//! What every service and future of this crate has, written once.

/// Gives a service with a field `inner` the accessors of it, and tower's `Load`.
macro_rules! inner_service {
    ($service:ident<S $(, $param:ident $(: $bound:path)?)*>) => {
        impl<S $(, $param $(: $bound)?)*> $service<S $(, $param)*> {
            /// The inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// The inner service.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Takes the inner service out.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }

        /// The load of the inner service, for balancers.
        impl<S: tower::load::Load $(, $param $(: $bound)?)*> tower::load::Load for $service<S $(, $param)*> {
            type Metric = S::Metric;

            fn load(&self) -> S::Metric {
                self.inner.load()
            }
        }
    };
}

/// Gives a future a `Debug` that asks nothing of its parameters.
macro_rules! opaque_debug {
    ($future:ident<$($param:ident $(: $bound:path)?),*>) => {
        impl<$($param $(: $bound)?),*> std::fmt::Debug for $future<$($param),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($future)).finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use inner_service;
pub(crate) use opaque_debug;
