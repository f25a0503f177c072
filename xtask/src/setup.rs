//! Installs what a fresh machine may lack. Rust needs a C compiler to link, which is also enough
//! for SQLite; librdkafka also needs make. The rest is toolchain components that a minimal
//! installation leaves out, PostgreSQL, Chromium, and the dependencies.

use anyhow::{Context, ensure};

use crate::run::{cargo, go_offline, program, run, works};
use crate::{browser, debian, postgres};

/// Installs all that it can, and names what it cannot.
pub(crate) fn setup() -> anyhow::Result<()> {
    let done = [
        component("fmt", "rustfmt"),
        component("clippy", "clippy"),
        // For the feature `kafka-tls`.
        debian::install("OpenSSL", &["libssl-dev", "pkg-config"], &[], openssl),
        postgres::install(),
        browser::install(),
        // A part of its own, so that a network failure is not mistaken for a failure of the code.
        run(&mut cargo(["fetch"])).inspect_err(|_| go_offline()),
    ];
    let failed: Vec<_> = done.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn openssl() -> bool {
    works(program("pkg-config").args(["--exists", "openssl"]))
}

fn component(tool: &str, component: &str) -> anyhow::Result<()> {
    if works(&mut cargo([tool, "--version"])) {
        return Ok(());
    }
    run(program("rustup").args(["component", "add", component]))
        .with_context(|| format!("{component} is missing and rustup cannot add it"))
}
