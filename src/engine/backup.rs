//! A backup: the whole state at one sequence number, as bytes that a new cluster can begin from.
//!
//! ```text
//! magic[8] head[2 + n] state[...] sha256[32]
//! ```
//! `head` is its length (big-endian) and a [`Head`] in postcard's encoding; `state` is the state in postcard's encoding, compressed with zstd;
//! the hash is over all that comes before it. What is damaged, cut or somebody else's is found out before any of it is believed. There is no
//! key and no secret in it: the cluster has none in its state.
//!
//! It is written as it is read: a version of the state costs nothing to keep, and no more than a few pieces are ever in memory.

use super::state::{STATE_FORMAT, State};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// What it begins with: what it is, and in which form.
const MAGIC: &[u8; 8] = b"blxback1";
/// Length of the hash.
const HASH_BYTES: usize = 32;
/// The most backups that are read from one node at a time: each has a thread and some MiB.
pub(super) const BACKUPS_MAX: usize = 4;
/// The size of a piece, in bytes: what a read over 9P or FUSE takes at most.
const PIECE_BYTES: usize = 64 * 1024;
/// How many pieces wait to be read.
const PIECES_MAX: usize = 4;
/// A backup of which nobody has read a piece for so long is given up: its thread is for others.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// zstd's own default: more gains little on this data.
const COMPRESSION_LEVEL: i32 = 3;
/// The longest head, in bytes: two names.
const HEAD_BYTES_MAX: usize = 1024;
/// The largest backup that is taken, in bytes. It is held in memory, by a process that does nothing else.
pub const BACKUP_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// The largest state that is taken, in bytes: 2 KiB for each of 2,000,000 VMs.
const STATE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The format of the state.
    pub state_format: u8,
    /// The cluster's name.
    pub cluster: String,
    /// The last entry that is in it.
    pub seq: u64,
    /// The cluster's time then, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The version of the blixard that wrote it.
    pub release: String,
}

/// Why bytes are no backup that can be used. Each message says what is so.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something else.
    #[error(
        "invalid: this is no backup of blixard's: it does not begin as one; make one with: cat /n/blixard/backup > FILE"
    )]
    Foreign,
    /// Cut or altered.
    #[error("invalid: this backup is damaged: {0}; nothing of it is used: take another copy")]
    Damaged(String),
    /// From another version.
    #[error(
        "invalid version: this backup of cluster '{}' was made by blixard {} with states of format {}, and this blixard knows format \
         {STATE_FORMAT}: use that version, and upgrade afterwards", .0.cluster, .0.release, .0.state_format
    )]
    Format(Head),
    /// Too much.
    #[error("invalid: this backup is too long: it has more than {0} bytes, and no more are taken")]
    TooLong(u64),
    /// It can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    into: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.into.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// Writes a backup of this state.
