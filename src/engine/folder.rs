//! The data folder: for one process at a time, for its owner alone; it counts the starts.

use crate::durable;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why the data folder can't be used. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it.
    #[error(
        "the data folder {path} is busy: blixard with pid {pid} is using it; stop that one, or choose another --data"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the other one wrote into the lock file.
        pid: String,
    },
    /// It belongs to somebody else.
    #[error(
        "permission denied: the data folder {path} belongs to uid {owner}, and this is uid {uid}; run as its owner, or choose another --data"
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// A file of ours has something else in it.
    #[error(
        "{path} is invalid: it should be a number, the count of starts, and is {found:?}; write a number higher than any before"
    )]
    Boot {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The system refused.
    #[error("the data folder can't be used: {path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The data folder, locked for as long as this lives.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    boot: u64,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if need be (0700), locks it, and counts this start.
    pub fn open(path: &Path) -> Result<DataFolder, FolderError> {
        let failed = |error| FolderError::Io { path: path.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        make_private(&path)?;
        let lock = lock(&path)?;
        let boot = count_start(&path)?;
        Ok(DataFolder { path, boot, _lock: lock })
    }

    /// Where it is: absolute, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of this start: 1 the first time, higher each time.
    pub fn boot(&self) -> u64 {
        self.boot
    }
}

/// Secrets and guests' disks are in it: nobody else may look.
fn make_private(path: &Path) -> Result<(), FolderError> {
    let failed = |error| FolderError::Io { path: path.to_owned(), error };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid {
        return Err(FolderError::Owner { path: path.to_owned(), owner: metadata.uid(), uid });
    }
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// Takes the lock; the kernel gives it back when the process ends, however it ends.
fn lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join("lock");
    let failed = |error| FolderError::Io { path: path.clone(), error };
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            return Err(FolderError::InUse { path: folder.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Reads the number of the last start, and writes the next one so that it is there whatever happens after.
fn count_start(folder: &Path) -> Result<u64, FolderError> {
    let path = folder.join("boot");
    let failed = |error| FolderError::Io { path: path.clone(), error };
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u64>() {
            Ok(last) if last < u64::MAX => last,
            _ => return Err(FolderError::Boot { path, found: text.trim().to_owned() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    let boot = last + 1;
    durable::replace(&path, 0o600, format!("{boot}\n").as_bytes()).map_err(failed)?;
    Ok(boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_its_starts_and_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        assert_eq!(DataFolder::open(&path).unwrap().boot(), 1);
        let folder = DataFolder::open(&path).unwrap();
        assert_eq!(folder.boot(), 2);
        assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn is_for_one_at_a_time_and_says_for_whom() {
        let parent = tempfile::tempdir().unwrap();
        let _first = DataFolder::open(parent.path()).unwrap();
        let error = DataFolder::open(parent.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("busy"), "{error}");
    }

    #[test]
    fn a_count_that_is_none_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("boot"), "three\n").unwrap();
        let error = DataFolder::open(parent.path()).unwrap_err().to_string();
        assert!(error.contains("three") && error.contains("invalid"), "{error}");
        std::fs::write(parent.path().join("boot"), "").unwrap();
        assert!(DataFolder::open(parent.path()).is_err());
    }

    #[test]
    fn a_file_in_its_place_is_an_error_that_names_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        std::fs::write(&path, "").unwrap();
        let error = DataFolder::open(&path).unwrap_err().to_string();
        assert!(error.contains("data"), "{error}");
    }

    #[test]
    fn somebody_elses_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        std::fs::create_dir(&path).unwrap();
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a folder to somebody else");
            return;
        }
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        let error = DataFolder::open(&path).unwrap_err().to_string();
        assert!(error.contains("uid 4711") && error.contains("permission"), "{error}");
    }
}
