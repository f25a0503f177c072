//! Chromium and its driver, for the tests that look at a page.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::debian;

/// Where the tests look for the driver.
const VARIABLE: &str = "BUTTRESS_TEST_CHROMEDRIVER";

/// Installs them if they are missing and we may.
pub(crate) fn install() -> anyhow::Result<()> {
    let installed = || env::var_os(VARIABLE).is_some() || driver().is_some();
    debian::install("Chromium", &["chromium", "chromium-driver"], &[], installed)
}

/// Lets the tests know of the driver, if there is one.
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
