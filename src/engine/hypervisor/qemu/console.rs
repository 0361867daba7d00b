//! The serial console: live to any number of readers, and its past in a file of bounded size.
//!
//! QEMU appends everything to the file itself, also while we are away. We are always connected, and whenever the file has grown
//! by a part of what is kept, the blocks before that are given back (a hole): nothing is lost between, as it
//! would be by rewriting the file. While we are away nobody punches: a guest that chatters then fills as much as it
//! says.

use super::files;
use crate::engine::hypervisor::{CONSOLE_LOG_BYTES_MAX, Console, HypervisorError};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};
use tokio_util::task::AbortOnDropHandle;

/// Pieces of output that a slow reader may be behind. A serial port's are a few bytes each, so these are some dozen KiB; at the
/// very most [`PIECE_BYTES_MAX`] each.
const PIECES_MAX: usize = 4096;
/// A piece of output, in bytes.
const PIECE_BYTES_MAX: usize = 4096;
/// Pieces typed and not yet taken by the guest.
const TYPED_MAX: usize = 16;
/// The file is trimmed after so much output, in bytes.
const TRIM_EVERY_BYTES: u64 = CONSOLE_LOG_BYTES_MAX / 4;

/// The connection to a console.
#[derive(Debug)]
pub(super) struct ConsoleLine {
    output: broadcast::Sender<Bytes>,
    input: mpsc::Sender<Bytes>,
    _task: AbortOnDropHandle<()>,
}

impl ConsoleLine {
    pub(super) fn new(stream: UnixStream, log: PathBuf) -> ConsoleLine {
        let (output, _) = broadcast::channel(PIECES_MAX);
        let (input, typed) = mpsc::channel(TYPED_MAX);
        let task = tokio::spawn(carry(stream, log, output.clone(), typed));
        ConsoleLine { output, input, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn open(&self) -> Result<Console, HypervisorError> {
        if self.input.is_closed() {
            return Err(HypervisorError::Gone);
        }
        Ok(Console { output: self.output.subscribe(), input: self.input.clone() })
    }
}

async fn carry(stream: UnixStream, log: PathBuf, output: broadcast::Sender<Bytes>, mut typed: mpsc::Receiver<Bytes>) {
    trim(&log);
    let (mut reader, mut writer) = stream.into_split();
    let printing = async {
        let mut since_trim = 0;
        let mut buffer = vec![0; PIECE_BYTES_MAX];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            let piece = buffer.get(..n).unwrap_or_default();
            // Nobody reading is no fault.
            let _ = output.send(Bytes::copy_from_slice(piece));
            since_trim += piece.len() as u64;
            if since_trim >= TRIM_EVERY_BYTES {
                since_trim = 0;
                trim(&log);
            }
        }
    };
    let typing = async {
        while let Some(piece) = typed.recv().await {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = printing => {}
        () = typing => {}
    }
}

/// Gives back the blocks of all but the last [`CONSOLE_LOG_BYTES_MAX`] bytes.
fn trim(log: &Path) {
    let punch = || -> std::io::Result<()> {
        let file = files::open(log, std::fs::File::options().write(true))?;
        let surplus = file.metadata()?.len().saturating_sub(CONSOLE_LOG_BYTES_MAX);
        if surplus > 0 {
            fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, surplus)?;
        }
        Ok(())
    };
    match punch() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(log = %log.display(), %error, "the console's log can't be trimmed and will grow");
        }
        _ => {}
    }
}

/// The last [`CONSOLE_LOG_BYTES_MAX`] bytes of output, from the beginning of a line if anything is left out.
pub(super) fn past(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = match files::open(log, std::fs::File::options().read(true)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let surplus = file.metadata()?.len().saturating_sub(CONSOLE_LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(surplus))?;
    let mut text = Vec::new();
    file.take(CONSOLE_LOG_BYTES_MAX).read_to_end(&mut text)?;
    if surplus > 0 {
        let line = text.iter().position(|b| *b == b'\n').map_or(0, |end| end + 1);
        text.drain(..line);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_log_is_bounded_on_disk_and_in_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert_eq!(past(&log).unwrap(), b"");
        let mut file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let line = [b'x'; 99];
        for _ in 0..(3 * CONSOLE_LOG_BYTES_MAX / 100) {
            file.write_all(&line).unwrap();
            file.write_all(b"\n").unwrap();
        }
        trim(&log);
        let blocks = std::fs::metadata(&log).unwrap().blocks() * 512;
        assert!(blocks < CONSOLE_LOG_BYTES_MAX + (64 << 10), "{blocks} bytes on disk");
        let text = past(&log).unwrap();
        assert!(text.len() as u64 <= CONSOLE_LOG_BYTES_MAX && text.len() as u64 > CONSOLE_LOG_BYTES_MAX - 200);
        assert!(text.starts_with(b"xxx") && text.ends_with(b"x\n"), "whole lines");
        file.write_all(b"more\n").unwrap();
        assert!(past(&log).unwrap().ends_with(b"x\nmore\n"), "what comes after a trim is kept");
    }

    #[test]
    fn what_a_machine_puts_in_place_of_its_log_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, log) = (folder.path().join("secret"), folder.path().join("log"));
        std::fs::write(&secret, vec![b's'; 2 * CONSOLE_LOG_BYTES_MAX as usize]).unwrap();
        let before = std::fs::metadata(&secret).unwrap().blocks();
        let refused = |what: &str| {
            assert!(past(&log).is_err(), "{what}");
            trim(&log);
            std::fs::remove_file(&log).unwrap();
        };
        std::os::unix::fs::symlink(&secret, &log).unwrap();
        refused("a symbolic link");
        std::fs::hard_link(&secret, &log).unwrap();
        refused("a hard link");
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        refused("a pipe, which would never open");
        assert_eq!(std::fs::metadata(&secret).unwrap().blocks(), before, "no hole in what is not the machine's");
    }
}
