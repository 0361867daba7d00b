//! A fid, and what can be asked about the file that it stands for.

use super::connection::{Answered, Connection};
use super::file::{Ahead, File};
use super::{ANSWER_WITHIN, CHANGE_WITHIN, ClientError, unexpected};
use crate::ninep::field::{Cursor, DirEntry, Field};
use crate::ninep::linux::{AT_REMOVEDIR, Attributes, mode, setattr};
use crate::ninep::{Data, Dialect, List, Qid, Reply, Request};
use bytes::BytesMut;
use std::sync::Arc;

/// A fid of ours. Dropped, it is clunked.
pub struct Fid {
    pub(super) connection: Arc<Connection>,
    pub(super) number: u32,
    /// The server may know it, and it is to be clunked.
    pub(super) known: bool,
}

impl Drop for Fid {
    fn drop(&mut self) {
        if self.known {
            self.connection.clunk_later(self.number);
        }
    }
}

/// What the server tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which file.
    pub qid: Qid,
    /// Which of the attributes are there, and what else was asked for: bits of [`crate::ninep::linux::getattr`].
    pub valid: u64,
    /// The attributes.
    pub attributes: Attributes,
}

/// A directory's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Which file.
    pub qid: Qid,
    /// Reading goes on after it at this offset.
    pub offset: u64,
}

impl Entry {
    /// What it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Entry>() + self.name.len()
    }
}

/// What statfs(2) shows of the server's file system.
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

/// What is to be made, or to be made of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// A file, which would be open then: creat(2).
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A special file.
    Special,
    /// Something that is renamed.
    Renamed,
    /// What is there, with other permissions.
    Mode,
}

