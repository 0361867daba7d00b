//! One function a request: what the kernel asks, in the tree's words.

use super::files::Files;
use super::mounted::{Attributes, Found, Listing, Mounted};
use super::waiting::{WAITING_MAX, Waiting};
use crate::fs::tree::{Answer, Creation, OpenMode, Opened};
use crate::text::{Code, Refusal};
use async_task::Runnable;
use bytes::Bytes;
use polyfuse::reply::{AttrOut, EntryOut, FileAttr, OpenOut, StatfsOut, WriteOut};
use polyfuse::{Operation, Request, op};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle as Runtime;

/// What `stat` recommends for reads and writes, in bytes: what one write may hold.
pub(super) const BLOCK_BYTES: u32 = 64 * 1024;
/// The bit of fuse_open_out that polyfuse has no setter for: one cursor, offsets mean nothing (FOPEN_STREAM of linux/fuse.h).
const OPEN_STREAM: u32 = 1 << 4;
/// Reads and writes bypass the page cache (FOPEN_DIRECT_IO).
const OPEN_DIRECT: u32 = 1 << 0;
/// How long the kernel may keep the way to what is lasting. What is gone by then is refused when it is looked at or opened; the end
/// lets the kernel forget it.
const LASTING_FOR: Duration = Duration::from_secs(3600);

/// The front: what all threads share.
pub(super) struct Front {
    mounted: Arc<dyn Mounted>,
    runtime: Runtime,
    files: Arc<Files>,
    waiting: Arc<Waiting>,
}

fn errno(refusal: &Refusal) -> i32 {
    refusal.code.errno()
}

fn text(name: &OsStr) -> Result<&str, Refusal> {
    name.to_str().ok_or_else(|| Refusal::not_found("the name was not found: it is not UTF-8"))
}

/// An answer about a name, if it is one.
fn named<T>(name: &OsStr, act: impl FnOnce(&str) -> Answer<T>) -> Answer<T> {
    text(name).map_or_else(|refusal| Answer::Now(Err(refusal)), act)
}

