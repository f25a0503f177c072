//! Installs what a fresh machine may lack. Rust needs a C compiler to link, which is also enough
//! for SQLite; librdkafka also needs make. The rest is toolchain components that a minimal
//! installation leaves out, PostgreSQL, Chromium, and the dependencies.

use anyhow::Context;

use crate::run::{cargo, program, run, works};
use crate::{browser, postgres};

pub(crate) fn setup() -> anyhow::Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !works(&mut cargo([tool, "--version"])) {
            run(program("rustup").args(["component", "add", component]))
                .with_context(|| format!("{component} is missing and rustup cannot add it"))?;
        }
    }
    postgres::install()?;
    browser::install()?;
    // A separate step, so that a network failure is not mistaken for a failure of the code.
    run(&mut cargo(["fetch"]))
}
