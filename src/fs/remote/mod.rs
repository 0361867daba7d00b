//! A remote tree as something to mount: what the kernel asks is asked of a 9P2000.L server. Knows `fuse`, `tree`, `ninep`, `text`.
//!
//! An inode is a qid.path. What is lost with a connection is found again by path on the next one:
//!
//! - harmless requests are asked again; those that change something are not, and answer ETIMEDOUT: the outcome is unknown
//! - while there is no server every request fails at once with EHOSTDOWN
//! - `link.rs`: the connection, made anew when it is lost
//! - `inodes.rs`: what the kernel remembers; `files.rs`, `directories.rs`: what is open

mod directories;
mod files;
mod inodes;
mod link;

pub use link::Link;

use super::fuse::{Attributes, FileSystem, Found, Listing, Mounted, PAGE_BYTES, ROOT_INODE, WRITE_BYTES_MAX};
use super::tree::{Answer, Creation, OpenMode, Opened};
use crate::ninep::client::{ClientError, Fid, Made, Seen};
use crate::ninep::linux::getattr;
use crate::ninep::{Qid, WALK_NAMES_MAX};
use crate::text::{Code, Refusal};
use directories::Directories;
use inodes::Inodes;
use link::Session;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is asked about every file.
const MASK: u64 = getattr::BASIC | getattr::STREAM | getattr::LASTING;

/// For how long attributes that came with an open answer a stat(2): for what a program needs from its open to its fstat, and for
/// less than a commit takes, so that who has seen a write return sees it.
const OPENED_FOR: Duration = Duration::from_micros(200);

/// A remote tree.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

struct Shared {
    link: Link,
    inodes: Inodes,
    directories: Directories,
    /// What the last open has brought along.
    opened: Mutex<Option<JustOpened>>,
}

/// Attributes as they were at an open, for the fstat(2) that most programs begin with.
#[derive(Clone, Copy)]
struct JustOpened {
    attributes: Attributes,
    at: Instant,
}

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Refusal(#[from] Refusal),
}

/// What a request does, for what is said when its outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Look,
    Change,
}

impl Trouble {
    /// The connection has ended under it.
    fn is_loss(&self) -> bool {
        matches!(self, Trouble::Client(ClientError::Closed(_) | ClientError::Lost(_)))
    }

    fn refusal(self, does: Does) -> Refusal {
        let error = match self {
            Trouble::Refusal(refusal) => return refusal,
            Trouble::Client(error) => error,
        };
        let code = match (&error, does) {
            (ClientError::Refused { errno }, _) => Code::of_errno(*errno).unwrap_or(Code::Fault),
            (ClientError::Lost(_) | ClientError::TimedOut(_), Does::Change) => Code::TimedOut,
            (ClientError::TooLong(_), _) => Code::TooLong,
            (ClientError::Lost(_) | ClientError::Protocol(_), _) => Code::Fault,
            _ => Code::HostDown,
        };
        Refusal::new(code, error.to_string())
    }
}

fn gone() -> Trouble {
    super::tree::gone().into()
}

fn attributes(inode: u64, seen: &Seen) -> Attributes {
    let of = &seen.attributes;
    let nanoseconds = u32::try_from(of.mtime_nsec).unwrap_or(0).min(999_999_999);
    Attributes {
        inode,
        mode: of.mode,
        links: u32::try_from(of.nlink).unwrap_or(u32::MAX),
        uid: of.uid,
        gid: of.gid,
        size: of.size,
        modified: Duration::new(of.mtime_sec, nanoseconds),
    }
}

