//! Opening, reading, writing, listing and removing: what is done with a fid once it stands for a place.

use super::fids::{Fid, Listed, Open};
use super::session::{Answerer, Failure, Session, check_name, own, qid, qid_kind};
use super::waiting::{Finished, What, Work};
use crate::fs::tree::{Answer, DirEntry, Handle, Kind, OpenMode, Opened, Place};
use crate::ninep::field::Field;
use crate::ninep::{self, Dialect, Qid, Reply, linux};
use crate::text::{Code, Refusal};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use std::sync::Arc;

/// The cookies of the records `.` and `..`, which a tree doesn't list: the last ones that Linux's signed offsets have, so
/// that all others are the tree's.
const DOT: u64 = i64::MAX.unsigned_abs() - 1;
const DOT_DOT: u64 = i64::MAX.unsigned_abs();

/// A wait on an open file, which stays open for it.
fn work<T: Send + 'static>(
    handle: Arc<dyn Handle>,
    wait: futures::future::BoxFuture<'static, Result<T, Refusal>>,
    finished: fn(T) -> Finished,
) -> Work {
    wait.map(move |result| {
        drop(handle);
        result.map(finished)
    })
    .boxed()
}

impl Session {
    pub(super) fn lopen(&mut self, number: u32, flags: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let (qid, iounit) = self.open_fid(number, open_mode(flags)?, flags & linux::open::DIRECTORY != 0)?;
        answer.send(&Reply::Lopen { qid, iounit })
    }

    /// Opens a fid; the answer is what the reply holds: its qid, and the most data in one message.
    pub(super) fn open_fid(&mut self, number: u32, how: OpenMode, as_directory: bool) -> Result<(Qid, u32), Failure> {
        let iounit = u32::try_from(self.data_max()).unwrap_or(u32::MAX);
        let fid = self.fids.get_mut(number)?;
        if fid.open.is_some() {
            return Err(own(Code::Busy, format!("invalid open: fid {number} is open already")));
        }
        let open = match fid.kind {
            Kind::Directory if how.write || how.truncate => {
                return Err(own(Code::IsDirectory, "invalid open: a directory can't be written"));
            }
            Kind::Directory => Open::Directory(Listed::default()),
            Kind::Link => return Err(own(Code::Invalid, "invalid open: it is a symbolic link; walk to its target")),
            Kind::File | Kind::Stream if as_directory => {
                return Err(own(Code::NotDirectory, "invalid open: it is a file, not a directory"));
            }
            Kind::File | Kind::Stream => {
                if how.truncate && !how.write {
                    // open(5): that needs the right to write as well.
                    self.tree.truncate(&fid.who, fid.place, 0)?;
                }
                let Opened { handle, commands, .. } = self.tree.open(&fid.who, fid.place, how)?;
                Open::File { handle, how, commands }
            }
        };
        let qid = qid(self.tree.identity(&fid.who, fid.place)?);
        fid.open = Some(open);
        Ok((qid, iounit))
    }

    pub(super) fn read(
        &mut self,
        number: u32,
        offset: u64,
        count: u32,
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        let fid = self.fids.get(number)?;
        if answer.dialect != Dialect::L && matches!(fid.open, Some(Open::Directory(_))) {
            return self.read_directory(number, offset, count, answer);
        }
        let (handle, how, _) = opened(fid, number)?;
        if !how.read {
            return Err(own(Code::BadFile, format!("invalid read: fid {number} is not open for reading")));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.data_max());
        let what = What::Read { count };
        if count == 0 {
            return answer.data(Bytes::new(), 0);
        }
        self.check_room(what)?;
        match handle.read(offset, count) {
            Answer::Now(data) => answer.data(data?, count),
            Answer::Later(wait) => {
                let work = work(handle.clone(), wait, Finished::Read);
                self.put_aside(answer.tag, what, Some(number), work)
            }
        }
    }

    pub(super) fn write(
        &mut self,
        fid: u32,
        offset: u64,
        data: &[u8],
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        let (handle, how, commands) = opened(self.fids.get(fid)?, fid)?;
        if !how.write {
            return Err(own(Code::BadFile, format!("invalid write: fid {fid} is not open for writing")));
        }
        if commands && data.len() == self.data_max() && !data.ends_with(b"\n") {
            return Err(own(Code::TooLong, cut(data.len())));
        }
        let what = What::Write { count: data.len() };
        self.check_room(what)?;
        match handle.write(offset, Bytes::copy_from_slice(data)) {
            Answer::Now(count) => answer.wrote(count?),
            Answer::Later(wait) => {
                let work = work(handle.clone(), wait, Finished::Wrote);
                self.put_aside(answer.tag, what, Some(fid), work)
            }
        }
    }

    /// What was written is committed when Rwrite is sent: there is nothing left to do.
    pub(super) fn fsync(&mut self, fid: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        self.fids.get(fid)?;
        answer.send(&Reply::Fsync {})
    }

