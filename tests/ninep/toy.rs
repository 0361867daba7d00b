//! A small tree with one file for each thing that a front has to get right.
//!
//!     /README /big            texts, of 15 bytes and 100 kB
//!     /echo                   a stream: gives back what was last written to it
//!     /block                  a stream whose reads wait for `Toy::release`
//!     /slow                   a write to it waits for `Toy::release`
//!     /ctl                    takes lines that begin with "ok", refuses all else
//!     /secret                 not for anybody
//!     /fresh                  a stream without an end, made anew for each read
//!     /panic                  reading it panics
//!     /dir/sub/leaf           depth
//!     /link -> dir            a symbolic link
//!     /many/0 .. /many/4999   a long directory

use blixard::fs::tree::{
    Answer, Caller, Creation, Credential, DirEntry, Handle, Kind, OpenMode, Opened, Place, Stat, Tree, gone,
};
use blixard::text::{Code, Refusal};
use bytes::Bytes;
use futures::FutureExt;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

pub const README: &[u8] = b"read me please\n";
pub const MANY: u64 = 5000;
const MANY_FIRST: u64 = 1000;

struct Node {
    place: u64,
    parent: u64,
    name: &'static str,
    kind: Kind,
    mode: u32,
}

const fn node(place: u64, parent: u64, name: &'static str, kind: Kind, mode: u32) -> Node {
    Node { place, parent, name, kind, mode }
}

const NODES: &[Node] = &[
    node(1, 1, "/", Kind::Directory, 0o755),
    node(2, 1, "README", Kind::File, 0o444),
    node(3, 1, "big", Kind::File, 0o444),
    node(4, 1, "echo", Kind::Stream, 0o666),
    node(5, 1, "block", Kind::Stream, 0o444),
    node(6, 1, "slow", Kind::Stream, 0o222),
    node(7, 1, "ctl", Kind::Stream, 0o222),
    node(8, 1, "secret", Kind::File, 0),
    node(9, 1, "panic", Kind::File, 0o444),
    node(10, 1, "dir", Kind::Directory, 0o755),
    node(11, 10, "sub", Kind::Directory, 0o755),
    node(12, 11, "leaf", Kind::File, 0o444),
    node(13, 1, "link", Kind::Link, 0o777),
    node(14, 1, "many", Kind::Directory, 0o755),
    node(15, 1, "err", Kind::File, 0o444),
    node(17, 1, "fresh", Kind::Stream, 0o444),
    node(16, 10, "up", Kind::Link, 0o777),
];

/// What was noted for `/err`, and by whom.
pub type Noted = Arc<Mutex<Vec<(Option<u32>, String)>>>;

/// The tree, and what a test may want to know of it.
#[derive(Default)]
pub struct Toy {
    /// Open handles.
    pub open: Arc<AtomicUsize>,
    /// Reads and writes that wait.
    pub waiting: Arc<AtomicUsize>,
    /// What was noted for `/err`, and by whom.
    pub noted: Noted,
    /// Those of `/many` that are not there any more.
    hidden: Mutex<BTreeSet<u64>>,
    released: Arc<watch::Sender<u64>>,
}

impl Toy {
    /// Takes one out of `/many`.
    pub fn hide(&self, number: u64) {
        self.hidden.lock().unwrap().insert(number);
    }

    /// What was taken out of `/many`.
    pub fn hidden(&self) -> BTreeSet<u64> {
        self.hidden.lock().unwrap().clone()
    }

    /// Ends what waits.
    pub fn release(&self) {
        self.released.send_modify(|n| *n += 1);
    }

    fn find(place: Place) -> Option<(Kind, u32, u64)> {
        if (MANY_FIRST..MANY_FIRST + MANY).contains(&place.0) {
            return Some((Kind::File, 0o444, 14));
        }
        NODES.iter().find(|n| n.place == place.0).map(|n| (n.kind, n.mode, n.parent))
    }

