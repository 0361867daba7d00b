//! Room on the disk. hiqlite writes its log through a memory map of a sparse file: a full disk there is SIGBUS, the end of the
//! process. So writes are refused while less than a reserve is free.

use std::path::Path;

/// How much must stay free: two files of the write-ahead log (16 MiB each), a snapshot of the database beside the database, and what
/// others write to the same disk between our look and our write.
pub const DISK_RESERVE_BYTES: u64 = 128 * 1024 * 1024;

/// Is there room for writes? The error is a sentence.
pub(super) fn check(folder: &Path, reserve_bytes: u64) -> Result<(), String> {
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
