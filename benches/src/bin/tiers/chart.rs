//! Lines over an axis, as SVG.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = HEIGHT - 30.0;

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) color: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// The ends of the axes, which begin at 0.
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Behind the numbers of the first axis.
    pub(crate) unit: &'a str,
    pub(crate) lines: &'a [Line],
}

impl Chart<'_> {
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        fs::write(path, self.svg()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{}</text>\n",
            self.title
        );
        let mut x = LEFT;
        for Line { name, color, .. } in self.lines {
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"36\" width=\"12\" height=\"4\" fill=\"{color}\"/>");
            let _ = writeln!(svg, "<text x=\"{}\" y=\"42\" font-size=\"11\">{name}</text>", x + 16.0);
            x += 28.0 + 5.6 * name.len() as f64;
        }
        for part in 0..=5 {
            let share = f64::from(part) / 5.0;
            let (x, y) = (LEFT + (RIGHT - LEFT) * share, BOTTOM - (BOTTOM - TOP) * share);
            let _ = writeln!(svg, "<path d=\"M{LEFT} {y}H{RIGHT}\" stroke=\"#dddddd\"/>");
            let (up, along) = (number(self.y * share), number(self.x * share));
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{up}</text>", LEFT - 6.0, y + 4.0);
            let bottom = BOTTOM + 18.0;
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{bottom}\" text-anchor=\"middle\">{along}{}</text>", self.unit);
        }
        for Line { color, points, .. } in self.lines {
            let mut path = String::new();
            for (x, y) in points {
                let x = LEFT + (RIGHT - LEFT) * x / self.x;
                let y = BOTTOM - (BOTTOM - TOP) * (y / self.y).min(1.0);
                let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            }
            let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>");
        }
        svg + "</svg>\n"
    }
}

fn number(number: f64) -> String {
    if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}