    fn text(&self, place: Place) -> Vec<u8> {
        match place.0 {
            2 => README.to_vec(),
            3 => big(),
            12 => b"leaf\n".to_vec(),
            15 => self.noted.lock().unwrap().iter().map(|(_, s)| format!("{s}\n")).collect::<String>().into_bytes(),
            p if p >= MANY_FIRST => format!("{}\n", p - MANY_FIRST).into_bytes(),
            _ => Vec::new(),
        }
    }
}

/// What is in `/big`.
pub fn big() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| [(i % 251) as u8]).collect()
}

fn target(place: Place) -> &'static str {
    if place.0 == 13 { "dir" } else { "../README" }
}

impl Tree for Toy {
    fn caller(&self, credential: &Credential, authenticated_by: &'static str, dialect: &'static str) -> Caller {
        let (uid, user) = match credential {
            Credential::Uid(uid) => (Some(*uid), format!("u{uid}")),
            Credential::Certificate { name, .. } => (None, name.clone()),
            Credential::Node { user, .. } => (None, user.clone()),
            Credential::Unknown => (None, "none".to_owned()),
        };
        Caller { uid, user, authenticated_by, dialect, from: String::new() }
    }

    fn walk(&self, _: &Caller, dir: Place, name: &str) -> Result<Place, Refusal> {
        let (_, _, parent) = Toy::find(dir).ok_or_else(gone)?;
        if name == ".." {
            return Ok(Place(parent));
        }
        if dir.0 == 14 {
            let number = name.parse().ok().filter(|n: &u64| *n < MANY && n.to_string() == name);
            return number.map(|n| Place(MANY_FIRST + n)).ok_or_else(gone);
        }
        let found = NODES.iter().find(|n| n.parent == dir.0 && n.name == name);
        found.map(|n| Place(n.place)).ok_or_else(gone)
    }

    fn name(&self, _: &Caller, place: Place) -> Result<String, Refusal> {
        if place.0 >= MANY_FIRST {
            return Ok((place.0 - MANY_FIRST).to_string());
        }
        NODES.iter().find(|n| n.place == place.0).map(|n| n.name.to_owned()).ok_or_else(gone)
    }

    fn stat(&self, _: &Caller, place: Place) -> Result<Stat, Refusal> {
        let (kind, mode, _) = Toy::find(place).ok_or_else(gone)?;
        let size = match kind {
            Kind::File => self.text(place).len() as u64,
            Kind::Link => target(place).len() as u64,
            _ => 0,
        };
        let (mtime_ms, owner, nlink) = (1_700_000_000_123, "toy".to_owned(), 1);
        let (version, owner_uid, group_gid, lasting) = (7, 42, 43, true);
        Ok(Stat { place, kind, mode, size, version, mtime_ms, owner, owner_uid, group_gid, nlink, lasting })
    }

