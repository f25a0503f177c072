//! Debian packages: how CI gets programs that are not Rust crates.

use anyhow::ensure;

use crate::run::{output, program, run, works};

/// Installs `packages` unless `what` is installed, if installing is allowed. On a developer's
/// machine it may be missing; in CI it must not.
pub(crate) fn install(
    what: &str,
    packages: &[&str],
    environment: &[(&str, &str)],
    installed: impl Fn() -> bool,
) -> anyhow::Result<()> {
    if installed() {
        return Ok(());
    }
    if is_root()? && works(program("apt-get").arg("--version")) {
        run(program("apt-get").args(["--quiet", "update"]))?;
        let mut install = program("apt-get");
        install.args(["--quiet", "--yes", "--no-install-recommends", "install"]).args(packages);
        run(install.envs(environment.iter().copied()).env("DEBIAN_FRONTEND", "noninteractive"))?;
        ensure!(installed(), "the package is installed, but {what} was not found in its usual place");
        return Ok(());
    }
    ensure!(std::env::var_os("CI").is_none(), "{what} is missing and cannot be installed, and CI tests with it");
    println!("{what} is not installed; the tests with it will be left out");
    Ok(())
}

pub(crate) fn is_root() -> anyhow::Result<bool> {
    Ok(output(program("id").arg("-u"))?.trim() == "0")
}
