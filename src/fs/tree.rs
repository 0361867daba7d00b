//! What a tree is to the fronts that serve it (`fuse.rs`, `ninep/`): places, stats, open files.
//!
//! The tree never sees which front is asking, and a front never sees what a file is about. Everything but reading and
//! writing an open file answers at once; those two may wait, and are cancelled by dropping what they returned.

use crate::text::{Code, Refusal};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

/// A place in the tree: what a fid or an inode stands for. It is the qid.path and the inode number: kind, file and id
/// packed, the same on every node and after restarts. The root is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

impl Place {
    /// `/`. FUSE wants it to be inode 1.
    pub const ROOT: Place = Place(1);
}

/// What a front knows of who is at its other end; nothing that they say of themselves is among it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// The uid that the kernel reported.
    Uid(u32),
    /// A certificate that the cluster's authority has signed, and whose key they have.
    Certificate {
        /// The user that it was issued for.
        name: String,
        /// Its number, in hexadecimal.
        serial: String,
        /// When it was issued, milliseconds since the epoch.
        issued_ms: u64,
    },
    /// A node of the cluster, which says for whom it asks.
    Node {
        /// The node's name, by its certificate.
        name: String,
        /// The user's name, by its word; empty until it has said it.
        user: String,
    },
    /// Nothing.
    Unknown,
}

/// How a user is recognised for whom another node asks.
pub const BY_A_NODE: &str = "another node's word";

/// Who is asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The uid that the kernel reported, if it did.
    pub uid: Option<u32>,
    /// The name by which the cluster knows them (`none`: it doesn't).
    pub user: String,
    /// How they were recognised: `fuse uid`, `unix socket uid`, ... for `/me`.
    pub authenticated_by: &'static str,
    /// The front and its dialect: `fuse`, `9P2000.L`, ... for `/me` alone.
    pub dialect: &'static str,
    /// Where they are, if that is not this machine: for `/me` alone.
    pub from: String,
}

/// What kind of thing is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file whose text is made when it is opened.
    File,
    /// A file that ignores offsets: streams, `new`, `ctl`, whatever answers (one cursor an open).
    Stream,
    /// A symbolic link.
    Link,
}

/// What `stat` says of a place, to the caller who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Which place.
    pub place: Place,
    /// What is there.
    pub kind: Kind,
    /// Permission bits (0o777); for this caller they tell the truth.
    pub mode: u32,
    /// The size that an open now would have; 0 for streams and directories; a link's target length.
    pub size: u64,
    /// The qid's version: changes when the content does.
    pub version: u32,
    /// Last change, milliseconds since the epoch, by the cluster's clock.
    pub mtime_ms: u64,
    /// The owner's name.
    pub owner: String,
    /// The owner's uid on this node.
    pub owner_uid: u32,
    /// The group's id on this node.
    pub group_gid: u32,
    /// Number of links (2 + subdirectories for a directory, 1 else).
    pub nlink: u32,
    /// True: as long as its directory is the same, its name never means another place, not even when this one is gone. So the
    /// way to it may be remembered, though not that it is there.
    pub lasting: bool,
}

/// What a qid has of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which place.
    pub place: Place,
    /// What is there.
    pub kind: Kind,
    /// Changes when the content does.
    pub version: u32,
}

