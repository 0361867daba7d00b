//! One function a request: what the kernel asks, in the tree's words.

use super::files::Files;
use super::waiting::{WAITING_MAX, Waiting};
use crate::fs::tree::{Answer, Caller, Creation, Credential, Kind, OpenMode, Place, Stat, Tree};
use crate::text::{Code, Refusal};
use bytes::Bytes;
use polyfuse::reply::{AttrOut, EntryOut, FileAttr, OpenOut, ReaddirOut, StatfsOut, WriteOut};
use polyfuse::{Operation, Request, op};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle as Runtime;

/// What `stat` recommends for reads and writes, in bytes: what one write may hold.
const BLOCK_BYTES: u32 = 64 * 1024;
/// The bit of fuse_open_out that polyfuse has no setter for: one cursor, offsets mean nothing (FOPEN_STREAM of linux/fuse.h).
const OPEN_STREAM: u32 = 1 << 4;
/// Reads and writes bypass the page cache (FOPEN_DIRECT_IO).
const OPEN_DIRECT: u32 = 1 << 0;
/// How long the kernel may keep the way to what is lasting. What is gone by then is refused when it is looked at or opened; the end
/// lets the kernel forget it.
const LASTING_FOR: Duration = Duration::from_secs(3600);
/// `.` and `..` come before the tree's own entries.
const DOTS: u64 = 2;

/// The front: what all threads share.
pub(super) struct Front {
    tree: Arc<dyn Tree>,
    runtime: Runtime,
    files: Files,
    waiting: Arc<Waiting>,
}

fn errno(refusal: &Refusal) -> i32 {
    refusal.code.errno()
}

fn text(name: &OsStr) -> Result<&str, Refusal> {
    name.to_str().ok_or_else(|| Refusal::not_found("the name was not found: it is not UTF-8"))
}

/// How much to read. Of a long read(2) the kernel asks for a part, and if that comes full, for the next: a stream that has no more would
/// block it with what it has got. So a stream fills no request that may be such a part.
fn read_count(size: u32, stream: bool) -> usize {
    let count = if stream { size.min(BLOCK_BYTES) } else { size };
    usize::try_from(count).unwrap_or(0)
}

/// struct fuse_open_out of linux/fuse.h.
fn open_out(number: u64, stream: bool) -> [u8; 16] {
    let flags = OPEN_DIRECT | if stream { OPEN_STREAM } else { 0 };
    let mut out = [0; 16];
    let (fh, rest) = out.split_at_mut(8);
    fh.copy_from_slice(&number.to_ne_bytes());
    if let Some((open_flags, _padding)) = rest.split_at_mut_checked(4) {
        open_flags.copy_from_slice(&flags.to_ne_bytes());
    }
    out
}

fn type_bits(kind: Kind) -> u32 {
    let kind = match kind {
        Kind::Directory => FileType::Directory,
        Kind::File | Kind::Stream => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    };
    kind.as_raw_mode()
}

fn fill(attr: &mut FileAttr, stat: &Stat) {
    attr.ino(stat.place.0);
    attr.size(stat.size);
    attr.mode(type_bits(stat.kind) | stat.mode);
    attr.nlink(stat.nlink);
    attr.uid(stat.owner_uid);
    attr.gid(stat.group_gid);
    attr.blksize(BLOCK_BYTES);
    attr.blocks(stat.size.div_ceil(512));
    let time = Duration::from_millis(stat.mtime_ms);
    attr.atime(time);
    attr.mtime(time);
    attr.ctime(time);
}

fn mode_of(flags: u32) -> OpenMode {
    let flags = OFlags::from_bits_retain(flags);
    let access = flags & OFlags::ACCMODE;
    OpenMode {
        read: access != OFlags::WRONLY,
        write: access == OFlags::WRONLY || access == OFlags::RDWR,
        truncate: flags.contains(OFlags::TRUNC),
        append: flags.contains(OFlags::APPEND),
        nonblock: flags.contains(OFlags::NONBLOCK),
    }
}

impl Front {
    pub(super) fn new(tree: Arc<dyn Tree>, runtime: Runtime) -> Front {
        Front { tree, runtime, files: Files::default(), waiting: Arc::default() }
    }

    pub(super) fn interrupt_all(&self) {
        self.waiting.interrupt_all();
    }

    /// Answers a request, now or later.
    pub(super) fn answer(&self, request: Request) {
        if let Err(error) = self.dispatch(request) {
            // ENOENT: whoever asked was interrupted, and waits no more.
            if error.raw_os_error() != Some(Errno::NOENT.raw_os_error()) {
                tracing::warn!(%error, "an answer did not reach the kernel");
            }
        }
    }

    fn who(&self, request: &Request) -> Caller {
        self.tree.caller(&Credential::Uid(request.uid()), "the uid of the process, by FUSE", "fuse")
    }

