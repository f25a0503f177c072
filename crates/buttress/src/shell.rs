//! Items that every service and future of this crate has.

/// Implements the accessors of the field `inner` and tower's `Load` for a service.
macro_rules! inner_service {
    ($service:ident<S $(, $param:ident $(: $bound:path)?)*>) => {
        impl<S $(, $param $(: $bound)?)*> $service<S $(, $param)*> {
            /// Returns a reference to the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns a mutable reference to the inner service.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Consumes the service and returns the inner service.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }

        /// Reports the load of the inner service, for balancers.
        impl<S: tower::load::Load $(, $param $(: $bound)?)*> tower::load::Load for $service<S $(, $param)*> {
            type Metric = S::Metric;

            fn load(&self) -> S::Metric {
                self.inner.load()
            }
        }
    };
}

/// Implements `Debug` without bounds on the type parameters, for futures and for what holds
/// closures.
macro_rules! opaque_debug {
    ($type:ident<$($param:ident $(: $bound:path)?),*>) => {
        impl<$($param $(: $bound)?),*> std::fmt::Debug for $type<$($param),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type)).finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use inner_service;
pub(crate) use opaque_debug;
