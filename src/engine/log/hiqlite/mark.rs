//! The mark: how far this node has acknowledged, kept outside the store, so that a store that lost its end is noticed.
//!
//! One fixed-size record, overwritten in place before anything is acknowledged: that survives the process's death. It is
//! brought to the disk by a task of its own, at most [`SYNC_PAUSE`] later: after a power cut the mark may be that old, which can
//! only make it notice less, never accuse falsely.
//!
//! The same task brings hiqlite's own snapshots to the disk, which hiqlite does not: it cuts its log behind them.

use crate::engine::log::LogError;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// How long a mark may be in the page cache only.
pub(super) const SYNC_PAUSE: Duration = Duration::from_secs(1);

const MAGIC: [u8; 8] = *b"blxmark1";
/// Magic, seq, chain, and the first 8 bytes of the SHA-256 over these.
const SIZE: usize = 8 + 8 + 32 + 8;

/// The open mark file.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: Arc<File>,
    at_open: Option<(u64, [u8; 32])>,
    changed: Arc<Notify>,
    _syncing: AbortOnDropHandle<()>,
}

impl MarkFile {
    /// Opens or makes the mark. `fresh`: the log is new, so there need be none. `accept_loss`: an old one is put aside.
    pub(super) fn open(folder: &Path, fresh: bool, accept_loss: bool) -> Result<MarkFile, LogError> {
        let path = folder.join("mark");
        if accept_loss && path.exists() {
            put_aside(&path)?;
        }
        let at_open = match read(&path)? {
            Read::Mark(seq, chain) => Some((seq, chain)),
            Read::None if fresh || accept_loss => None,
            // The first start died while it wrote its first mark: nothing was acknowledged by then.
            Read::Torn if fresh => None,
            Read::None => return Err(unreadable(&path, "it is missing")),
            Read::Torn | Read::Bad => return Err(unreadable(&path, "its checksum is wrong")),
        };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = Arc::new(file.map_err(|error| failed(&path, &error))?);
        if at_open.is_none() {
            write(&file, 0, [0; 32]).and_then(|()| file.sync_all()).map_err(|error| failed(&path, &error))?;
        }
        let changed = Arc::new(Notify::new());
        let snapshots = folder.join("state_machine").join("snapshots");
        let syncing = AbortOnDropHandle::new(tokio::spawn(sync(file.clone(), snapshots, changed.clone())));
        Ok(MarkFile { file, at_open, changed, _syncing: syncing })
    }

    /// The mark that was there; None when the log is new.
    pub(super) fn at_open(&self) -> Option<(u64, [u8; 32])> {
        self.at_open
    }

    /// Overwrites the mark.
    pub(super) fn set(&self, seq: u64, chain: [u8; 32]) -> Result<(), LogError> {
        write(&self.file, seq, chain)
            .map_err(|error| LogError::Failed(format!("the mark can't be written: {error}")))?;
        self.changed.notify_one();
        Ok(())
    }
}

enum Read {
    None,
    /// No whole mark was ever written: it is short, or a hole that a power cut left.
    Torn,
    Bad,
    Mark(u64, [u8; 32]),
}

fn read(path: &Path) -> Result<Read, LogError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Read::None),
        Err(error) => return Err(failed(path, &error)),
    };
    let torn = bytes.len() < SIZE || bytes.iter().all(|byte| *byte == 0);
    Ok(match parse(&bytes) {
        Some((seq, chain)) => Read::Mark(seq, chain),
        None if torn => Read::Torn,
        None => Read::Bad,
    })
}

fn parse(bytes: &[u8]) -> Option<(u64, [u8; 32])> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (chain, rest) = rest.split_first_chunk::<32>()?;
    let seq = u64::from_le_bytes(*seq);
    (*magic == MAGIC && rest == checksum(seq, *chain)).then_some((seq, *chain))
}

fn checksum(seq: u64, chain: [u8; 32]) -> [u8; 8] {
    let digest = Sha256::new().chain_update(MAGIC).chain_update(seq.to_le_bytes()).chain_update(chain).finalize();
    let mut first = [0; 8];
    first.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    first
}

fn write(file: &File, seq: u64, chain: [u8; 32]) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend(MAGIC);
    bytes.extend(seq.to_le_bytes());
    bytes.extend(chain);
    bytes.extend(checksum(seq, chain));
    file.write_all_at(&bytes, 0)
}

/// Brings marks to the disk, many at once, and new snapshots of the store.
async fn sync(file: Arc<File>, snapshots: PathBuf, changed: Arc<Notify>) {
    let mut synced = BTreeSet::new();
    loop {
        changed.notified().await;
        // Marks come by the thousand a second; the disk gets one of them each second.
        tokio::time::sleep(SYNC_PAUSE).await;
        let (file, snapshots, before) = (file.clone(), snapshots.clone(), std::mem::take(&mut synced));
        let syncing = move || file.sync_data().and_then(|()| sync_new(&snapshots, &before));
        match tokio::task::spawn_blocking(syncing).await {
            Ok(Ok(now)) => synced = now,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the log's mark or a snapshot of its store did not reach the disk")
            }
            Err(_runtime_ends) => return,
        }
    }
}

/// Brings the files of a folder to the disk that were not there `before`; gives all that are there now.
fn sync_new(folder: &Path, before: &BTreeSet<OsString>) -> std::io::Result<BTreeSet<OsString>> {
    let mut now = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        now.insert(entry?.file_name());
    }
    for name in now.difference(before) {
        match File::open(folder.join(name)) {
            Ok(file) => file.sync_all()?,
            // Superseded in this moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !now.is_subset(before) {
        File::open(folder)?.sync_all()?;
    }
    Ok(now)
}

/// Keeps the old mark beside the new one, for whoever wants to know what was lost.
fn put_aside(path: &Path) -> Result<(), LogError> {
    let aside = (1..=u32::MAX)
        .map(|number| PathBuf::from(format!("{}.lost-{number}", path.display())))
        .find(|candidate| !candidate.exists());
    match aside {
        Some(aside) => std::fs::rename(path, aside).map_err(|error| failed(path, &error)),
        None => Ok(()),
    }
}

fn unreadable(path: &Path, what: &str) -> LogError {
    LogError::Damaged {
        path: path.display().to_string(),
        what: format!("the mark can't be relied on: {what}, so nobody can tell whether the log is whole"),
        advice: super::ADVICE.to_owned(),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> LogError {
    LogError::Failed(format!("{}: {error}", path.display()))
}
