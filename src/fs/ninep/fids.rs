//! The fids of one session: what a client's numbers stand for.

use super::limits::FIDS_MAX;
use super::session::{Failure, own};
use crate::fs::tree::{Caller, Handle, Kind, OpenMode, Place};
use crate::text::Code;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// What a fid stands for.
pub(super) struct Fid {
    /// Who attached.
    pub who: Arc<Caller>,
    /// Where it attached: `..` leads no further up.
    pub root: Place,
    /// Where it is.
    pub place: Place,
    /// What is there.
    pub kind: Kind,
    /// Whether and how it is open.
    pub open: Option<Open>,
    /// Requests that wait on it.
    pub running: u32,
}

/// How far a directory was read by Tread; Treaddir carries the cookie itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Listed {
    /// The offset with which the next read goes on.
    pub offset: u64,
    /// The cookie of the last entry before it.
    pub after: u64,
}

/// An open fid.
pub(super) enum Open {
    /// A directory: it is read anew each time.
    Directory(Listed),
    /// A file.
    File {
        /// Its handle.
        handle: Arc<dyn Handle>,
        /// How it was opened.
        how: OpenMode,
        /// A write must not have been cut.
        commands: bool,
    },
}

impl Fid {
    /// The same place, not open.
    pub fn clone_unopened(&self) -> Fid {
        let who = self.who.clone();
        Fid { who, root: self.root, place: self.place, kind: self.kind, open: None, running: 0 }
    }

    /// It, if it is a directory.
    pub fn directory(&self) -> Result<&Fid, Failure> {
        match self.kind {
            Kind::Directory => Ok(self),
            _ => Err(own(Code::NotDirectory, "invalid fid: it is a file, and a directory is needed")),
        }
    }
}

/// The table.
#[derive(Default)]
pub(super) struct Fids {
    table: HashMap<u32, Fid>,
}

impl Fids {
    /// The fid with this number.
    pub fn get(&self, number: u32) -> Result<&Fid, Failure> {
        self.table.get(&number).ok_or_else(|| unknown(number))
    }

    /// The fid with this number, to be changed.
    pub fn get_mut(&mut self, number: u32) -> Result<&mut Fid, Failure> {
        self.table.get_mut(&number).ok_or_else(|| unknown(number))
    }

    /// May this number be given to a new fid?
    pub fn check_free(&self, number: u32) -> Result<(), Failure> {
        if number == crate::ninep::NOFID {
            Err(own(Code::Invalid, "invalid fid: NOFID stands for none"))
        } else if self.table.contains_key(&number) {
            Err(own(Code::Invalid, format!("invalid newfid: fid {number} exists and is in use; clunk it first")))
        } else if self.table.len() >= FIDS_MAX {
            Err(own(Code::NoSpace, format!("no space: this connection has {FIDS_MAX} fids, which is the most")))
        } else {
            Ok(())
        }
    }

    /// Gives a number to a fid; what had it before is dropped.
    pub fn put(&mut self, number: u32, fid: Fid) {
        self.table.insert(number, fid);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Takes a fid out.
    pub fn remove(&mut self, number: u32) -> Result<Fid, Failure> {
        match self.table.entry(number) {
            Entry::Occupied(entry) => Ok(entry.remove()),
            Entry::Vacant(_) => Err(unknown(number)),
        }
    }

    /// A request that waited on this fid has ended.
    pub fn ended(&mut self, number: u32) {
        if let Some(fid) = self.table.get_mut(&number) {
            fid.running = fid.running.saturating_sub(1);
        }
    }
}

fn unknown(number: u32) -> Failure {
    own(Code::BadFile, format!("invalid fid: there is no fid {number}"))
}