impl Identity {
    /// That of what was stat'ed.
    pub fn of(stat: &Stat) -> Identity {
        Identity { place: stat.place, kind: stat.kind, version: stat.version }
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// What is there.
    pub place: Place,
    /// What kind of thing.
    pub kind: Kind,
    /// Reading on after this entry starts with this cookie; it stays valid while objects come and go.
    pub cookie: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_NONBLOCK: a stream then gives what there is and ends.
    pub nonblock: bool,
}

/// An answer that is here, or one that has to be waited for. Dropping the future cancels the wait; a command that
/// was handed to the log may still take effect.
pub enum Answer<T> {
    /// Here it is.
    Now(Result<T, Refusal>),
    /// Wait for it.
    Later(BoxFuture<'static, Result<T, Refusal>>),
}

/// An open file. One open has one handle; calls on it may come concurrently, and the handle orders them where it matters.
/// Dropping it is the close.
pub trait Handle: Send + Sync {
    /// Up to `count` bytes from `offset`; an empty answer is the end. Streams ignore `offset`.
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes>;
    /// Takes all of `data` or refuses all of it; the answer is its length.
    fn write(&self, offset: u64, data: Bytes) -> Answer<usize>;
}

/// What an open gives.
pub struct Opened {
    /// The open file.
    pub handle: Arc<dyn Handle>,
    /// True: offsets are ignored (FOPEN_STREAM), one cursor.
    pub stream: bool,
    /// True: what is written are lines that take effect write by write, so that a write which the client has cut at its
    /// transfer size must be refused.
    pub commands: bool,
}

/// A tree, as the fronts see it.
pub trait Tree: Send + Sync + 'static {
    /// Who is this? Whoever is not to be let in is nobody.
    fn caller(&self, credential: &Credential, authenticated_by: &'static str, dialect: &'static str) -> Caller;

    /// May they come in at all? Asked before a session begins.
    fn admit(&self, _credential: &Credential) -> Result<(), Refusal> {
        Ok(())
    }

    /// The place of `name` in `dir`. `..` is the parent; of the root, the root.
    fn walk(&self, who: &Caller, dir: Place, name: &str) -> Result<Place, Refusal>;

    /// The name of a place in its directory; of the root, `/`.
    fn name(&self, who: &Caller, place: Place) -> Result<String, Refusal>;

    /// What is at a place.
    fn stat(&self, who: &Caller, place: Place) -> Result<Stat, Refusal>;

    /// What stat says of it as far as a qid has it, for who needs no more: a size may cost the making of a text.
    fn identity(&self, who: &Caller, place: Place) -> Result<Identity, Refusal> {
        self.stat(who, place).map(|stat| Identity::of(&stat))
    }

    /// Calls `visit` for each entry of `dir` after the one with cookie `after` (0: from the start) until it says false.
    /// `.` and `..` are not among them.
    fn readdir(
        &self,
        who: &Caller,
        dir: Place,
        after: u64,
        visit: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<(), Refusal>;

    /// A link's target, relative to its directory. It has no slash: it names an object beside it.
    fn readlink(&self, who: &Caller, place: Place) -> Result<String, Refusal>;

    /// Opens a file (not a directory).
    fn open(&self, who: &Caller, place: Place, how: OpenMode) -> Result<Opened, Refusal>;

    /// rmdir or rm of `name` in `dir`; `directory` tells which. An object's directory is deleted by rmdir.
    fn remove(&self, who: &Caller, dir: Place, name: &str, directory: bool) -> Answer<()>;

    /// O_TRUNC, `truncate`, setattr of the size: accepted on what can be written and means nothing, else refused.
    fn truncate(&self, who: &Caller, place: Place, size: u64) -> Result<(), Refusal>;

    /// Why an attempt to make `name` in `dir` (create, mkdir, symlink, link, mknod, rename to it) is refused. Each
    /// front shows the sentence.
    fn refuse_create(&self, who: &Caller, dir: Place, name: &str, what: Creation) -> Refusal;

    /// Notes a refusal for `/err`; the fronts call it for what they refuse themselves (codec, limits).
    fn note(&self, who: &Caller, refusal: &Refusal);
}

/// What somebody tried to make; only for the sentence of the refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// open(O_CREAT), creat.
    File,
    /// mkdir.
    Directory,
    /// symlink, link.
    Link,
    /// mknod.
    Special,
    /// rename.
    Rename,
    /// chmod, chown, utimes, xattr: attributes are not settable.
    Attributes,
}

/// The refusal of a front for a place that is not in the tree any more.
pub fn gone() -> Refusal {
    Refusal::new(Code::NotFound, "not found: it is not there any more")
}
