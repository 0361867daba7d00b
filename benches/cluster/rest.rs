//! What a cluster takes while nobody asks anything of it: memory and disk, at the beginning and some minutes later.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Resident memory, in KiB.
pub fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What a folder takes of the disk, in KiB. What vanishes meanwhile is not there.
pub fn disk_kib(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_kib(&entry.path()),
        Ok(metadata) => metadata.blocks() / 2,
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}
