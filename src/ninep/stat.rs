//! What 9P2000 and 9P2000.u say of a file: the record of stat(5), alone or one of many in a directory that is read.

use super::dialect::Dialect;
use super::field::{Cursor, Extended, Field, Malformed, NumericId, Qid};
use bytes::{BufMut, BytesMut};

/// Bits of [`Stat::mode`] besides the permissions, and of Tcreate's `perm`.
pub mod mode {
    /// DMDIR: a directory.
    pub const DIRECTORY: u32 = 0x8000_0000;
    /// DMAPPEND: every write goes to the end.
    pub const APPEND: u32 = 0x4000_0000;
    /// DMEXCL: open once at a time.
    pub const EXCLUSIVE: u32 = 0x2000_0000;
    /// DMSYMLINK of .u: a symbolic link.
    pub const LINK: u32 = 0x0200_0000;
    /// DMLINK of .u: a hard link.
    pub const HARD_LINK: u32 = 0x0100_0000;
    /// DMDEVICE, DMNAMEDPIPE and DMSOCKET of .u.
    pub const SPECIAL: u32 = 0x0080_0000 | 0x0020_0000 | 0x0010_0000;
    /// Read, write, execute, for owner, group and others.
    pub const PERMISSIONS: u32 = 0o777;
}

/// Bits of Topen's and Tcreate's `mode`: open(5).
pub mod open {
    /// The bits of what it is opened for.
    pub const ACCESS: u8 = 3;
    /// OREAD.
    pub const READ: u8 = 0;
    /// OWRITE.
    pub const WRITE: u8 = 1;
    /// ORDWR.
    pub const READ_WRITE: u8 = 2;
    /// OEXEC: as OREAD, of what may be executed.
    pub const EXECUTE: u8 = 3;
    /// OTRUNC.
    pub const TRUNCATE: u8 = 0x10;
    /// OCEXEC: means nothing to a server, as the manual has it; Linux never sends it.
    pub const CLOSE_ON_EXEC: u8 = 0x20;
    /// ORCLOSE: remove it when the fid is clunked.
    pub const REMOVE_ON_CLOSE: u8 = 0x40;
    /// OAPPEND of Linux's .u, with which Linux opens for `>>`.
    pub const APPEND: u8 = 0x80;
}

/// The bytes of a record besides those of its strings, its own size field among them: in 9P2000, and more of them in .u.
const FIXED_BYTES: usize = 2 + 2 + 4 + 13 + 4 + 4 + 4 + 8 + 4 * 2;
const FIXED_BYTES_MORE: usize = 2 + 3 * 4;

/// A file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// For the kernel's use: the type of its server.
    pub kind: u16,
    /// For the kernel's use: which server of that type.
    pub dev: u32,
    /// Which file.
    pub qid: Qid,
    /// Permissions, and bits of [`mode`].
    pub mode: u32,
    /// Last read, in seconds.
    pub atime: u32,
    /// Last change, in seconds.
    pub mtime: u32,
    /// Bytes; 0 for directories.
    pub length: u64,
    /// Its name in its directory; `/` for the root.
    pub name: &'a str,
    /// Its owner.
    pub uid: &'a str,
    /// Its group.
    pub gid: &'a str,
    /// Who changed it last.
    pub muid: &'a str,
    /// A link's target.
    pub extension: Extended<&'a str>,
    /// Its owner.
    pub n_uid: NumericId,
    /// Its group.
    pub n_gid: NumericId,
    /// Who changed it last.
    pub n_muid: NumericId,
}

impl Stat<'_> {
    /// The record of a Twstat that changes nothing: stat(5).
    pub const UNTOUCHED: Stat<'static> = Stat {
        kind: u16::MAX,
        dev: u32::MAX,
        qid: Qid { kind: u8::MAX, version: u32::MAX, path: u64::MAX },
        mode: u32::MAX,
        atime: u32::MAX,
        mtime: u32::MAX,
        length: u64::MAX,
        name: "",
        uid: "",
        gid: "",
        muid: "",
        extension: Extended(""),
        n_uid: NumericId::NONE,
        n_gid: NumericId::NONE,
        n_muid: NumericId::NONE,
    };

    /// How many bytes the record takes.
    pub fn size(&self, dialect: Dialect) -> usize {
        let more = if dialect == Dialect::Plain { 0 } else { FIXED_BYTES_MORE + self.extension.0.len() };
        FIXED_BYTES + self.name.len() + self.uid.len() + self.gid.len() + self.muid.len() + more
    }
}

impl<'a> Field<'a> for Stat<'a> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let size = u16::get(dialect, from)?;
        let mut inside = Cursor::new(from.take(size.into())?);
        let from = &mut inside;
        let stat = Stat {
            kind: Field::get(dialect, from)?,
            dev: Field::get(dialect, from)?,
            qid: Field::get(dialect, from)?,
            mode: Field::get(dialect, from)?,
            atime: Field::get(dialect, from)?,
            mtime: Field::get(dialect, from)?,
            length: Field::get(dialect, from)?,
            name: Field::get(dialect, from)?,
            uid: Field::get(dialect, from)?,
            gid: Field::get(dialect, from)?,
            muid: Field::get(dialect, from)?,
            extension: Field::get(dialect, from)?,
            n_uid: Field::get(dialect, from)?,
            n_gid: Field::get(dialect, from)?,
            n_muid: Field::get(dialect, from)?,
        };
        inside.finish()?;
        Ok(stat)
    }

    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        let size = self.size(dialect);
        into.put_u16_le(u16::try_from(size.saturating_sub(2)).map_err(|_| Malformed::TooLong(size))?);
        self.kind.put(dialect, into)?;
        self.dev.put(dialect, into)?;
        self.qid.put(dialect, into)?;
        self.mode.put(dialect, into)?;
        self.atime.put(dialect, into)?;
        self.mtime.put(dialect, into)?;
        self.length.put(dialect, into)?;
        self.name.put(dialect, into)?;
        self.uid.put(dialect, into)?;
        self.gid.put(dialect, into)?;
        self.muid.put(dialect, into)?;
        self.extension.put(dialect, into)?;
        self.n_uid.put(dialect, into)?;
        self.n_gid.put(dialect, into)?;
        self.n_muid.put(dialect, into)
    }
}

/// A record with one more count before it, as Rstat and Twstat have it ("to simplify conversion", stat(5) says).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<'a>(pub Stat<'a>);

impl<'a> Field<'a> for Counted<'a> {
    fn get(dialect: Dialect, from: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let count = u16::get(dialect, from)?;
        let mut inside = Cursor::new(from.take(count.into())?);
        let stat = Stat::get(dialect, &mut inside)?;
        inside.finish()?;
        Ok(Counted(stat))
    }

    fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
        let size = self.0.size(dialect);
        into.put_u16_le(u16::try_from(size).map_err(|_| Malformed::TooLong(size))?);
        self.0.put(dialect, into)
    }
}
