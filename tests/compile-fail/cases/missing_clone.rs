//! A request that a retry cannot clone.

use buttress::{PlainExt, RetryLayer};
use tower::{Service, ServiceBuilder};

struct Query;

async fn call(_: Query) -> Result<(), std::io::Error> {
    Ok(())
}

fn main() {
    let mut service = ServiceBuilder::new().layer(RetryLayer::new(3).plain()).service_fn(call);
    let _ = Service::<Query>::call(&mut service, Query);
}
