//! A layer that has an ending already.

use buttress::BulkheadLayer;
use buttress_http::prelude::*;

fn main() {
    let _ = BulkheadLayer::new(10).http().grpc();
}
