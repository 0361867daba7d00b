//! Open directories: read in pieces larger than the kernel's, since each costs a journey.

use super::link::Session;
use super::{Does, Shared, Trouble};
use crate::fs::fuse::Listing;
use crate::ninep::Qid;
use crate::ninep::client::{Entry, File};
use crate::ninep::linux::{mode, open};
use crate::text::{Code, Refusal};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most directories that are open at once.
const OPEN_MAX: usize = 16 * 1024;
/// How much of a directory is asked for at once, in bytes.
const PIECE_BYTES: u32 = 32 * 1024;

/// An open directory.
pub(super) struct Directory {
    session: u64,
    file: Arc<File>,
    /// What was read last, and how many of it the kernel has got.
    piece: Arc<Mutex<(Vec<Entry>, usize)>>,
}

impl Clone for Directory {
    fn clone(&self) -> Directory {
        Directory { session: self.session, file: self.file.clone(), piece: self.piece.clone() }
    }
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Directory>,
    last: u64,
}

/// The open directories, by number.
#[derive(Default)]
pub(super) struct Directories(Mutex<Table>);

impl Directories {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, directory: Directory) -> Result<u64, Refusal> {
        let mut table = self.table();
        if table.open.len() >= OPEN_MAX {
            return Err(Refusal::new(Code::NoSpace, format!("no space: {OPEN_MAX} directories are open")));
        }
        table.last += 1;
        let number = table.last;
        table.open.insert(number, directory);
        Ok(number)
    }

    fn get(&self, number: u64) -> Option<Directory> {
        self.table().open.get(&number).cloned()
    }

    /// The same directory over another connection.
    fn replace(&self, number: u64, directory: Directory) {
        let mut table = self.table();
        let before = table.open.get_mut(&number).map(|open| std::mem::replace(open, directory));
        drop(table);
        drop(before);
    }

    pub(super) fn close(&self, number: u64) {
        let closed = self.table().open.remove(&number);
        drop(closed);
    }
}

impl Directory {
    fn piece(&self) -> MutexGuard<'_, (Vec<Entry>, usize)> {
        self.piece.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what was read ahead and comes after this offset; false: nothing does.
    fn put(&self, session: &Session, offset: u64, listing: &mut Listing) -> Result<bool, Trouble> {
        let mut piece = self.piece();
        let (entries, given) = &mut *piece;
        let before = given.checked_sub(1).and_then(|last| entries.get(last)).map(|entry| entry.offset);
        if before != Some(offset) {
            // It was read from elsewhere meanwhile.
            match entries.iter().position(|entry| entry.offset == offset) {
                Some(at) if offset != 0 => *given = at + 1,
                _ => return Ok(false),
            }
        }
        let first = *given;
        while let Some(Entry { name, qid, offset }) = entries.get(*given) {
            if !listing.put(name, session.inode(qid.path)?, type_bits(*qid), *offset) {
                break;
            }
            *given += 1;
        }
        Ok(*given > first)
    }

    /// Puts entries after this offset, asking for more of them if there are none here.
    async fn list(&self, session: &Session, offset: u64, mut listing: Listing) -> Result<Listing, Trouble> {
        if offset != 0 && self.put(session, offset, &mut listing)? {
            return Ok(listing);
        }
        let entries = self.file.list(offset, PIECE_BYTES.min(session.data_bytes_max())).await?;
        let mut given = 0;
        for Entry { name, qid, offset } in &entries {
            if !listing.put(name, session.inode(qid.path)?, type_bits(*qid), *offset) {
                break;
            }
            given += 1;
        }
        *self.piece() = (entries, given);
        Ok(listing)
    }
}

fn type_bits(qid: Qid) -> u32 {
    match qid.kind {
        kind if kind & Qid::DIRECTORY != 0 => mode::DIRECTORY,
        kind if kind & Qid::LINK != 0 => mode::LINK,
        _ => mode::FILE,
    }
}

impl Shared {
    pub(super) async fn open_for_listing(&self, session: Arc<Session>, inode: u64) -> Result<Directory, Trouble> {
        let file = self.fid(&session, inode).await?.open(open::READ_ONLY | open::DIRECTORY).await?;
        Ok(Directory { session: session.number(), file: Arc::new(file), piece: Arc::default() })
    }

    pub(super) async fn list(
        &self,
        inode: u64,
        number: u64,
        offset: u64,
        listing: Listing,
    ) -> Result<Listing, Refusal> {
        let mut session = self.link.session().await?;
        let not_open = || Refusal::new(Code::BadFile, "not open");
        let mut directory = self.directories.get(number).ok_or_else(not_open)?;
        if directory.session != session.number() {
            // Offsets are the server's for ever, so that reading goes on where it was.
            let reopened = self.look(|session| self.open_for_listing(session, inode)).await?;
            self.directories.replace(number, reopened.clone());
            (session, directory) = (self.link.session().await?, reopened);
        }
        directory.list(&session, offset, listing).await.map_err(|trouble| trouble.refusal(Does::Look))
    }
}
