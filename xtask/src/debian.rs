//! Debian packages: how CI gets programs that are not Rust crates.

use anyhow::ensure;

use crate::run::{in_ci, output, program, run, works};

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
    let tried = apt_get(packages, environment).and_then(|()| {
        ensure!(installed(), "the package is installed, but the program is not in its usual place");
        Ok(())
    });
    match tried {
        Err(error) if in_ci() => Err(error.context(format!("{what} is missing, and CI tests with it"))),
        Err(error) => {
            println!("{what} is missing ({error:#}); the tests that need it will be left out");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn apt_get(packages: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    ensure!(is_root()? && works(program("apt-get").arg("--version")), "apt-get and root are needed to install it");
    run(program("apt-get").args(["--quiet", "update"]))?;
    let mut install = program("apt-get");
    install.args(["--quiet", "--yes", "--no-install-recommends", "install"]).args(packages);
    run(install.envs(environment.iter().copied()).env("DEBIAN_FRONTEND", "noninteractive"))
}

pub(crate) fn is_root() -> anyhow::Result<bool> {
    Ok(output(program("id").arg("-u"))?.trim() == "0")
}
