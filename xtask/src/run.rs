//! Running other programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};

/// The cargo that runs xtask, at the workspace root.
pub(crate) fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = program(&env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    if OFFLINE.load(Ordering::Relaxed) {
        command.env("CARGO_NET_OFFLINE", "true");
    }
    command.args(args);
    command
}

static OFFLINE: AtomicBool = AtomicBool::new(false);

/// Makes every later cargo fail at once where it would retry the network for a minute.
pub(crate) fn go_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    // CI cannot answer prompts, so local runs must not prompt either.
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The result of a step that did not fail.
pub(crate) enum Ran {
    /// Everything was checked.
    All,
    /// Something was missing; the text describes what was skipped because of it. CI fails.
    Without(String),
    /// There is nothing to check, wherever it runs; the text says why.
    Nothing(&'static str),
}

/// Runs a command with its output passed through.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// Runs a command and returns its output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a command runs successfully, to detect optional tools.
pub(crate) fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether this is CI, where nothing may be missing.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some()
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// The command as typed in a shell.
fn show(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        Some(format!("{}='{value}'", name.to_string_lossy()))
    });
    let program = Path::new(command.get_program()).file_name();
    let program = program.unwrap_or(command.get_program()).to_string_lossy().into_owned();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    set.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
}