impl Shared {
    /// The fid that stands for an inode over this connection; it is walked to if it has none.
    async fn fid(&self, session: &Session, inode: u64) -> Result<Arc<Fid>, Trouble> {
        if inode == ROOT_INODE {
            return Ok(session.root());
        }
        if let Some(fid) = self.inodes.fid(inode, session.number()) {
            return Ok(fid);
        }
        let names = self.inodes.path(inode).ok_or_else(gone)?;
        let (mut fid, mut qid) = (session.root(), None);
        for chunk in names.chunks(WALK_NAMES_MAX) {
            let chunk: Vec<&str> = chunk.iter().map(AsRef::as_ref).collect();
            let (next, last) = fid.walk(&chunk).await?;
            (fid, qid) = (Arc::new(next), last);
        }
        // The name may be another's by now.
        let Some(Qid { path, .. }) = qid else { return Err(gone()) };
        if session.inode(path)? != inode {
            return Err(gone());
        }
        self.inodes.keep_fid(inode, session.number(), fid.clone());
        Ok(fid)
    }

    fn opened(&self) -> MutexGuard<'_, Option<JustOpened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an open has brought along a moment ago; once.
    fn just_opened(&self, inode: u64) -> Option<Attributes> {
        let opened = self.opened().take_if(|opened| opened.attributes.inode == inode)?;
        (opened.at.elapsed() < OPENED_FOR).then_some(opened.attributes)
    }

    /// Does what is harmless, and does it again when the connection was lost under it.
    async fn look<T, F>(&self, act: impl Fn(Arc<Session>) -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let session = self.link.session().await?;
        let trouble = match act(session.clone()).await {
            Err(trouble) if trouble.is_loss() => trouble,
            other => return other.map_err(|trouble| trouble.refusal(Does::Look)),
        };
        tracing::debug!(%trouble, "asked again over the next connection");
        let session = self.link.after(&session).await?;
        act(session).await.map_err(|trouble| trouble.refusal(Does::Look))
    }

    /// Does what changes something, once.
    async fn change<T, F>(&self, act: impl FnOnce(Arc<Session>) -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        *self.opened() = None;
        act(self.link.session().await?).await.map_err(|trouble| trouble.refusal(Does::Change))
    }

    async fn lookup(&self, session: Arc<Session>, directory: u64, name: &str) -> Result<Found, Trouble> {
        let parent = self.fid(&session, directory).await?;
        let (fid, seen) = parent.walk_and_look(name, MASK).await?;
        let inode = session.inode(seen.qid.path)?;
        let hints = session.hints(&seen);
        // No wait after this: the lookup counts from here on.
        self.inodes.looked_up(inode, (directory, name), (session.number(), Arc::new(fid)), hints.stream);
        Ok(Found { attributes: attributes(inode, &seen), lasting: hints.lasting })
    }

    async fn readlink(&self, session: Arc<Session>, inode: u64) -> Result<String, Trouble> {
        Ok(self.fid(&session, inode).await?.readlink().await?)
    }

    async fn remove(&self, session: Arc<Session>, way: (u64, &str), is_directory: bool) -> Result<(), Trouble> {
        let (directory, name) = way;
        Ok(self.fid(&session, directory).await?.remove(name, is_directory).await?)
    }

    async fn set_size(&self, session: Arc<Session>, inode: u64, size: u64) -> Result<(), Trouble> {
        Ok(self.fid(&session, inode).await?.truncate(size).await?)
    }

    async fn make(&self, session: Arc<Session>, way: (u64, &str), what: Made) -> Result<(), Trouble> {
        let (directory, name) = way;
        Ok(self.fid(&session, directory).await?.make(name, what).await?)
    }

    async fn attributes(&self, session: Arc<Session>, inode: u64) -> Result<Attributes, Trouble> {
        let seen = self.fid(&session, inode).await?.look(MASK).await?;
        Ok(attributes(inode, &seen))
    }
}

impl Remote {
    /// The tree that this link leads to.
    pub fn new(link: Link) -> Remote {
        let (inodes, directories, opened) = (Inodes::default(), Directories::default(), Mutex::default());
        Remote(Arc::new(Shared { link, inodes, directories, opened }))
    }

    /// Where the kernel is to cut writes, in bytes: as the local mount does, or so that one which does not fit into a message
    /// comes with at least a byte too many, and is refused whole.
    pub fn write_bytes_max(&self) -> u32 {
        let most = self.0.link.data_bytes_max();
        (most.next_multiple_of(PAGE_BYTES) + PAGE_BYTES).min(WRITE_BYTES_MAX)
    }

