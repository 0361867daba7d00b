//! Attributes: getattr, setattr, statfs, readlink.

use super::session::{Answerer, Failure, Session, own, qid};
use crate::fs::tree::{Creation, Identity, Kind, Stat};
use crate::ninep::linux::{self, Attributes, getattr, setattr};
use crate::ninep::{IO_HEADER_BYTES, Reply};
use crate::text::Code;

/// The best size for reads and writes, in bytes: the longest text that one write may hold.
const BLOCK_BYTES: u32 = crate::text::attrs::TEXT_BYTES_MAX as u32;

impl Session {
    pub(super) fn getattr(&mut self, fid: u32, mask: u64, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let fid = self.fids.get(fid)?;
        let stat = self.tree.stat(&fid.who, fid.place)?;
        let mut known = getattr::BASIC | getattr::DATA_VERSION;
        if stat.kind == Kind::Stream {
            known |= getattr::STREAM;
        }
        if stat.lasting {
            known |= getattr::LASTING;
        }
        let valid = mask & known;
        answer.send(&Reply::Getattr { valid, qid: qid(Identity::of(&stat)), attributes: attributes(&stat) })
    }

    /// A truncation is what `>` does and is the tree's to take; times that come with it mean nothing. All else is refused.
    pub(super) fn setattr(
        &mut self,
        fid: u32,
        valid: u32,
        size: u64,
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        use setattr::{ATIME, ATIME_SET, GID, MODE, MTIME, MTIME_SET, SIZE, UID};
        let fid = self.fids.get(fid)?;
        let truncates = valid & SIZE != 0;
        let refused = MODE | UID | GID | ATIME_SET | MTIME_SET | if truncates { 0 } else { ATIME | MTIME };
        if valid & refused != 0 {
            return Err(self.refuse_change(fid, &self.name_of(fid)?, Creation::Attributes)?);
        }
        if truncates {
            self.tree.truncate(&fid.who, fid.place, size)?;
        }
        answer.send(&Reply::Setattr {})
    }

    /// A tree that is made as it is read has no blocks and no inodes to run out of.
    pub(super) fn statfs(&mut self, fid: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        self.fids.get(fid)?;
        answer.send(&Reply::Statfs {
            kind: linux::FILE_SYSTEM_MAGIC,
            bsize: BLOCK_BYTES,
            blocks: 0,
            bfree: 0,
            bavail: 0,
            files: 0,
            ffree: 0,
            fsid: 0,
            namelen: linux::NAME_MAX,
        })
    }

    pub(super) fn readlink(&mut self, fid: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let fid = self.fids.get(fid)?;
        if fid.kind != Kind::Link {
            return Err(own(Code::Invalid, "invalid readlink: it is not a symbolic link"));
        }
        let target = self.tree.readlink(&fid.who, fid.place)?;
        if target.len() > self.data_max() {
            return Err(own(
                Code::NameTooLong,
                format!("invalid link: its target is beyond msize - {IO_HEADER_BYTES}"),
            ));
        }
        answer.send(&Reply::Readlink { target: &target })
    }
}

fn attributes(stat: &Stat) -> Attributes {
    let kind = match stat.kind {
        Kind::Directory => linux::mode::DIRECTORY,
        Kind::Link => linux::mode::LINK,
        Kind::File | Kind::Stream => linux::mode::FILE,
    };
    let (seconds, nanoseconds) = (stat.mtime_ms / 1000, stat.mtime_ms % 1000 * 1_000_000);
    Attributes {
        mode: kind | stat.mode,
        uid: stat.owner_uid,
        gid: stat.group_gid,
        nlink: stat.nlink.into(),
        size: stat.size,
        blksize: BLOCK_BYTES.into(),
        blocks: stat.size.div_ceil(512),
        atime_sec: seconds,
        atime_nsec: nanoseconds,
        mtime_sec: seconds,
        mtime_nsec: nanoseconds,
        ctime_sec: seconds,
        ctime_nsec: nanoseconds,
        data_version: stat.version.into(),
        ..Attributes::default()
    }
}