impl Fid {
    /// A fid that stands for nothing yet.
    pub(super) fn fresh(&self) -> Fid {
        Fid { connection: self.connection.clone(), number: self.connection.new_fid(), known: false }
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Answered, ClientError> {
        self.connection.ask(Some(ANSWER_WITHIN), request).await
    }

    async fn change(&self, request: &Request<'_>) -> Result<Answered, ClientError> {
        self.connection.ask(Some(CHANGE_WITHIN), request).await
    }

    /// One Twalk, of at most 16 names, to a fresh fid.
    pub(super) async fn step(&self, to: &mut Fid, names: &[&str]) -> Result<Vec<Qid>, ClientError> {
        let mut scratch = BytesMut::new();
        let request = walk(self.number, to.number, names, &mut scratch)?;
        // Until the answer is here, and if it never comes, the server may know the fid.
        to.known = true;
        let walked = reached(self.ask(&request).await, names.len());
        to.known = still_known(&walked, names.len());
        walked
    }

    /// The same, to itself.
    pub(super) async fn step_on(&self, names: &[&str]) -> Result<Vec<Qid>, ClientError> {
        let mut scratch = BytesMut::new();
        let request = walk(self.number, self.number, names, &mut scratch)?;
        reached(self.ask(&request).await, names.len())
    }

    /// The file that these names lead to, at most 16.
    ///
    /// # Errors
    /// As for every request. A name but the first one is not there: ENOENT.
    pub async fn walk(&self, names: &[&str]) -> Result<(Fid, Option<Qid>), ClientError> {
        const ENOENT: i32 = 2;
        let mut to = self.fresh();
        let qids = self.step(&mut to, names).await?;
        if to.known { Ok((to, qids.last().copied())) } else { Err(ClientError::Refused { errno: ENOENT }) }
    }

    /// What the server tells of the file; `mask` says what is wanted.
    ///
    /// # Errors
    /// As for every request.
    pub async fn look(&self, mask: u64) -> Result<Seen, ClientError> {
        seen(self.ask(&Request::Getattr { fid: self.number, request_mask: mask }).await)
    }

    /// The file with this name in a directory, and what the server tells of it, for one journey.
    ///
    /// # Errors
    /// As for every request.
    pub async fn walk_and_look(&self, name: &str, mask: u64) -> Result<(Fid, Seen), ClientError> {
        let (mut to, mut scratch) = (self.fresh(), BytesMut::new());
        let walking = walk(self.number, to.number, &[name], &mut scratch)?;
        let looking = Request::Getattr { fid: to.number, request_mask: mask };
        to.known = true;
        let [walked, looked] = self.connection.ask_all(Some(ANSWER_WITHIN), [&walking, &looking]).await?;
        let walked = reached(walked, 1);
        to.known = still_known(&walked, 1);
        walked?;
        Ok((to, seen(looked)?))
    }

    /// Opens the file under a fid of its own, with the flags of [`crate::ninep::linux::open`].
    ///
    /// # Errors
    /// As for every request.
    pub async fn open(&self, flags: u32) -> Result<File, ClientError> {
        let (mut to, mut scratch) = (self.fresh(), BytesMut::new());
        let walking = walk(self.number, to.number, &[], &mut scratch)?;
        let opening = Request::Lopen { fid: to.number, flags };
        to.known = true;
        let [walked, opened] = self.connection.ask_all(Some(ANSWER_WITHIN), [&walking, &opening]).await?;
        let walked = reached(walked, 0);
        to.known = still_known(&walked, 0);
        walked?;
        is_opened(opened)?;
        Ok(File { fid: to })
    }

    /// The same for reading, with what the server tells of the file then, and the first bytes of it.
    ///
    /// # Errors
    /// As for every request.
    pub async fn open_and_read(&self, flags: u32, mask: u64, count: u32) -> Result<(File, Ahead), ClientError> {
        let (mut to, mut scratch) = (self.fresh(), BytesMut::new());
        let fid = to.number;
        let walking = walk(self.number, fid, &[], &mut scratch)?;
        let (opening, reading) = (Request::Lopen { fid, flags }, Request::Read { fid, offset: 0, count });
        let looking = Request::Getattr { fid, request_mask: mask };
        to.known = true;
        let asking = self.connection.ask_all(Some(ANSWER_WITHIN), [&walking, &opening, &reading, &looking]);
        let [walked, opened, read, looked] = asking.await?;
        let walked = reached(walked, 0);
        to.known = still_known(&walked, 0);
        walked?;
        is_opened(opened)?;
        Ok((File { fid: to }, Ahead { seen: seen(looked)?, data: super::file::data(read, count)? }))
    }

    /// The entries after the one with this offset (0: from the start) of a directory that is open under this fid; none: the end.
    ///
    /// # Errors
    /// As for every request.
    pub async fn list(&self, offset: u64, count: u32) -> Result<Vec<Entry>, ClientError> {
        let answered = self.ask(&Request::Readdir { fid: self.number, offset, count }).await?;
        let reply = answered.reply()?;
        let Reply::Readdir { data: Data(records) } = reply else { return Err(unexpected(&reply)) };
        let (mut cursor, mut entries) = (Cursor::new(records), Vec::new());
        while !cursor.is_empty() {
            let DirEntry { qid, offset, name, .. } = DirEntry::get(Dialect::L, &mut cursor)?;
            if name.is_empty() || name.contains(['/', '\0']) {
                return Err(ClientError::Protocol("a name in a directory is none".into()));
            }
            entries.push(Entry { name: name.to_owned(), qid, offset });
        }
        Ok(entries)
    }

    /// The target of a link.
    ///
    /// # Errors
    /// As for every request.
    pub async fn readlink(&self) -> Result<String, ClientError> {
        let answered = self.ask(&Request::Readlink { fid: self.number }).await?;
        match answered.reply()? {
            Reply::Readlink { target } => Ok(target.to_owned()),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a name of a directory: one of a directory as rmdir(2), else as unlink(2).
    ///
    /// # Errors
    /// As for every request.
    pub async fn remove(&self, name: &str, is_directory: bool) -> Result<(), ClientError> {
        let flags = if is_directory { AT_REMOVEDIR } else { 0 };
        let answered = self.change(&Request::Unlinkat { dirfid: self.number, name, flags }).await?;
        match answered.reply()? {
            Reply::Unlinkat {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives the file this size.
    ///
    /// # Errors
    /// As for every request.
    pub async fn truncate(&self, size: u64) -> Result<(), ClientError> {
        self.set(setattr::SIZE, 0, size).await
    }

    async fn set(&self, valid: u32, mode: u32, size: u64) -> Result<(), ClientError> {
        let fid = self.number;
        let request = Request::Setattr {
            fid,
            valid,
            mode,
            uid: 0,
            gid: 0,
            size,
            atime_sec: 0,
            atime_nsec: 0,
            mtime_sec: 0,
            mtime_nsec: 0,
        };
        let answered = self.change(&request).await?;
        match answered.reply()? {
            Reply::Setattr {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Tries to make something with this name in a directory, under a fid that is given up again.
    ///
    /// # Errors
    /// As for every request.
    pub async fn make(&self, name: &str, what: Made) -> Result<(), ClientError> {
        let (fid, gid) = (self.number, rustix::process::getegid().as_raw());
        let request = match what {
            Made::Directory => Request::Mkdir { dfid: fid, name, mode: mode::DIRECTORY, gid },
            Made::Link => Request::Symlink { fid, name, target: name, gid },
            Made::Special => Request::Mknod { dfid: fid, name, mode: mode::FILE, major: 0, minor: 0, gid },
            Made::Renamed => Request::Renameat { olddirfid: fid, oldname: name, newdirfid: fid, newname: name },
            Made::Mode => return self.set(setattr::MODE, 0, 0).await,
            Made::File => {
                let (own, _) = self.walk(&[]).await?;
                let request = Request::Lcreate { fid: own.number, name, flags: 0, mode: 0, gid };
                return own.change(&request).await.map(drop);
            }
        };
        self.change(&request).await.map(drop)
    }

    /// What statfs(2) shows.
    ///
    /// # Errors
    /// As for every request.
    pub async fn file_system(&self) -> Result<FileSystem, ClientError> {
        let answered = self.ask(&Request::Statfs { fid: self.number }).await?;
        match answered.reply()? {
            Reply::Statfs { bsize, blocks, bfree, bavail, files, ffree, namelen, .. } => Ok(FileSystem {
                block_bytes: bsize,
                blocks,
                blocks_free: bfree,
                blocks_available: bavail,
                files,
                files_free: ffree,
                name_bytes_max: namelen,
            }),
            other => Err(unexpected(&other)),
        }
    }
}

fn walk<'a>(fid: u32, newfid: u32, names: &[&'a str], scratch: &'a mut BytesMut) -> Result<Request<'a>, ClientError> {
    let names = List::of(names, scratch).map_err(|e| ClientError::TooLong(e.to_string()))?;
    Ok(Request::Walk { fid, newfid, names })
}

/// The qids of an Rwalk to so many names.
fn reached(answered: Result<Answered, ClientError>, most: usize) -> Result<Vec<Qid>, ClientError> {
    let answered = answered?;
    match answered.reply()? {
        Reply::Walk { qids } if qids.len() <= most => Ok(qids.iter().collect()),
        other => Err(unexpected(&other)),
    }
}

/// May the server know the fid that was to be walked to?
fn still_known(walked: &Result<Vec<Qid>, ClientError>, names: usize) -> bool {
    match walked {
        Ok(qids) => qids.len() == names,
        Err(ClientError::Refused { .. }) => false,
        Err(_) => true,
    }
}

fn seen(answered: Result<Answered, ClientError>) -> Result<Seen, ClientError> {
    let answered = answered?;
    match answered.reply()? {
        Reply::Getattr { valid, qid, attributes } => Ok(Seen { qid, valid, attributes }),
        other => Err(unexpected(&other)),
    }
}

fn is_opened(answered: Result<Answered, ClientError>) -> Result<(), ClientError> {
    let answered = answered?;
    match answered.reply()? {
        Reply::Lopen { .. } => Ok(()),
        other => Err(unexpected(&other)),
    }
}
