//! What is mounted: the few operations that the kernel asks for, speaking inodes, each answered now or later.

use crate::fs::tree::{Answer, Creation, OpenMode, Opened};
use crate::text::Refusal;
use polyfuse::reply::ReaddirOut;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::time::Duration;

/// The inode of the root, which the kernel knows without a lookup.
pub const ROOT_INODE: u64 = 1;

/// What stat(2) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Which file.
    pub inode: u64,
    /// Type and permission bits, as st_mode has them.
    pub mode: u32,
    /// Number of links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last change, since the epoch.
    pub modified: Duration,
}

/// What a name led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What is there.
    pub attributes: Attributes,
    /// The kernel may remember the way: in this directory, the name never means another file, not even when this one is gone.
    pub lasting: bool,
}

/// What statfs(2) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub blocks_free: u64,
    /// Those that are free for everybody.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub files_free: u64,
    /// The longest name, in bytes.
    pub name_bytes_max: u32,
}

/// A part of a directory, with room for as much as the kernel asked for.
pub struct Listing(ReaddirOut);

impl Listing {
    pub(super) fn new(room: u32) -> Listing {
        Listing(ReaddirOut::new(usize::try_from(room).unwrap_or(0)))
    }

    pub(super) fn out(self) -> ReaddirOut {
        self.0
    }

    /// Adds an entry, whose type bits are those of `mode`; reading goes on after it at `offset`. False: there is no room for it.
    pub fn put(&mut self, name: &str, inode: u64, mode: u32, offset: u64) -> bool {
        !self.0.entry(OsStr::new(name), inode, mode >> 12, offset)
    }
}

/// What can be mounted. `uid` is that of the process which asks. Dropping what is answered later cancels it.
pub trait Mounted: Send + Sync + 'static {
    /// What `name` is in a directory. Each answer that reaches the kernel is one lookup of the inode, until it is forgotten.
    fn lookup(&self, uid: u32, directory: u64, name: &str) -> Answer<Found>;

    /// The kernel forgets so many lookups of an inode.
    fn forget(&self, _inode: u64, _lookups: u64) {}

    /// What stat(2) shows.
    fn attributes(&self, uid: u32, inode: u64) -> Answer<Attributes>;

    /// Opens a directory; the number is given back with each [`Mounted::list`].
    fn open_directory(&self, uid: u32, inode: u64) -> Answer<u64>;

    /// The entries of a directory after the one with this offset (0: from the start), as many as there is room for; `.` and `..`
    /// are among them.
    fn list(&self, uid: u32, inode: u64, number: u64, offset: u64, listing: Listing) -> Answer<Listing>;

    /// The end of an open directory.
    fn close_directory(&self, _number: u64) {}

    /// A link's target.
    fn readlink(&self, uid: u32, inode: u64) -> Answer<String>;

    /// Opens a file.
    fn open(&self, uid: u32, inode: u64, how: OpenMode) -> Answer<Opened>;

    /// rmdir(2), or unlink(2).
    fn remove(&self, uid: u32, directory: u64, name: &str, is_directory: bool) -> Answer<()>;

    /// truncate(2); without a size the change of times that touch(1) wants. The answer is what stat(2) shows then.
    fn truncate(&self, uid: u32, inode: u64, size: Option<u64>) -> Answer<Attributes>;

    /// Why `name` can't be made in a directory, or be changed.
    fn refuse(&self, uid: u32, directory: u64, name: &str, what: Creation) -> Answer<Infallible>;

    /// What statfs(2) shows.
    fn file_system(&self, uid: u32) -> Answer<FileSystem>;

    /// Notes a refusal of the front itself where the user finds it.
    fn note(&self, uid: u32, refusal: &Refusal);
}