fn not_open<T>() -> Answer<T> {
    Answer::Now(Err(Refusal::new(Code::BadFile, "not open")))
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

fn fill(attr: &mut FileAttr, of: &Attributes) {
    attr.ino(of.inode);
    attr.size(of.size);
    attr.mode(of.mode);
    attr.nlink(of.links);
    attr.uid(of.uid);
    attr.gid(of.gid);
    attr.blksize(BLOCK_BYTES);
    attr.blocks(of.size.div_ceil(512));
    attr.atime(of.modified);
    attr.mtime(of.modified);
    attr.ctime(of.modified);
}

fn send_attributes(request: &Request, attributes: &Attributes) -> io::Result<()> {
    let mut out = AttrOut::default();
    fill(out.attr(), attributes);
    request.reply(out)
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

fn access(request: &Request, attributes: &Attributes, mask: u32) -> io::Result<()> {
    // R_OK, W_OK and X_OK are the bits of "others" in a mode.
    let allowed = attributes.mode & mask & 0o7 == mask & 0o7;
    if allowed { request.reply(()) } else { request.reply_error(Errno::ACCESS.raw_os_error()) }
}

/// What a request would make, and where, if it is one of those that nobody may.
fn made_by<'a, T>(operation: &'a Operation<'_, T>) -> Option<(u64, &'a OsStr, Creation)> {
    Some(match operation {
        Operation::Create(op) => (op.parent(), op.name(), Creation::File),
        Operation::Mkdir(op) => (op.parent(), op.name(), Creation::Directory),
        Operation::Mknod(op) => (op.parent(), op.name(), Creation::Special),
        Operation::Symlink(op) => (op.parent(), op.name(), Creation::Link),
        Operation::Link(op) => (op.newparent(), op.newname(), Creation::Link),
        Operation::Rename(op) => (op.newparent(), op.newname(), Creation::Rename),
        _ => return None,
    })
}

impl Front {
    pub(super) fn new(mounted: Arc<dyn Mounted>, runtime: Runtime) -> Front {
        Front { mounted, runtime, files: Arc::default(), waiting: Arc::default() }
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

    fn dispatch(&self, request: Request) -> io::Result<()> {
        let operation = match request.operation() {
            Ok(operation) => operation,
            Err(_malformed) => return request.reply_error(Errno::INVAL.raw_os_error()),
        };
        let uid = request.uid();
        if let Some((directory, name, what)) = made_by(&operation) {
            let answer = self.mounted.refuse(uid, directory, &name.to_string_lossy(), what);
            return self.reply(request, answer, |_, never| match never {});
        }
        match operation {
            Operation::Lookup(op) => {
                let answer = named(op.name(), |name| self.mounted.lookup(uid, op.parent(), name));
                self.entry(request, answer)
            }
            Operation::Getattr(op) => {
                let answer = self.mounted.attributes(uid, op.ino());
                self.reply(request, answer, |request, attributes| send_attributes(request, &attributes))
            }
            Operation::Setattr(op) => {
                let answer = self.set_attributes(uid, &op);
                self.reply(request, answer, |request, attributes| send_attributes(request, &attributes))
            }
            Operation::Readlink(op) => {
                let answer = self.mounted.readlink(uid, op.ino());
                self.reply(request, answer, |request, target: String| request.reply(target.as_bytes()))
            }
            Operation::Opendir(op) => {
                let answer = self.mounted.open_directory(uid, op.ino());
                self.open_directory(request, answer)
            }
            Operation::Readdir(op) => {
                let listing = Listing::new(op.size());
                let answer = self.mounted.list(uid, op.ino(), op.fh(), op.offset(), listing);
                self.reply(request, answer, |request, listing: Listing| request.reply(listing.out()))
            }
            Operation::Open(op) => {
                let answer = self.mounted.open(uid, op.ino(), mode_of(op.flags()));
                self.open(request, answer)
            }
            Operation::Read(op) => {
                let answer = match self.files.get(op.fh()) {
                    Some((handle, stream)) => handle.read(op.offset(), read_count(op.size(), stream)),
                    None => not_open(),
                };
                self.reply(request, answer, |request, data: Bytes| request.reply(&data[..]))
            }
            Operation::Write(op, mut data) => {
                let answer = match (self.files.get(op.fh()), data.fill_buf()) {
                    (Some((handle, _)), Ok(data)) => handle.write(op.offset(), Bytes::copy_from_slice(data)),
                    _ => not_open(),
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
            Operation::Releasedir(op) => {
                self.mounted.close_directory(op.fh());
                request.reply(())
            }
            // A write has said all by itself, so there is nothing to say at a close: the kernel then asks no more.
            Operation::Flush(_) => request.reply_error(Errno::NOSYS.raw_os_error()),
            Operation::Fsync(_) | Operation::Fsyncdir(_) => request.reply(()),
            Operation::Unlink(op) => {
                let answer = named(op.name(), |name| self.mounted.remove(uid, op.parent(), name, false));
                self.reply(request, answer, |request, ()| request.reply(()))
            }
            Operation::Rmdir(op) => {
                let answer = named(op.name(), |name| self.mounted.remove(uid, op.parent(), name, true));
                self.reply(request, answer, |request, ()| request.reply(()))
            }
            Operation::Access(op) => {
                let (answer, mask) = (self.mounted.attributes(uid, op.ino()), op.mask());
                self.reply(request, answer, move |request, attributes| access(request, &attributes, mask))
            }
            Operation::Statfs(_) => self.file_system(request),
            Operation::Interrupt(op) => match self.waiting.interrupt(op.unique()) {
                true => Ok(()),
                // The kernel asks again as long as the request is under way: another thread may be just taking it.
                false => request.reply_error(Errno::AGAIN.raw_os_error()),
            },
            Operation::Forget(forgets) => {
                forgets.as_ref().iter().for_each(|forget| self.mounted.forget(forget.ino(), forget.nlookup()));
                Ok(())
            }
            Operation::NotifyReply(..) => Ok(()),
            // The kernel then does without, or says that there is no such thing here.
            _ => request.reply_error(Errno::NOSYS.raw_os_error()),
        }
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
            let refusal = Refusal::again(format!("busy: {WAITING_MAX} requests wait already"));
            self.mounted.note(request.uid(), &refusal);
            return request.reply_error(Errno::AGAIN.raw_os_error());
        };
        let waiting = self.waiting.clone();
        let work = async move {
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
        };
        self.begin(work);
        Ok(())
    }

    /// Begins something on this thread, and goes on with it on the runtime where it is woken up: another thread is woken for an
    /// answer that is here, and not to send a question or to wait.
    fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.runtime.clone();
        let go_on = move |work: Runnable| {
            runtime.spawn(async move { work.run() });
        };
        let (begun, task) = async_task::spawn(work, go_on);
        task.detach();
        let _entered = self.runtime.enter();
        begun.run();
    }

    fn entry(&self, request: Request, answer: Answer<Found>) -> io::Result<()> {
        let mounted = self.mounted.clone();
        self.reply(request, answer, move |request, found: Found| {
            let mut out = EntryOut::default();
            out.ino(found.attributes.inode);
            if found.lasting {
                out.ttl_entry(LASTING_FOR);
            }
            fill(out.attr(), &found.attributes);
            // What does not reach the kernel was no lookup.
            request.reply(out).inspect_err(|_| mounted.forget(found.attributes.inode, 1))
        })
    }

    /// Truncation and times are the mounted's to take. Owners and modes are the cluster's.
    fn set_attributes(&self, uid: u32, op: &op::Setattr<'_>) -> Answer<Attributes> {
        if op.mode().is_none() && op.uid().is_none() && op.gid().is_none() {
            return self.mounted.truncate(uid, op.ino(), op.size());
        }
        match self.mounted.refuse(uid, op.ino(), "", Creation::Attributes) {
            Answer::Now(refused) => Answer::Now(refused.map(|never| match never {})),
            Answer::Later(wait) => Answer::Later(Box::pin(async { wait.await.map(|never| match never {}) })),
        }
    }

    fn open_directory(&self, request: Request, answer: Answer<u64>) -> io::Result<()> {
        let mounted = self.mounted.clone();
        self.reply(request, answer, move |request, number: u64| {
            let mut out = OpenOut::default();
            out.fh(number);
            request.reply(out).inspect_err(|_| mounted.close_directory(number))
        })
    }

    fn open(&self, request: Request, answer: Answer<Opened>) -> io::Result<()> {
        let files = self.files.clone();
        self.reply(request, answer, move |request, opened: Opened| {
            let stream = opened.stream;
            match files.keep(opened) {
                Some(number) => request.reply(&open_out(number, stream)[..]).inspect_err(|_| files.close(number)),
                None => request.reply_error(Errno::NFILE.raw_os_error()),
            }
        })
    }

    fn file_system(&self, request: Request) -> io::Result<()> {
        let answer = self.mounted.file_system(request.uid());
        self.reply(request, answer, |request, found| {
            let mut out = StatfsOut::default();
            let statfs = out.statfs();
            statfs.bsize(found.block_bytes);
            statfs.frsize(found.block_bytes);
            statfs.blocks(found.blocks);
            statfs.bfree(found.blocks_free);
            statfs.bavail(found.blocks_available);
            statfs.files(found.files);
            statfs.ffree(found.files_free);
            statfs.namelen(found.name_bytes_max);
            request.reply(out)
        })
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
