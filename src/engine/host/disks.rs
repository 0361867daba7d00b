//! Data disks: qcow2 files in the VM's folder, which stay from start to start and go with the VM.

use super::{HostError, command::run};
use async_trait::async_trait;
use std::path::Path;

/// Makes and removes disks.
#[async_trait]
pub trait Disks: Send + Sync + 'static {
    /// Makes a disk of this size, unless it is there. `owner` (uid, gid) is to be able to use it.
    async fn make(&self, path: &Path, bytes: u64, owner: Option<(u32, u32)>) -> Result<(), HostError>;
    /// Removes it, with all that is on it.
    async fn remove(&self, path: &Path) -> Result<(), HostError>;
}

/// For machines that are simulated: nothing is on their disks.
#[derive(Debug, Clone, Copy)]
pub struct NoDisks;

#[async_trait]
impl Disks for NoDisks {
    async fn make(&self, _path: &Path, _bytes: u64, _owner: Option<(u32, u32)>) -> Result<(), HostError> {
        Ok(())
    }

    async fn remove(&self, _path: &Path) -> Result<(), HostError> {
        Ok(())
    }
}

/// By qemu-img.
#[derive(Debug, Clone, Copy)]
pub struct QemuImg;

#[async_trait]
impl Disks for QemuImg {
    async fn make(&self, path: &Path, bytes: u64, owner: Option<(u32, u32)>) -> Result<(), HostError> {
        if path.exists() {
            return Ok(());
        }
        // Under another name until it is whole: a half-made disk is never taken for a disk.
        let partial = path.with_extension("partial");
        let text = partial.to_str().ok_or_else(|| HostError(format!("{}: the path is not UTF-8", path.display())))?;
        run("qemu-img", &["create", "-q", "-f", "qcow2", text, &bytes.to_string()]).await?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&partial, Some(uid), Some(gid)).map_err(|e| HostError::io(text, e))?;
        }
        std::fs::rename(&partial, path).map_err(|e| HostError::io(path.display(), e))
    }

    async fn remove(&self, path: &Path) -> Result<(), HostError> {
        for file in [path.with_extension("partial"), path.to_owned()] {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(HostError::io(file.display(), error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
