//! Backpressure of a policy that needs the request.

use buttress::{Bulkhead, PlainExt, keyed::Keyed, policy::GateLayer};

fn main() {
    let keyed = Keyed::new(|tenant: &u32| *tenant, |_: &u32| Bulkhead::new(10));
    let _ = GateLayer::with_policy(keyed).backpressure().plain();
}