    fn dispatch(&self, request: Request) -> io::Result<()> {
        let operation = match request.operation() {
            Ok(operation) => operation,
            Err(_malformed) => return request.reply_error(Errno::INVAL.raw_os_error()),
        };
        match operation {
            Operation::Lookup(op) => self.entry(&request, op.parent(), op.name()),
            Operation::Getattr(op) => self.attributes(&request, op.ino()),
            Operation::Setattr(op) => self.set_attributes(&request, &op),
            Operation::Readlink(op) => match self.tree.readlink(&self.who(&request), Place(op.ino())) {
                Ok(target) => request.reply(target.as_bytes()),
                Err(refusal) => request.reply_error(errno(&refusal)),
            },
            // The kernel comes here without a lookup, and reads a directory only if it opens.
            Operation::Opendir(op) => match self.tree.stat(&self.who(&request), Place(op.ino())) {
                Ok(_) => request.reply(OpenOut::default()),
                Err(refusal) => request.reply_error(errno(&refusal)),
            },
            Operation::Readdir(op) => self.entries(&request, &op),
            Operation::Open(op) => self.open(&request, op.ino(), op.flags()),
            Operation::Read(op) => {
                let answer = match self.files.get(op.fh()) {
                    Some((handle, stream)) => handle.read(op.offset(), read_count(op.size(), stream)),
                    None => Answer::Now(Err(Refusal::new(Code::BadFile, "not open"))),
                };
                self.reply(request, answer, |request, data: Bytes| request.reply(&data[..]))
            }
            Operation::Write(op, mut data) => {
                let answer = match (self.files.get(op.fh()), data.fill_buf()) {
                    (Some((handle, _)), Ok(data)) => handle.write(op.offset(), Bytes::copy_from_slice(data)),
                    _ => Answer::Now(Err(Refusal::new(Code::BadFile, "not open"))),
                };
                self.reply(request, answer, |request, length: usize| {
                    let mut out = WriteOut::default();
                    out.size(u32::try_from(length).unwrap_or(u32::MAX));
                    request.reply(out)
                })
            }
            Operation::Release(op) => {
                self.files.close(op.fh());
                request.reply(())
            }
            // A write has said all by itself, so there is nothing to say at a close: the kernel then asks no more.
            Operation::Flush(_) => request.reply_error(Errno::NOSYS.raw_os_error()),
            Operation::Releasedir(_) | Operation::Fsync(_) | Operation::Fsyncdir(_) => request.reply(()),
            Operation::Unlink(op) => {
                let answer = self
                    .named(op.name(), |name| self.tree.remove(&self.who(&request), Place(op.parent()), name, false));
                self.reply(request, answer, |request, ()| request.reply(()))
            }
            Operation::Rmdir(op) => {
                let answer =
                    self.named(op.name(), |name| self.tree.remove(&self.who(&request), Place(op.parent()), name, true));
                self.reply(request, answer, |request, ()| request.reply(()))
            }
            Operation::Create(op) => self.refuse(&request, op.parent(), op.name(), Creation::File),
            Operation::Mkdir(op) => self.refuse(&request, op.parent(), op.name(), Creation::Directory),
            Operation::Mknod(op) => self.refuse(&request, op.parent(), op.name(), Creation::Special),
            Operation::Symlink(op) => self.refuse(&request, op.parent(), op.name(), Creation::Link),
            Operation::Link(op) => self.refuse(&request, op.newparent(), op.newname(), Creation::Link),
            Operation::Rename(op) => self.refuse(&request, op.newparent(), op.newname(), Creation::Rename),
            Operation::Access(op) => self.access(&request, op.ino(), op.mask()),
            Operation::Statfs(_) => self.file_system(&request),
            Operation::Interrupt(op) => match self.waiting.interrupt(op.unique()) {
                true => Ok(()),
                // The kernel asks again as long as the request is under way: another thread may be just taking it.
                false => request.reply_error(Errno::AGAIN.raw_os_error()),
            },
            Operation::Forget(_) | Operation::NotifyReply(..) => Ok(()),
            // The kernel then does without, or says that there is no such thing here.
            _ => request.reply_error(Errno::NOSYS.raw_os_error()),
        }
    }

    fn named(&self, name: &OsStr, act: impl FnOnce(&str) -> Answer<()>) -> Answer<()> {
        text(name).map_or_else(|refusal| Answer::Now(Err(refusal)), act)
    }

