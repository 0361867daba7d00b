//! What 9P2000 and 9P2000.u ask in their own way: Topen, Tcreate, Tstat, Twstat, and Tread of a directory.

use super::fids::{Fid, Listed, Open};
use super::session::{Answerer, Failure, Session, check_name, own, qid};
use crate::fs::tree::{self, Creation, Identity, Kind, OpenMode, Place, Tree};
use crate::ninep::field::Field;
use crate::ninep::stat::{Counted, mode, open};
use crate::ninep::{Dialect, Extended, NumericId, Reply, Stat};
use crate::text::{Code, Refusal};
use bytes::{Bytes, BytesMut};

/// The name of what was attached to: stat(5).
const ROOT_NAME: &str = "/";

impl Session {
    pub(super) fn open(&mut self, number: u32, mode: u8, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let how = open_mode(answer.dialect, mode)?;
        let (qid, iounit) = self.open_fid(number, how, false)?;
        answer.send(&Reply::Open { qid, iounit })
    }

    /// What is made and how is in `perm`; nothing can be. The fid stays what it was.
    pub(super) fn create(&mut self, number: u32, name: &str, perm: u32) -> Result<(), Failure> {
        let fid = self.fids.get(number)?;
        if fid.open.is_some() {
            return Err(own(Code::Busy, format!("invalid create: fid {number} is open already")));
        }
        check_name(name)?;
        let has = |bits| perm & bits != 0;
        let what = if has(mode::DIRECTORY) {
            Creation::Directory
        } else if has(mode::LINK | mode::HARD_LINK) {
            Creation::Link
        } else if has(mode::SPECIAL) {
            Creation::Special
        } else {
            Creation::File
        };
        self.refuse_create(number, name, what)
    }

    pub(super) fn stat(&mut self, number: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let fid = self.fids.get(number)?;
        let stat = self.tree.stat(&fid.who, fid.place)?;
        let name = self.name_of(fid)?;
        let target = target(&*self.tree, fid, &stat)?;
        answer.send(&Reply::Stat { stat: Counted(record(&stat, &name, &target)) })
    }

    /// The name of a fid's file in its directory.
    pub(super) fn name_of(&self, fid: &Fid) -> Result<String, Refusal> {
        if fid.place == fid.root { Ok(ROOT_NAME.to_owned()) } else { self.tree.name(&fid.who, fid.place) }
    }

    /// The directory of a fid's file; of the root, itself.
    pub(super) fn parent_of(&self, fid: &Fid) -> Result<Place, Refusal> {
        if fid.place == fid.root { Ok(fid.place) } else { self.tree.walk(&fid.who, fid.place, "..") }
    }

    /// A truncation is what `>` does and is the tree's to take; the times that Linux sends with it mean nothing. A record
    /// that touches nothing is an fsync: what was written is committed already. All else is refused, and nothing done.
    pub(super) fn wstat(&mut self, number: u32, wanted: &Stat<'_>, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let fid = self.fids.get(number)?;
        let truncates = wanted.length != Stat::UNTOUCHED.length;
        let mut rest = Stat { length: Stat::UNTOUCHED.length, ..*wanted };
        if truncates {
            (rest.atime, rest.mtime) = (Stat::UNTOUCHED.atime, Stat::UNTOUCHED.mtime);
        }
        let renames = !rest.name.is_empty() && rest.name != self.name_of(fid)?;
        if renames {
            check_name(rest.name)?;
            return Err(self.refuse_change(fid, rest.name, Creation::Rename)?);
        }
        rest.name = "";
        if rest != Stat::UNTOUCHED {
            return Err(self.refuse_change(fid, &self.name_of(fid)?, Creation::Attributes)?);
        }
        if truncates {
            self.tree.truncate(&fid.who, fid.place, wanted.length)?;
        }
        answer.send(&Reply::Wstat {})
    }

    pub(super) fn refuse_change(&self, fid: &Fid, name: &str, what: Creation) -> Result<Failure, Refusal> {
        let dir = self.parent_of(fid)?;
        Ok(self.tree.refuse_create(&fid.who, dir, name, what).into())
    }