///
/// # Errors
/// Those of the writer; a state before its cluster's first entry.
pub fn write(state: &State, into: impl Write) -> io::Result<()> {
    let cluster = state.cluster().ok_or_else(|| io::Error::other("there is no cluster yet"))?;
    let head = Head {
        state_format: STATE_FORMAT,
        cluster: cluster.to_owned(),
        seq: state.seq(),
        at_ms: state.now().millis(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let head = postcard::to_stdvec(&head).map_err(io::Error::other)?;
    let mut hashing = Hashing { into, hash: Sha256::new() };
    hashing.write_all(MAGIC)?;
    hashing.write_all(&u16::try_from(head.len()).map_err(io::Error::other)?.to_be_bytes())?;
    hashing.write_all(&head)?;
    let mut packing = zstd::Encoder::new(&mut hashing, COMPRESSION_LEVEL)?;
    // Piece by piece: postcard writes each number by itself.
    let mut gathering = io::BufWriter::with_capacity(PIECE_BYTES, &mut packing);
    postcard::to_io(state, &mut gathering).map_err(io::Error::other)?;
    gathering.flush()?;
    drop(gathering);
    packing.finish()?;
    let hash = hashing.hash.clone().finalize();
    hashing.into.write_all(&hash)?;
    hashing.into.flush()
}

/// Reads a backup, all of it or nothing.
///
/// # Errors
/// See [`BackupError`].
pub fn read(from: impl Read) -> Result<(Head, State), BackupError> {
    let mut bytes = Vec::new();
    from.take(BACKUP_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BACKUP_BYTES_MAX {
        return Err(BackupError::TooLong(BACKUP_BYTES_MAX));
    }
    let damaged = |what: &str| BackupError::Damaged(what.to_owned());
    // Of a file that is too short for the magic nobody can say whose it is.
    if !bytes.starts_with(MAGIC) {
        return Err(BackupError::Foreign);
    }
    let (all, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or_else(|| damaged("it is cut"))?;
    if Sha256::digest(all).as_slice() != hash {
        return Err(damaged("its hash is not that of what is in it: it was cut or altered"));
    }
    let body = all.get(MAGIC.len()..).unwrap_or_default();
    let (length, rest) = body.split_first_chunk::<2>().ok_or_else(|| damaged("it has no head"))?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (head, packed) =
        rest.split_at_checked(length).filter(|_| length <= HEAD_BYTES_MAX).ok_or_else(|| damaged("its head is cut"))?;
    let head: Head = postcard::from_bytes(head).map_err(|error| damaged(&error.to_string()))?;
    if head.state_format != STATE_FORMAT {
        return Err(BackupError::Format(head));
    }
    let mut unpacked = Vec::new();
    let unpacking = zstd::Decoder::new(packed).map_err(|error| damaged(&error.to_string()))?;
    let read = unpacking.take(STATE_BYTES_MAX + 1).read_to_end(&mut unpacked);
    read.map_err(|error| damaged(&error.to_string()))?;
    if unpacked.len() as u64 > STATE_BYTES_MAX {
        return Err(BackupError::TooLong(STATE_BYTES_MAX));
    }
    let state: State = match postcard::take_from_bytes(&unpacked) {
        Ok((state, [])) => state,
        Ok((_, more)) => return Err(damaged(&format!("{} bytes too many", more.len()))),
        Err(error) => return Err(damaged(&error.to_string())),
    };
    state.check().map_err(|broken| BackupError::Damaged(format!("its state can't be: {broken}")))?;
    if (state.seq(), state.cluster()) != (head.seq, Some(head.cluster.as_str())) {
        return Err(damaged("its head is about another state"));
    }
    Ok((head, state))
}

/// A piece of a backup on its way to its reader; the last one says so, since a channel that has ended may have ended too early.
enum Piece {
    Bytes(Bytes),
    End,
}

/// A backup that is being read.
#[derive(Debug)]
pub struct BackupReader {
    pieces: mpsc::Receiver<Piece>,
    pending: Bytes,
    ended: bool,
}

/// Sends what is written to it in pieces.
struct Pieces {
    gathered: BytesMut,
    to: mpsc::Sender<Piece>,
    runtime: Handle,
}

impl Pieces {
    fn send(&self, piece: Piece) -> io::Result<()> {
        // A thread of the runtime's for what blocks: nothing else waits for it.
        self.runtime
            .block_on(self.to.send_timeout(piece, READ_WITHIN))
            .map_err(|_gone_or_late| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(bytes.get(..count).unwrap_or(bytes));
        if self.gathered.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.gathered.split().freeze();
        if piece.is_empty() { Ok(()) } else { self.send(Piece::Bytes(piece)) }
    }
}

impl BackupReader {
    /// Begins to write a backup of this state, on a thread of the runtime's that is for what blocks; it ends with the reader.
    pub(super) fn begin(state: Arc<State>, permit: OwnedSemaphorePermit) -> BackupReader {
        let (to, pieces) = mpsc::channel(PIECES_MAX);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut out = Pieces { gathered: BytesMut::with_capacity(PIECE_BYTES), to, runtime };
            let written = write(&state, &mut out).and_then(|()| out.send(Piece::End));
            if let Err(error) = written {
                tracing::debug!(%error, seq = state.seq(), "a backup was not read to its end");
            }
        });
        BackupReader { pieces, pending: Bytes::new(), ended: false }
    }

    /// Up to `count` bytes more; none at its end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// It ended before its end: nobody had read for too long, or the state could not be written.
    pub async fn read(&mut self, count: usize) -> Result<Bytes, String> {
        while self.pending.is_empty() && !self.ended {
            match self.pieces.recv().await {
                Some(Piece::Bytes(bytes)) => self.pending = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(format!(
                        "interrupted: this backup was given up before its end, as one is that nobody reads for {} s: begin anew",
                        READ_WITHIN.as_secs()
                    ));
                }
            }
        }
        Ok(self.pending.split_to(count.min(self.pending.len())))
    }
}
