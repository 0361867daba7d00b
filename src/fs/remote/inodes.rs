//! What the kernel remembers: each inode with the way to it, and for some of them a fid. The kernel bounds it: what it forgets goes.

use crate::ninep::client::Fid;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most fids that are kept for what is not open. The kernel may remember more inodes than a server lets one connection have
/// fids; what has none is walked to by its path.
const FIDS_MAX: usize = 4096;
/// The deepest path. A server whose directories go in a circle has no deeper one.
const NAMES_MAX: usize = 1024;

struct Inode {
    parent: u64,
    name: Box<str>,
    /// How often the kernel has looked it up and not forgotten.
    lookups: u64,
    stream: bool,
    fid: Option<Kept>,
}

struct Kept {
    session: u64,
    fid: Arc<Fid>,
    /// Tells it from others that the inode has had.
    stamp: u64,
}

#[derive(Default)]
struct Table {
    inodes: HashMap<u64, Inode>,
    /// Inodes with a fid, by stamp, the oldest first. Those whose stamp is another by now have one further behind.
    kept: VecDeque<(u64, u64)>,
    stamps: u64,
}

/// The table.
#[derive(Default)]
pub(super) struct Inodes(Mutex<Table>);

impl Table {
    /// Keeps a fid; what it is in the place of, and what is too old, is handed back to be dropped outside the lock.
    fn keep(&mut self, number: u64, session: u64, fid: Arc<Fid>) -> [Option<Kept>; 2] {
        self.stamps += 1;
        let stamp = self.stamps;
        let Some(inode) = self.inodes.get_mut(&number) else { return [None, None] };
        let before = inode.fid.replace(Kept { session, fid, stamp });
        self.kept.push_back((number, stamp));
        let oldest = if self.kept.len() > FIDS_MAX { self.kept.pop_front() } else { None };
        let dropped = oldest.and_then(|(number, stamp)| {
            let inode = self.inodes.get_mut(&number)?;
            inode.fid.take_if(|kept| kept.stamp == stamp)
        });
        [before, dropped]
    }
}

impl Inodes {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is about to learn that this name of a directory is this inode.
    pub(super) fn looked_up(&self, number: u64, way: (u64, &str), (session, fid): (u64, Arc<Fid>), stream: bool) {
        let (parent, name) = way;
        let mut table = self.table();
        let inode = table.inodes.entry(number).or_insert_with(|| Inode {
            parent,
            name: name.into(),
            lookups: 0,
            stream,
            fid: None,
        });
        inode.lookups += 1;
        inode.stream = stream;
        if inode.parent != parent || *inode.name != *name {
            (inode.parent, inode.name) = (parent, name.into());
        }
        let dropped = table.keep(number, session, fid);
        drop(table);
        drop(dropped);
    }

    /// Keeps a fid that was walked to anew.
    pub(super) fn keep_fid(&self, number: u64, session: u64, fid: Arc<Fid>) {
        let dropped = self.table().keep(number, session, fid);
        drop(dropped);
    }

    /// Its fid over this connection, if it has one.
    pub(super) fn fid(&self, number: u64, session: u64) -> Option<Arc<Fid>> {
        let table = self.table();
        let kept = table.inodes.get(&number)?.fid.as_ref()?;
        (kept.session == session).then(|| kept.fid.clone())
    }

    /// Do offsets mean nothing to it?
    pub(super) fn is_stream(&self, number: u64) -> bool {
        self.table().inodes.get(&number).is_some_and(|inode| inode.stream)
    }

    /// The names from the root to it.
    pub(super) fn path(&self, number: u64) -> Option<Vec<Box<str>>> {
        let table = self.table();
        let (mut names, mut at) = (Vec::new(), number);
        while at != crate::fs::fuse::ROOT_INODE {
            let inode = table.inodes.get(&at)?;
            names.push(inode.name.clone());
            at = inode.parent;
            if names.len() > NAMES_MAX {
                return None;
            }
        }
        names.reverse();
        Some(names)
    }

    /// The kernel forgets so many lookups.
    pub(super) fn forget(&self, number: u64, lookups: u64) {
        let mut table = self.table();
        let Some(inode) = table.inodes.get_mut(&number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        let gone = if inode.lookups == 0 { table.inodes.remove(&number) } else { None };
        drop(table);
        drop(gone);
    }
}
