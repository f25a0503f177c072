//! The latencies as a picture: one SVG file without dependencies.
//!
//! Written by hand, because it consists of some rectangles, lines and labels. A plotting library
//! would add a font stack and more crates than the mesh's front end, and a template would hide the
//! arithmetic.

use std::fmt::{self, Write};

use super::latency::{Bucket, Quantiles};
use super::outcome::Outcome;
use super::report::Report;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
/// Edges of the plot.
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 36.0;
const TOP: f64 = 182.0;
const BOTTOM: f64 = HEIGHT - 86.0;
/// Height of one row of labels above the plot. Labels are placed in rows, so that they do not
/// overlap.
const ROW: f64 = 17.0;
/// Minimum height of a bar: one order in ten thousand would be invisible otherwise, and the tail
/// matters most.
const THINNEST: f64 = 2.0;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#24292f}\
.title{font-size:22px;font-weight:600}.sub{font-size:14px;fill:#57606a}\
.tick{font-size:12px;fill:#57606a}.axis{font-size:13px;fill:#24292f}.label{font-size:12.5px;font-weight:600}\
.grid{stroke:#eaeef2}.frame{stroke:#8c959f;fill:none}.bar{fill:#4c8dd6}\
.mark{stroke-width:1.5;stroke-dasharray:5 3}";

/// Draws the latencies of served orders as an SVG document.
pub fn histogram(report: &Report) -> String {
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut svg, report);
    svg
}

fn draw(svg: &mut String, report: &Report) -> fmt::Result {
    let Report { rate, target, latency, histogram, .. } = report;
    let title = format!("Latency of orders at {} per second", plain(*rate));
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#
    )?;
    writeln!(svg, "<title>{}</title>\n<style>{STYLE}</style>", escape(&title))?;
    writeln!(svg, r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##)?;
    text(svg, "title", LEFT, 40.0, "start", &title)?;
    text(svg, "sub", LEFT, 63.0, "start", target)?;
    text(svg, "sub", LEFT, 83.0, "start", &summary(report))?;
    let scale = Scale::new(histogram);
    axes(svg, &scale)?;
    for bucket in histogram.iter().filter(|bucket| bucket.count > 0) {
        let (x, end) = (scale.x(bucket.from_ms), scale.x(bucket.to_ms));
        let height = scale.height(bucket.count).max(THINNEST);
        let (y, width) = (BOTTOM - height, (end - x - 1.0).max(1.0));
        writeln!(
            svg,
            r#"<rect class="bar" x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}"><title>{} to {}: {} orders</title></rect>"#,
            millis(bucket.from_ms),
            millis(bucket.to_ms),
            bucket.count,
        )?;
    }
    marks(svg, &scale, latency)?;
    let foot = "from the time an order was due to its answer; rejected and failed orders are not in it";
    text(svg, "sub", LEFT, HEIGHT - 18.0, "start", foot)?;
    writeln!(svg, "</svg>")
}

fn summary(report: &Report) -> String {
    let Report { sent, unsent, completed, completed_per_second, took_ms, .. } = report;
    let seconds = plain((*took_ms as f64 / 100.0).round() / 10.0);
    let mut summary =
        format!("{completed} of {sent} orders completed in {seconds} s: {completed_per_second:.1} per second");
    for outcome in [Outcome::Accepted, Outcome::Rejected, Outcome::Failed, Outcome::TimedOut] {
        let count = report.count(outcome);
        if count > 0 {
            let _ = write!(summary, ", {count} {}", outcome.as_str());
        }
    }
    if *unsent > 0 {
        let _ = write!(summary, ", {unsent} NOT SENT");
    }
    summary
}

/// Maps milliseconds and counts to pixels.
struct Scale {
    /// Exponents of ten at the left and right edge of the plot.
    first: f64,
    last: f64,
    most: u64,
}

impl Scale {
    fn new(histogram: &[Bucket]) -> Self {
        let first = histogram.first().map_or(0.0, |bucket| bucket.from_ms.log10());
        let last = histogram.last().map_or(2.0, |bucket| bucket.to_ms.log10());
        // A margin, and at least one decade; otherwise a single bar would fill the plot.
        let (first, last) = (first - 0.1, last + 0.1);
        let most = histogram.iter().map(|bucket| bucket.count).max().unwrap_or(0).max(1);
        Self { first, last: last.max(first + 1.0), most }
    }

    fn x(&self, ms: f64) -> f64 {
        let share = (ms.max(0.001).log10() - self.first) / (self.last - self.first);
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn height(&self, count: u64) -> f64 {
        count as f64 / self.most as f64 * (BOTTOM - TOP) * 0.96
    }

    /// 1, 2 and 5 times each power of ten in the visible range.
    fn ticks(&self) -> Vec<f64> {
        let powers = (self.first.floor() as i32)..=(self.last.ceil() as i32);
        let ticks = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        ticks.filter(|ms| (self.first..=self.last).contains(&ms.log10())).collect()
    }

    /// About five round numbers.
    fn counts(&self) -> Vec<u64> {
        let rough = (self.most as f64 / 5.0).max(1.0);
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough).unwrap_or(rough);
        (0..).map(|index| (f64::from(index) * step) as u64).take_while(|count| *count <= self.most).collect()
    }
}

fn axes(svg: &mut String, scale: &Scale) -> fmt::Result {
    for count in scale.counts() {
        let y = BOTTOM - scale.height(count);
        writeln!(svg, r#"<line class="grid" x1="{LEFT}" y1="{y:.2}" x2="{RIGHT}" y2="{y:.2}"/>"#)?;
        text(svg, "tick", LEFT - 8.0, y + 4.0, "end", &count.to_string())?;
    }
    // Skips labels that would overlap, for any number of decades.
    let mut free = f64::MIN;
    for ms in scale.ticks() {
        let (x, label) = (scale.x(ms), millis(ms));
        writeln!(svg, r#"<line class="grid" x1="{x:.2}" y1="{TOP}" x2="{x:.2}" y2="{BOTTOM}"/>"#)?;
        let half = width_of(&label) / 2.0;
        if x - half > free {
            text(svg, "tick", x, BOTTOM + 19.0, "middle", &label)?;
            free = x + half + 6.0;
        }
    }
    let (width, height) = (RIGHT - LEFT, BOTTOM - TOP);
    writeln!(svg, r#"<rect class="frame" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>"#)?;
    text(svg, "axis", f64::midpoint(LEFT, RIGHT), BOTTOM + 43.0, "middle", "latency (logarithmic)")?;
    let middle = f64::midpoint(TOP, BOTTOM);
    writeln!(
        svg,
        r#"<text class="axis" text-anchor="middle" transform="translate(24 {middle}) rotate(-90)">orders</text>"#
    )
}

fn marks(svg: &mut String, scale: &Scale, latency: &Quantiles) -> fmt::Result {
    if latency.count == 0 {
        return text(
            svg,
            "axis",
            f64::midpoint(LEFT, RIGHT),
            f64::midpoint(TOP, BOTTOM),
            "middle",
            "no order was served",
        );
    }
    let marks = [
        ("p50", latency.p50_ms, "#1a7f37"),
        ("p90", latency.p90_ms, "#9a6700"),
        ("p99", latency.p99_ms, "#bc4c00"),
        ("p99.9", latency.p999_ms, "#cf222e"),
        ("max", latency.max_ms, "#57606a"),
    ];
    // Each label is left of its line, one row above the lines that it would otherwise cross.
    let mut placed: Vec<(f64, usize)> = Vec::new();
    for (name, ms, colour) in marks {
        let (x, label) = (scale.x(ms), format!("{name} {}", millis(ms)));
        let left = x - width_of(&label) - 12.0;
        let row = placed.iter().filter(|(other, _)| *other > left).map(|(_, row)| row + 1).max().unwrap_or(0);
        placed.push((x, row));
        let y = TOP - 8.0 - row as f64 * ROW;
        writeln!(
            svg,
            r#"<line class="mark" data-mark="{name}" x1="{x:.2}" y1="{:.2}" x2="{x:.2}" y2="{BOTTOM}" stroke="{colour}"/>"#,
            y - 10.0
        )?;
        writeln!(
            svg,
            r#"<text class="label" x="{:.2}" y="{y:.2}" text-anchor="end" style="fill:{colour}">{label}</text>"#,
            x - 5.0
        )?;
    }
    Ok(())
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) -> fmt::Result {
    writeln!(svg, r#"<text class="{class}" x="{x:.2}" y="{y:.2}" text-anchor="{anchor}">{}</text>"#, escape(text))
}

/// An estimate: there is no font to measure with.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 7.2
}

/// Formats a latency with a suitable unit.
fn millis(ms: f64) -> String {
    let digits = |value: f64| match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{:.1}", value),
        value => format!("{value:.2}"),
    };
    let (value, unit) = match ms {
        ms if ms >= 1000.0 => (ms / 1000.0, "s"),
        ms if ms >= 1.0 => (ms, "ms"),
        ms => (ms * 1000.0, "µs"),
    };
    let value = digits(value);
    let value = if value.contains('.') { value.trim_end_matches('0').trim_end_matches('.') } else { &value };
    format!("{value} {unit}")
}

/// Formats without a trailing `.0`.
fn plain(value: f64) -> String {
    format!("{value}")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Control characters are not allowed in XML, not even escaped.
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
