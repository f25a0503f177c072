//! Who uses a directory of SQLite files: one mesh, or services that run alone.
//!
//! The services of a mesh share files on purpose, such as the event log, and each may run alone.
//! But two meshes in one directory would each take the other's orders, and customers of one would
//! look for them at the other. So the processes agree by an advisory lock on a file in the
//! directory, which ends with the process, however it ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;

use super::Files;

/// Name of the file that is locked. Nothing is written to it.
const FILE: &str = "mesh.lock";

/// Keeps other processes out of a directory until it is dropped.
#[derive(Debug)]
pub struct InUse {
    _locked: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    #[error(
        "data-dir: {} is used by another mesh, or by services that run alone: stop them, or choose another directory",
        .0.display()
    )]
    Others(PathBuf),
    #[error("data-dir: {} is used by a whole mesh, such as `mesh up`: stop it, or choose another directory", .0.display())]
    Mesh(PathBuf),
    #[error("data-dir: cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
}

impl Files {
    /// Reserves the directory for one whole mesh.
    pub fn for_a_mesh(&self) -> Result<InUse, InUseError> {
        self.reserve(File::try_lock, InUseError::Others)
    }

    /// Reserves the directory for services that run alone. Any number of them may share it.
    pub fn for_a_service(&self) -> Result<InUse, InUseError> {
        self.reserve(File::try_lock_shared, InUseError::Mesh)
    }

    fn reserve(
        &self,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
        refused: impl FnOnce(PathBuf) -> InUseError,
    ) -> Result<InUse, InUseError> {
        let path = self.0.join(FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| InUseError::Lock(path.clone(), error))?;
        match lock(&file) {
            Ok(()) => Ok(InUse { _locked: file }),
            Err(TryLockError::WouldBlock) => Err(refused(self.0.clone())),
            Err(TryLockError::Error(error)) => Err(InUseError::Lock(path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_mesh_or_any_number_of_services() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files(dir.path().to_owned());
        let mesh = files.for_a_mesh().unwrap();
        assert!(matches!(files.for_a_mesh(), Err(InUseError::Others(_))));
        assert!(matches!(files.for_a_service(), Err(InUseError::Mesh(_))));
        drop(mesh);
        let services = [files.for_a_service().unwrap(), files.for_a_service().unwrap()];
        let refused = files.for_a_mesh().unwrap_err().to_string();
        assert!(refused.contains(dir.path().to_str().unwrap()), "{refused}");
        drop(services);
        drop(files.for_a_mesh().unwrap());
        assert!(matches!(Files(dir.path().join("gone")).for_a_mesh(), Err(InUseError::Lock(..))));
    }
}
