//! A handle where a layer is meant.

use buttress_http::prelude::*;

fn main() {
    let _ = CircuitBreaker::new("payments").http_client();
}
