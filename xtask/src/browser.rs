//! Chromium and its driver, for the browser tests.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::debian;

/// The environment variable in which the tests expect the driver.
pub(crate) const VARIABLE: &str = "BUTTRESS_TEST_CHROMEDRIVER";

/// Installs Chromium if it is missing and installing is allowed.
pub(crate) fn install() -> anyhow::Result<()> {
    let installed = || env::var_os(VARIABLE).is_some() || driver().is_some();
    debian::install("Chromium", &["chromium", "chromium-driver"], &[], installed)
}

/// Passes the driver to the tests, if there is one.
pub(crate) fn offer(tests: &mut Command) {
    if let (None, Some(driver)) = (env::var_os(VARIABLE), driver()) {
        tests.env(VARIABLE, driver);
    }
}

fn driver() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = env::split_paths(&path).map(|directory| directory.join("chromedriver"));
    found.find(|program| program.is_file())
}
