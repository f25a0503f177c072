//! A timeout has no `new`: it bounds an attempt or the whole call, and the message names both.

use buttress::{PlainExt, TimeoutLayer};
use std::time::Duration;

fn main() {
    let _layer = TimeoutLayer::new(Duration::from_secs(1)).plain();
}
