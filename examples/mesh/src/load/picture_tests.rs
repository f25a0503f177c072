use std::time::Duration;

use roxmltree::{Document, Node};

use super::*;
use crate::load::Latencies;
use crate::load::report::{After, Report};

fn report(latencies: &Latencies, target: &str) -> Report {
    Report {
        target: target.to_owned(),
        seed: 1,
        rate: 200.0,
        took_ms: 30_000,
        sent: latencies.count(),
        unsent: 0,
        completed: latencies.count(),
        completed_per_second: 199.9,
        latency: latencies.quantiles(),
        histogram: latencies.buckets(20),
        outcomes: Vec::new(),
        lag: Latencies::default().quantiles(),
        after: After::default(),
        clean_stop: true,
        books: None,
    }
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

fn of_class<'a>(document: &'a Document<'a>, class: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    document.descendants().filter(move |node| node.attribute("class") == Some(class))
}

#[test]
fn every_mark_stands_on_the_bar_of_its_value() {
    let mut latencies = Latencies::default();
    // Most are fast, some slow, and five very slow.
    (0..9_000).for_each(|index| latencies.record(Duration::from_micros(2_000 + index)));
    (0..995).for_each(|index| latencies.record(Duration::from_millis(40 + index / 10)));
    (0..5).for_each(|_| latencies.record(Duration::from_millis(3_000)));
    let report = report(&latencies, "SQLite");
    let svg = histogram(&report);
    let document = Document::parse(&svg).unwrap();
    let bars: Vec<_> = of_class(&document, "bar").collect();
    assert_eq!(bars.len(), report.histogram.iter().filter(|bucket| bucket.count > 0).count());
    let marks: Vec<_> = of_class(&document, "mark").collect();
    assert_eq!(
        marks.iter().filter_map(|mark| mark.attribute("data-mark")).collect::<Vec<_>>(),
        ["p50", "p90", "p99", "p99.9", "max"]
    );
    for mark in &marks {
        let x = number(*mark, "x1");
        let on_a_bar = bars.iter().any(|bar| {
            let from = number(*bar, "x");
            // The gap between two bars counts as part of the left one.
            (from - 0.02..=from + number(*bar, "width") + 1.02).contains(&x)
        });
        assert!(on_a_bar, "{:?}", mark.attribute("data-mark"));
    }
    let places: Vec<_> = marks.iter().map(|mark| number(*mark, "x1")).collect();
    assert!(places.is_sorted() && places[0] < places[4]);
}

#[test]
fn a_power_of_ten_is_as_wide_as_any_other() {
    let scale = Scale { first: 0.0, last: 4.0, most: 1 };
    let widths = [1.0, 10.0, 100.0].map(|ms: f64| scale.x(ms * 10.0) - scale.x(ms));
    assert!(widths.iter().all(|width| (width - widths[0]).abs() < 1e-9), "{widths:?}");
    assert_eq!((scale.x(1.0), scale.x(10_000.0)), (LEFT, RIGHT));
}

#[test]
fn nothing_leaves_the_picture() {
    let cases: [&[u64]; 4] = [&[], &[1], &[120_000_000], &[1, 1_000, 1_000_000, 120_000_000]];
    for micros in cases {
        let mut latencies = Latencies::default();
        micros.iter().for_each(|micros| latencies.record(Duration::from_micros(*micros)));
        let svg = histogram(&report(&latencies, "x"));
        let document = Document::parse(&svg).unwrap();
        for bar in of_class(&document, "bar") {
            assert!(
                number(bar, "x") >= LEFT - 0.01 && number(bar, "x") + number(bar, "width") <= RIGHT + 1.01,
                "{micros:?}"
            );
            assert!(number(bar, "y") >= TOP && number(bar, "height") >= THINNEST, "{micros:?}");
        }
        for text in document.descendants().filter(|node| node.has_tag_name("text") && node.has_attribute("y")) {
            assert!((0.0..HEIGHT).contains(&number(text, "y")), "{micros:?}");
        }
    }
}

#[test]
fn what_somebody_typed_is_text_and_not_markup() {
    let hostile = "http://a/<script>alert(\"&\")</script>\u{0}";
    let svg = histogram(&report(&Latencies::default(), hostile));
    let document = Document::parse(&svg).unwrap();
    assert!(document.descendants().all(|node| !node.has_tag_name("script")));
    assert!(svg.contains("no order was served"));
}

#[test]
fn latencies_are_told_in_the_unit_that_people_would_use() {
    let cases =
        [(0.35, "350 µs"), (1.0, "1 ms"), (2.5, "2.5 ms"), (21.34, "21.3 ms"), (250.0, "250 ms"), (1500.0, "1.5 s")];
    for (ms, text) in cases {
        assert_eq!(millis(ms), text);
    }
}

#[test]
fn the_headline_counts_what_did_not_go_well() {
    use crate::load::report::OutcomeReport;

    let counted = |outcome, count| OutcomeReport {
        outcome,
        latency: Quantiles { count, ..Quantiles::default() },
        reasons: Default::default(),
    };
    let mut report = report(&Latencies::default(), "SQLite");
    (report.sent, report.completed) = (20, 10);
    assert_eq!(summary(&report), "10 of 20 orders completed in 30 s: 199.9 per second");
    let counts = [(Outcome::Accepted, 2), (Outcome::Rejected, 3), (Outcome::Failed, 0), (Outcome::TimedOut, 5)];
    report.outcomes = counts.map(|(outcome, count)| counted(outcome, count)).into();
    report.unsent = 7;
    let all = "10 of 20 orders completed in 30 s: 199.9 per second, 2 accepted, 3 rejected, 5 timed out, 7 NOT SENT";
    assert_eq!(summary(&report), all);
}
