//! Room on the disk. hiqlite writes its log through a memory map of a sparse file: a full disk there is SIGBUS, the end of the
//! process. So writes are refused while less than a reserve is free.

use std::path::Path;

/// How much must stay free: two files of the write-ahead log (16 MiB each), a snapshot of the database beside the database, and what
/// others write to the same disk between our look and our write.
pub const DISK_RESERVE_BYTES: u64 = 128 * 1024 * 1024;

/// With less than this left a member ends before the kernel ends it: the rest of one file of the write-ahead log, what SQLite writes for it,
/// and what comes from the others until it has ended.
pub const DISK_LEAST_BYTES: u64 = 48 * 1024 * 1024;

/// How much room there is for the log. The sentences are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Enough,
    /// Less than the reserve: nothing is written through this node.
    Little(String),
    /// So little that what comes from the others may not fit.
    None(String),
}

impl Room {
    pub(super) fn of(folder: &Path, reserve_bytes: u64) -> Room {
        match (check(folder, reserve_bytes), check(folder, DISK_LEAST_BYTES.min(reserve_bytes))) {
            (Ok(()), _) => Room::Enough,
            (Err(why), Ok(())) => Room::Little(why),
            (Err(why), Err(_)) => Room::None(why),
        }
    }

    /// What to tell people, if there is not enough.
    pub fn want(self) -> Option<String> {
        match self {
            Room::Enough => None,
            Room::Little(why) | Room::None(why) => Some(why),
        }
    }
}

/// Is there room for writes? The error is a sentence.
pub fn check(folder: &Path, reserve_bytes: u64) -> Result<(), String> {
    let stat = rustix::fs::statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes >= reserve_bytes {
        return Ok(());
    }
    const MIB: u64 = 1024 * 1024;
    Err(format!(
        "no space left for the log: {} MiB are free where {} is, and {} MiB must be; free some, and writes go on",
        free_bytes / MIB,
        folder.display(),
        reserve_bytes.div_ceil(MIB)
    ))
}
