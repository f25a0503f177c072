//! What all handles have in common.

use buttress::{AdaptiveLimit, AdaptiveRate, Bulkhead, LoadShed, RateLimit, Throttle, load_shed::monitor_fn};
use std::time::Duration;

#[test]
fn handles_print_their_names_and_numbers_and_not_their_insides() {
    let shed = LoadShed::builder("orders").monitor(monitor_fn("pool", || panic!("code of a user"))).build().unwrap();
    assert_eq!(format!("{shed:?}"), r#"LoadShed { name: Some("orders"), share: 0.0, .. }"#);
    let texts = [
        format!("{:?}", Bulkhead::named("orders", 3)),
        format!("{:?}", AdaptiveLimit::new("orders")),
        format!("{:?}", AdaptiveRate::named("orders")),
        format!("{:?}", RateLimit::named("orders", 3, Duration::from_secs(1))),
        format!("{:?}", Throttle::new("orders")),
    ];
    for text in texts {
        assert!(text.contains("orders") && text.len() < 150, "{text}");
    }
}
