//! Puts the tables into the page.

use std::fs;
use std::path::Path;

use anyhow::Context;

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end -->\n";

/// Replaces what is between the marks, in their order.
pub(crate) fn write(path: &Path, tables: &[String]) -> anyhow::Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut written, mut rest) = (String::new(), page.as_str());
    for table in tables {
        let (before, after) = rest.split_once(BEGIN).context("the page has too few tables")?;
        rest = after.split_once(END).context("a table of the page has no end")?.1;
        written += &format!("{before}{BEGIN}\n{}\n\n{END}", table.trim_end());
    }
    fs::write(path, written + rest).with_context(|| format!("cannot write {}", path.display()))
}