    /// Whole records only. It begins at 0 or goes on where the last read has ended, as read(5) has it, so that one place is
    /// all there is to remember: objects that come and go meanwhile shift nothing.
    pub(super) fn read_directory(
        &mut self,
        number: u32,
        offset: u64,
        count: u32,
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        let room = usize::try_from(count).unwrap_or(usize::MAX).min(self.data_max());
        if room == 0 {
            return answer.data(Bytes::new(), 0);
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let listed = self.list_stats(number, offset, room, answer.dialect, &mut bytes);
        let data = bytes.split().freeze();
        self.scratch = bytes;
        let after = listed?;
        if let Some(Open::Directory(listed)) = &mut self.fids.get_mut(number)?.open {
            *listed = Listed { offset: offset.saturating_add(data.len() as u64), after };
        }
        answer.data(data, room)
    }

    /// Appends the records from `offset` for which there is room; the answer is the cookie of the last.
    fn list_stats(
        &self,
        number: u32,
        offset: u64,
        room: usize,
        dialect: Dialect,
        bytes: &mut BytesMut,
    ) -> Result<u64, Failure> {
        let fid = self.fids.get(number)?.directory()?;
        let mut after = match &fid.open {
            _ if offset == 0 => 0,
            Some(Open::Directory(listed)) if listed.offset == offset => listed.after,
            _ => {
                let sentence = format!("invalid offset {offset}: a directory is read from 0, or on from the last read");
                return Err(own(Code::Invalid, sentence));
            }
        };
        let mut full = false;
        self.tree.readdir(&fid.who, fid.place, after, &mut |entry| {
            // Who is gone since the listing began to be made is not in it.
            if (entry.kind != Kind::Link || dialect != Dialect::Plain)
                && let Ok(stat) = self.tree.stat(&fid.who, entry.place)
                && let Ok(target) = target(&*self.tree, fid, &stat)
            {
                let record = record(&stat, &entry.name, &target);
                full = bytes.len() + record.size(dialect) > room || record.put(dialect, bytes).is_err();
            }
            if !full {
                after = entry.cookie;
            }
            !full
        })?;
        if full && bytes.is_empty() {
            return Err(own(Code::Invalid, format!("invalid count {room}: the next record is longer")));
        }
        Ok(after)
    }
}

/// A link's target; of anything else, nothing.
fn target(tree: &dyn Tree, fid: &Fid, stat: &tree::Stat) -> Result<String, Refusal> {
    match stat.kind {
        Kind::Link => tree.readlink(&fid.who, stat.place),
        Kind::Directory | Kind::File | Kind::Stream => Ok(String::new()),
    }
}

/// The record of stat(5).
fn record<'a>(stat: &'a tree::Stat, name: &'a str, target: &'a str) -> Stat<'a> {
    let (kind, length) = match stat.kind {
        Kind::Directory => (mode::DIRECTORY, 0),
        Kind::Link => (mode::LINK, stat.size),
        Kind::File | Kind::Stream => (0, stat.size),
    };
    let seconds = u32::try_from(stat.mtime_ms / 1000).unwrap_or(u32::MAX);
    Stat {
        kind: 0,
        dev: 0,
        qid: qid(Identity::of(stat)),
        mode: kind | stat.mode & mode::PERMISSIONS,
        atime: seconds,
        mtime: seconds,
        length,
        name,
        uid: &stat.owner,
        gid: &stat.owner,
        muid: "",
        extension: Extended(target),
        n_uid: NumericId(stat.owner_uid),
        n_gid: NumericId(stat.group_gid),
        n_muid: NumericId::NONE,
    }
}

fn open_mode(dialect: Dialect, mode: u8) -> Result<OpenMode, Failure> {
    let known = open::ACCESS | open::TRUNCATE | open::CLOSE_ON_EXEC | open::REMOVE_ON_CLOSE;
    let known = if dialect == Dialect::U { known | open::APPEND } else { known };
    if mode & !known != 0 {
        return Err(own(Code::Invalid, format!("invalid mode {mode:#x}: it has bits that no open has")));
    }
    if mode & open::REMOVE_ON_CLOSE != 0 {
        return Err(own(Code::NotPermitted, "no permission: nothing here is removed by closing it"));
    }
    let (read, write) = match mode & open::ACCESS {
        open::READ => (true, false),
        open::WRITE => (false, true),
        open::READ_WRITE => (true, true),
        _ => return Err(own(Code::Denied, "permission denied: nothing here can be executed")),
    };
    let has = |bit| mode & bit != 0;
    Ok(OpenMode { read, write, truncate: has(open::TRUNCATE), append: has(open::APPEND), nonblock: false })
}
