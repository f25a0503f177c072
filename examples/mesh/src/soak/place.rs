//! The directories of a soak: logs, clocks, and SQLite's files on a small disk of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use tempfile::TempDir;

/// Size of the small disk in MiB: enough for an hour of orders, and filled within a second.
const DISK_MIB: u32 = 512;

#[derive(Debug)]
pub(super) struct Place {
    /// The logs and the clocks.
    pub(super) dir: PathBuf,
    /// SQLite's files.
    pub(super) data: PathBuf,
    /// Whether `data` is a file system of its own, which can be filled.
    pub(super) small_disk: Result<(), String>,
    temporary: Option<TempDir>,
}

impl Place {
    /// Creates the directories, and mounts the small disk if that is allowed.
    pub(super) fn new(dir: Option<PathBuf>, files: bool) -> anyhow::Result<Self> {
        let temporary = dir.is_none().then(|| tempfile::Builder::new().prefix("mesh-soak-").tempdir()).transpose();
        let temporary = temporary.context("cannot create a temporary directory")?;
        let dir = dir.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
        let data = dir.join("data");
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let small_disk = if files { mount(&data) } else { Err("the databases are on a server".to_owned()) };
        Ok(Self { dir, data, small_disk, temporary })
    }

    /// Unmounts the disk. Removes a temporary directory, or keeps it with the databases.
    pub(super) fn finish(mut self, right: bool) -> PathBuf {
        if self.small_disk.is_ok() {
            if !right {
                keep(&self.data, &self.dir.join("databases"));
            }
            unmount(&self.data);
            self.small_disk = Err("unmounted".to_owned());
        }
        match self.temporary.take() {
            Some(temporary) if !right => temporary.keep(),
            _ => self.dir.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.small_disk.is_ok() {
            unmount(&self.data);
        }
    }
}

fn mount(data: &Path) -> Result<(), String> {
    let size = format!("size={DISK_MIB}m");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(data).output();
    match mounted {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("a tmpfs cannot be mounted, which root could: {}", said.trim()))
        }
        Err(error) => Err(format!("there is no `mount`: {error}")),
    }
}

fn unmount(data: &Path) {
    // Lazy, because a process that did not stop may still have files open.
    let unmounted = Command::new("umount").arg("--lazy").arg(data).stderr(Stdio::null()).status();
    if !unmounted.is_ok_and(|status| status.success()) {
        eprintln!("{} is still mounted", data.display());
    }
}

/// Copies the databases off the disk that will be unmounted.
fn keep(data: &Path, to: &Path) {
    let copied = fs::create_dir_all(to).and_then(|()| {
        for entry in fs::read_dir(data)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    });
    if let Err(error) = copied {
        eprintln!("the databases could not be kept: {error}");
    }
}
