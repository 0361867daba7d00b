//! A tree of this process, as something to mount: inodes are its places.

use super::mounted::{Attributes, FileSystem, Found, Listing, Mounted};
use super::operations::BLOCK_BYTES;
use crate::fs::tree::{Answer, Caller, Creation, Credential, Kind, OpenMode, Opened, Place, Stat, Tree};
use crate::text::Refusal;
use rustix::fs::FileType;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// `.` and `..` come before the tree's own entries.
const DOTS: u64 = 2;
/// The longest name, in bytes.
const NAME_BYTES_MAX: u32 = 255;

/// A tree that can be mounted.
pub struct Local(pub Arc<dyn Tree>);

fn type_bits(kind: Kind) -> u32 {
    let kind = match kind {
        Kind::Directory => FileType::Directory,
        Kind::File | Kind::Stream => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    };
    kind.as_raw_mode()
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        inode: stat.place.0,
        mode: type_bits(stat.kind) | stat.mode,
        links: stat.nlink,
        uid: stat.owner_uid,
        gid: stat.group_gid,
        size: stat.size,
        modified: Duration::from_millis(stat.mtime_ms),
    }
}

impl Local {
    fn who(&self, uid: u32) -> Caller {
        self.0.caller(&Credential::Uid(uid), "the uid of the process, by FUSE", "fuse")
    }

    fn stat(&self, who: &Caller, inode: u64) -> Result<Attributes, Refusal> {
        self.0.stat(who, Place(inode)).map(|stat| attributes(&stat))
    }

    fn list_all(&self, who: &Caller, dir: Place, offset: u64, listing: &mut Listing) -> Result<(), Refusal> {
        let parent = self.0.walk(who, dir, "..").unwrap_or(Place::ROOT);
        for (cookie, name, place) in [(1, ".", dir), (DOTS, "..", parent)] {
            if offset < cookie && !listing.put(name, place.0, type_bits(Kind::Directory), cookie) {
                return Ok(());
            }
        }
        self.0.readdir(who, dir, offset.saturating_sub(DOTS), &mut |entry| {
            listing.put(&entry.name, entry.place.0, type_bits(entry.kind), entry.cookie + DOTS)
        })
    }
}

impl Mounted for Local {
    fn lookup(&self, uid: u32, directory: u64, name: &str) -> Answer<Found> {
        let who = self.who(uid);
        let stat = self.0.walk(&who, Place(directory), name).and_then(|place| self.0.stat(&who, place));
        Answer::Now(stat.map(|stat| Found { attributes: attributes(&stat), lasting: stat.lasting }))
    }

    fn attributes(&self, uid: u32, inode: u64) -> Answer<Attributes> {
        Answer::Now(self.stat(&self.who(uid), inode))
    }

    /// The kernel comes here without a lookup, and reads a directory only if it opens.
    fn open_directory(&self, uid: u32, inode: u64) -> Answer<u64> {
        Answer::Now(self.0.stat(&self.who(uid), Place(inode)).map(|_| 0))
    }

    fn list(&self, uid: u32, inode: u64, _number: u64, offset: u64, mut listing: Listing) -> Answer<Listing> {
        let listed = self.list_all(&self.who(uid), Place(inode), offset, &mut listing);
        Answer::Now(listed.map(|()| listing))
    }

    fn readlink(&self, uid: u32, inode: u64) -> Answer<String> {
        Answer::Now(self.0.readlink(&self.who(uid), Place(inode)))
    }

    fn open(&self, uid: u32, inode: u64, how: OpenMode) -> Answer<Opened> {
        Answer::Now(self.0.open(&self.who(uid), Place(inode), how))
    }

    fn remove(&self, uid: u32, directory: u64, name: &str, is_directory: bool) -> Answer<()> {
        self.0.remove(&self.who(uid), Place(directory), name, is_directory)
    }

    /// Truncation and times are taken where the file can be written, and mean nothing: `>`, touch and tee work.
    fn truncate(&self, uid: u32, inode: u64, size: Option<u64>) -> Answer<Attributes> {
        let who = self.who(uid);
        let truncated = self.0.truncate(&who, Place(inode), size.unwrap_or(0));
        Answer::Now(truncated.and_then(|()| self.stat(&who, inode)))
    }

    fn refuse(&self, uid: u32, directory: u64, name: &str, what: Creation) -> Answer<Infallible> {
        Answer::Now(Err(self.0.refuse_create(&self.who(uid), Place(directory), name, what)))
    }

    /// There is no disk behind it: no blocks, and nothing to run out of.
    fn file_system(&self, _uid: u32) -> Answer<FileSystem> {
        Answer::Now(Ok(FileSystem {
            block_bytes: BLOCK_BYTES,
            blocks: 0,
            blocks_free: 0,
            blocks_available: 0,
            files: 0,
            files_free: 0,
            name_bytes_max: NAME_BYTES_MAX,
        }))
    }

    fn note(&self, uid: u32, refusal: &Refusal) {
        self.0.note(&self.who(uid), refusal);
    }
}
