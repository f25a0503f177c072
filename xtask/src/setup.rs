//! What a fresh machine may lack. Rust itself needs a C compiler to link with; SQLite needs no more
//! than that, and librdkafka make. What is left are parts of the toolchain that a minimal
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
    // A step of its own, so that a network that fails is not mistaken for code that fails.
    run(&mut cargo(["fetch"]))
}
