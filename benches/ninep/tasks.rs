//! What is measured: operations that a client's user knows as one, and what is wanted of each as a multiple of diod's rate.

use crate::client::{Connection, MSIZE, Operation};
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::{Data, Dialect, DirEntry, IO_HEADER_BYTES, List, Reply, Request, linux};
use bytes::BytesMut;

/// One operation.
pub struct Task {
    pub name: &'static str,
    /// In the tree with 10,000 machines, not that with 1,000.
    pub large: bool,
    /// Connections, operations at a time, and the multiple that is wanted.
    targets: &'static [(usize, usize, f64)],
    /// Prepares the connection for the operation with this tag.
    pub operation: fn(&mut Connection, u16) -> Operation,
}

impl Task {
    pub fn target(&self, shape: (usize, usize)) -> Option<f64> {
        self.targets.iter().find(|(connections, depth, _)| (*connections, *depth) == shape).map(|(.., ratio)| *ratio)
    }
}

const CONSTANT: &[&str] = &["vms", "1", "ctl"];
const STATE: &[&str] = &["vms", "1", "status"];
/// More than the files have.
const COUNT: u32 = 4096;

const fn task(name: &'static str, operation: fn(&mut Connection, u16) -> Operation) -> Task {
    Task { name, large: false, targets: &[], operation }
}

pub const TASKS: &[Task] = &[
    Task { targets: &[(1, 1, 2.0), (8, 16, 1.8), (64, 1, 2.6)], ..task("read", |c, tag| read(c, tag, CONSTANT)) },
    Task {
        targets: &[(1, 1, 1.8), (8, 16, 2.3)],
        ..task("walk, open, read, clunk", |_, tag| walk_open_read_clunk(tag, CONSTANT))
    },
    Task { targets: &[(1, 1, 1.6), (8, 16, 2.8)], ..task("walk, stat, clunk", |_, tag| walk_stat(tag, CONSTANT)) },
    Task { targets: &[(1, 1, 1.5), (8, 16, 1.8)], ..task("write", write) },
    Task { targets: &[(1, 1, 2.4)], ..task("list of 1,000: walk, open, readdir, clunk", list) },
    Task { large: true, ..task("list of 10,000", list) },
];

/// A file of the state, and beside it one that never changes.
pub const PAIRS: &[[Task; 2]] = &[
    [task("read of status", |c, tag| read(c, tag, STATE)), task("", |c, tag| read(c, tag, CONSTANT))],
    [
        task("walk, open, read, clunk of status", |_, tag| walk_open_read_clunk(tag, STATE)),
        task("", |_, tag| walk_open_read_clunk(tag, CONSTANT)),
    ],
    [task("walk, stat, clunk of status", |_, tag| walk_stat(tag, STATE)), task("", |_, tag| walk_stat(tag, CONSTANT))],
];

/// The fid that the operation with this tag has to itself.
fn fid_of(tag: u16) -> u32 {
    100 + u32::from(tag)
}

fn walk<'a>(fid: u32, path: &[&'a str], scratch: &'a mut BytesMut) -> Request<'a> {
    Request::Walk { fid: 0, newfid: fid, names: List::of(path, scratch).unwrap() }
}

fn open(connection: &mut Connection, fid: u32, path: &[&str], flags: u32) {
    connection.ask(&walk(fid, path, &mut BytesMut::new()));
    connection.ask(&Request::Lopen { fid, flags });
}

fn read(connection: &mut Connection, tag: u16, path: &[&'static str]) -> Operation {
    let fid = fid_of(tag);
    open(connection, fid, path, linux::open::READ_ONLY);
    Operation::of(tag, &[Request::Read { fid, offset: 0, count: COUNT }])
}

fn walk_open_read_clunk(tag: u16, path: &[&'static str]) -> Operation {
    let (fid, scratch) = (fid_of(tag), &mut BytesMut::new());
    let read = Request::Read { fid, offset: 0, count: COUNT };
    let open = Request::Lopen { fid, flags: linux::open::READ_ONLY };
    Operation::of(tag, &[walk(fid, path, scratch), open, read, Request::Clunk { fid }])
}

fn walk_stat(tag: u16, path: &[&'static str]) -> Operation {
    let (fid, scratch) = (fid_of(tag), &mut BytesMut::new());
    let stat = Request::Getattr { fid, request_mask: linux::getattr::BASIC };
    Operation::of(tag, &[walk(fid, path, scratch), stat, Request::Clunk { fid }])
}

/// A command that is parsed and does nothing.
fn write(connection: &mut Connection, tag: u16) -> Operation {
    let fid = fid_of(tag);
    open(connection, fid, CONSTANT, linux::open::WRITE_ONLY);
    Operation::of(tag, &[Request::Write { fid, offset: 0, data: Data(b"# nothing to do\n") }])
}

/// The offsets with which a client goes on are learned beforehand: they are the same each time.
fn list(connection: &mut Connection, tag: u16) -> Operation {
    let (fid, count) = (fid_of(tag), MSIZE - IO_HEADER_BYTES);
    open(connection, fid, &["vms"], linux::open::READ_ONLY);
    let mut offsets = vec![0];
    loop {
        let answer = connection.ask(&Request::Readdir { fid, offset: offsets[offsets.len() - 1], count });
        let Reply::Readdir { data } = answer.reply() else { panic!("no Rreaddir") };
        let (mut records, mut last) = (Cursor::new(data.0), None);
        while !records.is_empty() {
            last = Some(DirEntry::get(Dialect::L, &mut records).unwrap().offset);
        }
        match last {
            Some(offset) => offsets.push(offset),
            None => break,
        }
    }
    connection.ask(&Request::Clunk { fid });
    let scratch = &mut BytesMut::new();
    let open = Request::Lopen { fid, flags: linux::open::READ_ONLY };
    let mut requests = vec![walk(fid, &["vms"], scratch), open];
    requests.extend(offsets.into_iter().map(|offset| Request::Readdir { fid, offset, count }));
    requests.push(Request::Clunk { fid });
    Operation::of(tag, &requests)
}