    /// Whole records only; the offset of each is the cookie with which the next Treaddir goes on.
    pub(super) fn readdir(
        &mut self,
        number: u32,
        offset: u64,
        count: u32,
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        let fid = self.fids.get(number)?.directory()?;
        if fid.open.is_none() {
            return Err(own(Code::BadFile, format!("invalid fid: {number} is not open")));
        }
        let room = usize::try_from(count).unwrap_or(usize::MAX).min(self.data_max());
        let mut records = Records { room, bytes: std::mem::take(&mut self.scratch), full: false };
        records.bytes.clear();
        if offset == 0 {
            records.put(fid.place, Kind::Directory, DOT, ".");
        }
        if matches!(offset, 0 | DOT) {
            let parent = if fid.place == fid.root { fid.place } else { self.tree.walk(&fid.who, fid.place, "..")? };
            records.put(parent, Kind::Directory, DOT_DOT, "..");
        }
        let after = if matches!(offset, DOT | DOT_DOT) { 0 } else { offset };
        if !records.full {
            self.tree.readdir(&fid.who, fid.place, after, &mut |entry: DirEntry| {
                records.put(entry.place, entry.kind, entry.cookie, &entry.name)
            })?;
        }
        let Records { mut bytes, full, .. } = records;
        if full && bytes.is_empty() {
            return Err(own(Code::Invalid, format!("invalid count {count}: the next record is longer")));
        }
        let data = bytes.split().freeze();
        self.scratch = bytes;
        answer.records(data)
    }

    pub(super) fn unlinkat(
        &mut self,
        dirfid: u32,
        name: &str,
        flags: u32,
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        let fid = self.fids.get(dirfid)?.directory()?;
        check_name(name)?;
        if flags & !linux::AT_REMOVEDIR != 0 {
            return Err(own(Code::Invalid, format!("invalid flags {flags:#x}: AT_REMOVEDIR is the only one")));
        }
        self.check_room(What::Unlinkat)?;
        match self.tree.remove(&fid.who, fid.place, name, flags != 0) {
            Answer::Now(done) => {
                done?;
                answer.send(&Reply::Unlinkat {})
            }
            Answer::Later(wait) => {
                let work = wait.map(|done| done.map(|()| Finished::Removed)).boxed();
                self.put_aside(answer.tag, What::Unlinkat, None, work)
            }
        }
    }

    /// remove(5): the fid is gone afterwards, even if the file is not.
    pub(super) fn remove(&mut self, number: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let fid = self.forget(number)?;
        if fid.place == fid.root {
            return Err(own(Code::Busy, "busy: the root can't be removed"));
        }
        self.check_room(What::Remove)?;
        let (dir, name) = (self.parent_of(&fid)?, self.name_of(&fid)?);
        match self.tree.remove(&fid.who, dir, &name, fid.kind == Kind::Directory) {
            Answer::Now(done) => {
                done?;
                answer.send(&Reply::Remove {})
            }
            Answer::Later(wait) => {
                let work = wait.map(|done| done.map(|()| Finished::Removed)).boxed();
                self.put_aside(answer.tag, What::Remove, None, work)
            }
        }
    }
}

/// An open file: its handle, how it was opened, and whether commands are written to it.
fn opened(fid: &Fid, number: u32) -> Result<(&Arc<dyn Handle>, OpenMode, bool), Failure> {
    match &fid.open {
        Some(Open::File { handle, how, commands }) => Ok((handle, *how, *commands)),
        Some(Open::Directory(_)) => Err(own(Code::IsDirectory, "invalid operation: it is a directory")),
        None => Err(own(Code::BadFile, format!("invalid fid: {number} is not open"))),
    }
}

/// A client cuts what is longer than a message; the rest of the last line would be taken for a command of its own.
fn cut(length: usize) -> String {
    format!(
        "the write is too long: it fills a message of {length} bytes and does not end with a line, so that more must follow, \
         but each write takes effect for itself; write less at once, or mount with a larger msize"
    )
}

/// The records of one Rreaddir.
struct Records {
    bytes: BytesMut,
    room: usize,
    full: bool,
}

impl Records {
    /// Appends a record if it fits; false when no more do.
    fn put(&mut self, place: Place, kind: Kind, cookie: u64, name: &str) -> bool {
        let qid = Qid { kind: qid_kind(kind), version: 0, path: place.0 };
        let record = ninep::DirEntry { qid, offset: cookie, kind: dirent_kind(kind), name };
        self.full |= self.bytes.len() + record.size() > self.room || record.put(Dialect::L, &mut self.bytes).is_err();
        !self.full
    }
}

fn dirent_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => linux::dirent::DIRECTORY,
        Kind::Link => linux::dirent::LINK,
        Kind::File | Kind::Stream => linux::dirent::FILE,
    }
}

fn open_mode(flags: u32) -> Result<OpenMode, Failure> {
    use linux::open::{ACCESS, APPEND, NONBLOCK, READ_ONLY, READ_WRITE, TRUNCATE, WRITE_ONLY};
    let (read, write) = match flags & ACCESS {
        READ_ONLY => (true, false),
        WRITE_ONLY => (false, true),
        READ_WRITE => (true, true),
        _ => return Err(own(Code::Invalid, "invalid flags: open for reading, for writing, or for both")),
    };
    let has = |flag| flags & flag != 0;
    Ok(OpenMode { read, write, truncate: has(TRUNCATE), append: has(APPEND), nonblock: has(NONBLOCK) })
}