    fn readdir(
        &self,
        _: &Caller,
        dir: Place,
        after: u64,
        visit: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<(), Refusal> {
        let entry = |name: String, place, kind| DirEntry { name, place: Place(place), kind, cookie: place };
        let entries: Box<dyn Iterator<Item = DirEntry>> = if dir.0 == 14 {
            let (places, hidden) = (MANY_FIRST.max(after + 1)..MANY_FIRST + MANY, self.hidden());
            let there = places.filter(move |place| !hidden.contains(&(place - MANY_FIRST)));
            Box::new(there.map(|place| entry((place - MANY_FIRST).to_string(), place, Kind::File)))
        } else {
            let inside = NODES.iter().filter(|n| n.parent == dir.0 && n.place > after.max(1));
            Box::new(inside.map(|n| entry(n.name.into(), n.place, n.kind)))
        };
        for entry in entries {
            if !visit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self, _: &Caller, place: Place) -> Result<String, Refusal> {
        Ok(target(place).into())
    }

    fn open(&self, who: &Caller, place: Place, how: OpenMode) -> Result<Opened, Refusal> {
        let (kind, mode, _) = Toy::find(place).ok_or_else(gone)?;
        let needed = if how.read { 0o444 } else { 0 } | if how.write { 0o222 } else { 0 };
        if mode & needed != needed {
            let refusal = Refusal::denied("permission denied: the toy tree says so");
            self.note(who, &refusal);
            return Err(refusal);
        }
        self.open.fetch_add(1, Ordering::SeqCst);
        let handle = Arc::new(Open {
            place,
            nonblock: how.nonblock,
            text: Mutex::new(self.text(place).into()),
            who: who.clone(),
            noted: self.noted.clone(),
            open: self.open.clone(),
            waiting: self.waiting.clone(),
            released: self.released.subscribe(),
        });
        Ok(Opened { handle, stream: kind == Kind::Stream, commands: place.0 == 7 })
    }

    fn remove(&self, who: &Caller, dir: Place, name: &str, directory: bool) -> Answer<()> {
        let refuse = |refusal| {
            self.note(who, &refusal);
            Answer::Now(Err(refusal))
        };
        match (dir.0, name, directory) {
            (10, "sub", true) => Answer::Later(futures::future::ready(Ok(())).boxed()),
            (_, _, true) => Answer::Now(Err(Refusal::busy("busy: only sub can go"))),
            _ => refuse(Refusal::not_permitted("not permitted: rmdir the object's directory")),
        }
    }

    fn truncate(&self, _: &Caller, place: Place, _: u64) -> Result<(), Refusal> {
        match Toy::find(place) {
            Some((Kind::Stream, mode, _)) if mode & 0o222 != 0 => Ok(()),
            _ => Err(Refusal::denied("permission denied: it can't be written")),
        }
    }

    fn refuse_create(&self, who: &Caller, _: Place, name: &str, what: Creation) -> Refusal {
        let refusal = Refusal::not_permitted(format!("not permitted: {what:?} {name}"));
        self.note(who, &refusal);
        refusal
    }

    fn note(&self, who: &Caller, refusal: &Refusal) {
        self.noted.lock().unwrap().push((who.uid, refusal.sentence.clone()));
    }
}

struct Open {
    place: Place,
    nonblock: bool,
    text: Mutex<Bytes>,
    who: Caller,
    noted: Noted,
    open: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    released: watch::Receiver<u64>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts something while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Open {
    fn wait<T: Send + 'static>(&self, value: T) -> Answer<T> {
        let (mut released, counted) = (self.released.clone(), Counted::new(&self.waiting));
        released.mark_unchanged();
        let wait = async move {
            let _counted = counted;
            released.changed().await.map_err(|_| gone())?;
            Ok(value)
        };
        Answer::Later(wait.boxed())
    }
}

impl Handle for Open {
    fn read(&self, offset: u64, count: usize) -> Answer<Bytes> {
        let text = self.text.lock().unwrap().clone();
        match self.place.0 {
            4 => {
                let mut text = self.text.lock().unwrap();
                let count = count.min(text.len());
                Answer::Now(Ok(text.split_to(count)))
            }
            5 if self.nonblock => Answer::Now(Ok(Bytes::new())),
            5 => self.wait(Bytes::from_static(b"released\n")),
            17 => Answer::Now(Ok(vec![b'x'; count].into())),
            9 => panic!("a panic on purpose"),
            _ => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let end = start.saturating_add(count).min(text.len());
                Answer::Now(Ok(text.slice(start..end)))
            }
        }
    }

    fn write(&self, _: u64, data: Bytes) -> Answer<usize> {
        match self.place.0 {
            4 => {
                let count = data.len();
                *self.text.lock().unwrap() = data;
                Answer::Now(Ok(count))
            }
            6 => self.wait(data.len()),
            7 if data.starts_with(b"ok") => Answer::Now(Ok(data.len())),
            _ => {
                let text = String::from_utf8_lossy(&data).trim_end().to_owned();
                let refusal = Refusal::new(Code::Invalid, format!("invalid command '{text}': only ok is known"));
                self.noted.lock().unwrap().push((self.who.uid, refusal.sentence.clone()));
                Answer::Now(Err(refusal))
            }
        }
    }
}