    /// An answer that comes when this has been done.
    fn later<T, F>(&self, act: impl FnOnce(Arc<Shared>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        Answer::Later(Box::pin(act(self.0.clone())))
    }
}

impl Mounted for Remote {
    fn lookup(&self, _uid: u32, directory: u64, name: &str) -> Answer<Found> {
        let name = name.to_owned();
        self.later(move |shared| async move { shared.look(|session| shared.lookup(session, directory, &name)).await })
    }

    fn forget(&self, inode: u64, lookups: u64) {
        self.0.inodes.forget(inode, lookups);
    }

    fn attributes(&self, _uid: u32, inode: u64) -> Answer<Attributes> {
        if let Some(attributes) = self.0.just_opened(inode) {
            return Answer::Now(Ok(attributes));
        }
        self.later(move |shared| async move { shared.look(|session| shared.attributes(session, inode)).await })
    }

    fn open_directory(&self, _uid: u32, inode: u64) -> Answer<u64> {
        self.later(move |shared| async move {
            let file = shared.look(|session| shared.open_for_listing(session, inode)).await?;
            shared.directories.keep(file)
        })
    }

    fn list(&self, _uid: u32, inode: u64, number: u64, offset: u64, listing: Listing) -> Answer<Listing> {
        self.later(move |shared| async move { shared.list(inode, number, offset, listing).await })
    }

    fn close_directory(&self, number: u64) {
        self.0.directories.close(number);
    }

    fn readlink(&self, _uid: u32, inode: u64) -> Answer<String> {
        self.later(move |shared| async move { shared.look(|session| shared.readlink(session, inode)).await })
    }

    fn open(&self, _uid: u32, inode: u64, how: OpenMode) -> Answer<Opened> {
        self.later(move |shared| async move { files::open(shared, inode, how).await })
    }

    fn remove(&self, _uid: u32, directory: u64, name: &str, is_directory: bool) -> Answer<()> {
        let name = name.to_owned();
        self.later(move |shared| async move {
            shared.change(|session| shared.remove(session, (directory, &name), is_directory)).await
        })
    }

    /// Times alone are taken here where the file can be written, and mean nothing, as on a local mount.
    fn truncate(&self, _uid: u32, inode: u64, size: Option<u64>) -> Answer<Attributes> {
        self.later(move |shared| async move {
            if let Some(size) = size {
                shared.change(|session| shared.set_size(session, inode, size)).await?;
            }
            let seen = shared.look(|session| shared.attributes(session, inode)).await?;
            let denied = size.is_none() && seen.mode & 0o222 == 0;
            if denied { Err(Refusal::denied("permission denied: it can't be written")) } else { Ok(seen) }
        })
    }

    fn refuse(&self, _uid: u32, directory: u64, name: &str, what: Creation) -> Answer<Infallible> {
        let name = name.to_owned();
        let made = match what {
            Creation::File => Made::File,
            Creation::Directory => Made::Directory,
            Creation::Link => Made::Link,
            Creation::Special => Made::Special,
            Creation::Rename => Made::Renamed,
            Creation::Attributes => Made::Mode,
        };
        self.later(move |shared| async move {
            shared.change(|session| shared.make(session, (directory, &name), made)).await?;
            Err(Refusal::not_permitted("not permitted: the server would do what no tree of Blixard does"))
        })
    }

    fn file_system(&self, _uid: u32) -> Answer<FileSystem> {
        self.later(move |shared| async move {
            let found = shared.look(|session| async move { Ok(session.root().file_system().await?) }).await?;
            Ok(FileSystem {
                block_bytes: found.block_bytes,
                blocks: found.blocks,
                blocks_free: found.blocks_free,
                blocks_available: found.blocks_available,
                files: found.files,
                files_free: found.files_free,
                name_bytes_max: found.name_bytes_max,
            })
        })
    }

    /// What this front refuses itself is no news to the server's `/err`.
    fn note(&self, _uid: u32, refusal: &Refusal) {
        tracing::warn!(%refusal, "refused here");
    }
}
