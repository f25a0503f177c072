//! A layer without an ending.

use buttress::CircuitBreakerLayer;
use tower::ServiceBuilder;

async fn call(_: String) -> Result<String, std::io::Error> {
    Ok(String::new())
}

fn main() {
    let _ = ServiceBuilder::new().layer(CircuitBreakerLayer::new("payments")).service_fn(call);
}