    /// Replies now, or makes a task of the wait.
    fn reply<T: Send + 'static>(
        &self,
        request: Request,
        answer: Answer<T>,
        send: impl FnOnce(&Request, T) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let future = match answer {
            Answer::Now(Ok(value)) => return send(&request, value),
            Answer::Now(Err(refusal)) => return request.reply_error(errno(&refusal)),
            Answer::Later(future) => future,
        };
        let unique = request.unique();
        let Some(interrupted) = self.waiting.begin(unique) else {
            self.tree.note(&self.who(&request), &Refusal::again(format!("busy: {WAITING_MAX} requests wait already")));
            return request.reply_error(Errno::AGAIN.raw_os_error());
        };
        let waiting = self.waiting.clone();
        self.runtime.spawn(async move {
            let result = tokio::select! {
                result = future => result,
                () = interrupted.cancelled() => Err(Refusal::new(Code::Interrupted, "interrupted")),
            };
            waiting.end(unique);
            let sent = match result {
                Ok(value) => send(&request, value),
                Err(refusal) => request.reply_error(errno(&refusal)),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "an answer did not reach the kernel");
            }
        });
        Ok(())
    }

    fn entry(&self, request: &Request, parent: u64, name: &OsStr) -> io::Result<()> {
        let who = self.who(request);
        let found = text(name).and_then(|name| self.tree.walk(&who, Place(parent), name));
        match found.and_then(|place| self.tree.stat(&who, place)) {
            Ok(stat) => {
                let mut out = EntryOut::default();
                out.ino(stat.place.0);
                if stat.lasting {
                    out.ttl_entry(LASTING_FOR);
                }
                fill(out.attr(), &stat);
                request.reply(out)
            }
            Err(refusal) => request.reply_error(errno(&refusal)),
        }
    }

    fn attributes(&self, request: &Request, ino: u64) -> io::Result<()> {
        match self.tree.stat(&self.who(request), Place(ino)) {
            Ok(stat) => {
                let mut out = AttrOut::default();
                fill(out.attr(), &stat);
                request.reply(out)
            }
            Err(refusal) => request.reply_error(errno(&refusal)),
        }
    }

    /// Truncation and times are taken where the file can be written, and mean nothing: `>`, touch and tee work. Owners and modes are
    /// the cluster's.
    fn set_attributes(&self, request: &Request, op: &op::Setattr<'_>) -> io::Result<()> {
        let (who, place) = (self.who(request), Place(op.ino()));
        if op.mode().is_some() || op.uid().is_some() || op.gid().is_some() {
            let refusal = self.tree.refuse_create(&who, place, "", Creation::Attributes);
            return request.reply_error(errno(&refusal));
        }
        match self.tree.truncate(&who, place, op.size().unwrap_or(0)) {
            Ok(()) => self.attributes(request, op.ino()),
            Err(refusal) => request.reply_error(errno(&refusal)),
        }
    }

    fn entries(&self, request: &Request, op: &op::Readdir<'_>) -> io::Result<()> {
        let (who, dir) = (self.who(request), Place(op.ino()));
        let mut out = ReaddirOut::new(usize::try_from(op.size()).unwrap_or(0));
        let parent = self.tree.walk(&who, dir, "..").unwrap_or(Place::ROOT);
        let directory = type_bits(Kind::Directory) >> 12;
        for (cookie, name, place) in [(1, ".", dir), (DOTS, "..", parent)] {
            if op.offset() < cookie && out.entry(OsStr::new(name), place.0, directory, cookie) {
                return request.reply(out);
            }
        }
        let listed = self.tree.readdir(&who, dir, op.offset().saturating_sub(DOTS), &mut |entry| {
            !out.entry(OsStr::new(&entry.name), entry.place.0, type_bits(entry.kind) >> 12, entry.cookie + DOTS)
        });
        match listed {
            Ok(()) => request.reply(out),
            Err(refusal) => request.reply_error(errno(&refusal)),
        }
    }

    fn open(&self, request: &Request, ino: u64, flags: u32) -> io::Result<()> {
        let opened = match self.tree.open(&self.who(request), Place(ino), mode_of(flags)) {
            Ok(opened) => opened,
            Err(refusal) => return request.reply_error(errno(&refusal)),
        };
        let stream = opened.stream;
        match self.files.keep(opened) {
            Some(number) => request.reply(&open_out(number, stream)[..]),
            None => request.reply_error(Errno::NFILE.raw_os_error()),
        }
    }

    fn refuse(&self, request: &Request, parent: u64, name: &OsStr, what: Creation) -> io::Result<()> {
        let refusal = self.tree.refuse_create(&self.who(request), Place(parent), &name.to_string_lossy(), what);
        request.reply_error(errno(&refusal))
    }

    fn access(&self, request: &Request, ino: u64, mask: u32) -> io::Result<()> {
        let allowed = self.tree.stat(&self.who(request), Place(ino)).and_then(|stat| {
            // R_OK, W_OK and X_OK are the bits of "others" in a mode.
            if stat.mode & mask & 0o7 == mask & 0o7 { Ok(()) } else { Err(Refusal::denied("no permission")) }
        });
        match allowed {
            Ok(()) => request.reply(()),
            Err(refusal) => request.reply_error(errno(&refusal)),
        }
    }

    /// There is no disk behind it: no blocks, and names of at most 255 bytes.
    fn file_system(&self, request: &Request) -> io::Result<()> {
        let mut out = StatfsOut::default();
        out.statfs().bsize(BLOCK_BYTES);
        out.statfs().frsize(BLOCK_BYTES);
        out.statfs().namelen(255);
        request.reply(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fuse::WRITE_BYTES_MAX;

    #[test]
    fn a_stream_never_fills_a_part_of_a_longer_read() {
        // The parts of a read that begins anywhere in a page: as many bytes as fit into the pages of one request.
        for part in [WRITE_BYTES_MAX, WRITE_BYTES_MAX - 1, WRITE_BYTES_MAX - 4095] {
            assert!(read_count(part, true) < part as usize, "{part}");
            assert_eq!(read_count(part, false), part as usize);
        }
        assert_eq!(read_count(100, true), 100);
    }
}
