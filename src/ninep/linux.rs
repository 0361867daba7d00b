//! The numbers that 9P2000.L takes from Linux, whatever machine is at either end: open flags, masks, modes, d_type.

use super::dialect::Dialect;
use super::field::{Cursor, Field, Malformed};
use bytes::BytesMut;

/// Flags of Tlopen (P9_DOTL_* of Linux's `include/net/9p/9p.h`: those of x86).
pub mod open {
    /// The bits of the access mode.
    pub const ACCESS: u32 = 0o3;
    /// For reading.
    pub const READ_ONLY: u32 = 0;
    /// For writing.
    pub const WRITE_ONLY: u32 = 0o1;
    /// For both.
    pub const READ_WRITE: u32 = 0o2;
    /// O_TRUNC.
    pub const TRUNCATE: u32 = 0o1000;
    /// O_APPEND.
    pub const APPEND: u32 = 0o2000;
    /// O_NONBLOCK.
    pub const NONBLOCK: u32 = 0o4000;
    /// O_DIRECTORY.
    pub const DIRECTORY: u32 = 0o200_000;
}

/// Bits of Tgetattr's mask.
pub mod getattr {
    /// All that stat(2) shows.
    pub const BASIC: u64 = 0x7ff;
    /// The data version.
    pub const DATA_VERSION: u64 = 0x2000;
    /// Asks, and in the answer says, that offsets mean nothing to this file: it has one cursor an open. Our own bit; who doesn't
    /// know it leaves it out of the answer.
    pub const STREAM: u64 = 1 << 62;
    /// Asks, and in the answer says, that in its directory the file's name never means another file. Our own bit, too.
    pub const LASTING: u64 = 1 << 63;
}

/// Bits of Tsetattr's `valid`.
pub mod setattr {
    /// chmod(2).
    pub const MODE: u32 = 0x1;
    /// chown(2).
    pub const UID: u32 = 0x2;
    /// chown(2).
    pub const GID: u32 = 0x4;
    /// truncate(2).
    pub const SIZE: u32 = 0x8;
    /// utimes(2); without [`ATIME_SET`]: now.
    pub const ATIME: u32 = 0x10;
    /// utimes(2); without [`MTIME_SET`]: now.
    pub const MTIME: u32 = 0x20;
    /// To a given time.
    pub const ATIME_SET: u32 = 0x80;
    /// To a given time.
    pub const MTIME_SET: u32 = 0x100;
}

/// The type bits of a mode.
pub mod mode {
    /// The mask.
    pub const TYPE: u32 = 0o170_000;
    /// S_IFDIR.
    pub const DIRECTORY: u32 = 0o040_000;
    /// S_IFREG.
    pub const FILE: u32 = 0o100_000;
    /// S_IFLNK.
    pub const LINK: u32 = 0o120_000;
}

/// d_type of readdir(3).
pub mod dirent {
    /// DT_DIR.
    pub const DIRECTORY: u8 = 4;
    /// DT_REG.
    pub const FILE: u8 = 8;
    /// DT_LNK.
    pub const LINK: u8 = 10;
}

/// AT_REMOVEDIR of Tunlinkat's flags.
pub const AT_REMOVEDIR: u32 = 0x200;
/// V9FS_MAGIC: the type of the file system in Rstatfs.
pub const FILE_SYSTEM_MAGIC: u32 = 0x0102_1997;
/// NAME_MAX: the longest name, in bytes.
pub const NAME_MAX: u32 = 255;

macro_rules! attributes {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty,)*) => {
        /// What stat(2) says, as Rgetattr carries it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Attributes { $( $(#[doc = $doc])* pub $field: $type, )* }

        impl Field<'_> for Attributes {
            fn get(dialect: Dialect, from: &mut Cursor<'_>) -> Result<Self, Malformed> {
                Ok(Attributes { $($field: <$type>::get(dialect, from)?),* })
            }
            fn put(&self, dialect: Dialect, into: &mut BytesMut) -> Result<(), Malformed> {
                $( self.$field.put(dialect, into)?; )*
                Ok(())
            }
        }
    };
}
attributes! {
    /// Type and permission bits.
    mode: u32,
    /// Owner.
    uid: u32,
    /// Group.
    gid: u32,
    /// Number of links.
    nlink: u64,
    /// Device of a special file.
    rdev: u64,
    /// Bytes.
    size: u64,
    /// The best size for reads and writes, in bytes.
    blksize: u64,
    /// Blocks of 512 bytes.
    blocks: u64,
    /// Last read: seconds.
    atime_sec: u64,
    /// Last read: nanoseconds.
    atime_nsec: u64,
    /// Last change: seconds.
    mtime_sec: u64,
    /// Last change: nanoseconds.
    mtime_nsec: u64,
    /// Last change of the attributes: seconds.
    ctime_sec: u64,
    /// Last change of the attributes: nanoseconds.
    ctime_nsec: u64,
    /// Creation: seconds.
    btime_sec: u64,
    /// Creation: nanoseconds.
    btime_nsec: u64,
    /// The inode's generation, which has no bit in [`getattr::BASIC`].
    generation: u64,
    /// Changes when the content does.
    data_version: u64,
}
