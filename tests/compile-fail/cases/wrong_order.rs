//! A setting of an HTTP retry before its ending.

use buttress_http::prelude::*;

fn main() {
    let _ = RetryLayer::new(3).idempotent(|head| head.method.is_safe()).http_client();
}
