//! The example alert rules name metrics that exist.

use std::collections::BTreeSet;
use std::path::Path;

use mesh::mesh::Name;
use serde_json::Value;

use crate::dashboard::observed;
use crate::support::{Shop, tea, until};

/// Functions and words of PromQL in the rules, and Prometheus' own metric.
const WORDS: [&str; 9] = ["and", "by", "increase", "max", "min_over_time", "on", "rate", "sum", "up"];

/// The text without what is between `open` and `close`.
fn without(text: &str, open: &str, close: char) -> String {
    let mut parts = text.split(open);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |kept, part| kept + " " + part.split_once(close).map_or("", |(_, rest)| rest))
}

/// The names of the metrics in an expression: its words outside of label matchers, ranges and
/// groupings.
fn metrics(expr: &str) -> BTreeSet<String> {
    let mut text = expr.to_owned();
    for (open, close) in [("{", '}'), ("[", ']'), ("by (", ')'), ("on (", ')')] {
        text = without(&text, open, close);
    }
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()) && !WORDS.contains(word));
    names.map(str::to_owned).collect()
}

fn rules() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yaml");
    let file: Value = serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn the_names_in_an_expression_are_found() {
    let expr = r#"sum by (service, topic) (rate(bus_lag{group="a_b"}[5m])) > 100 and on (service) saga_stuck > 0"#;
    assert_eq!(metrics(expr), ["bus_lag".to_owned(), "saga_stuck".to_owned()].into());
    assert_eq!(metrics("increase(spans_lost_total[10m]) > 0"), ["spans_lost_total".to_owned()].into());
}

#[tokio::test]
async fn every_alert_names_metrics_that_are_exported_and_what_to_do() {
    let shop = Shop::open_with(observed).await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    let exported = async || {
        let mut names = BTreeSet::new();
        for name in Name::ALL {
            let text = shop.operator(name).text("/metrics").await;
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            names.extend(samples.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())));
        }
        names
    };
    until("the gauges are read", async || {
        let names = exported().await;
        ["bus_lag", "saga_stuck", "outbox_waiting"].iter().all(|name| names.contains(*name))
    })
    .await;
    let exported = exported().await;
    let rules = rules();
    assert!(rules.len() >= 10, "{}", rules.len());
    for rule in rules {
        let named = metrics(rule["expr"].as_str().unwrap());
        assert!(!named.is_empty() || rule["expr"].as_str().unwrap().starts_with("up "), "{rule}");
        for name in named {
            assert!(exported.contains(&name), "{}: no metric {name} in {exported:#?}", rule["alert"]);
        }
        for text in [&rule["annotations"]["summary"], &rule["annotations"]["runbook"], &rule["labels"]["severity"]] {
            assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{rule}");
        }
    }
}
