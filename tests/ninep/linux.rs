//! What 9P2000.L alone has: Linux's open flags, Treaddir, Tgetattr, Tsetattr, and what is refused.

use super::raw::{Message, Running};
use super::toy::MANY;
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::linux::{AT_REMOVEDIR, FILE_SYSTEM_MAGIC, getattr, open, setattr};
use blixard::ninep::{Dialect, DirEntry, Qid, Reply, Request};
use std::collections::BTreeSet;

const EPERM: i32 = 1;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

#[test]
fn open_flags() {
    let running = Running::start();
    let raw = &mut running.session();
    let mut try_open = |names: &[&str], flags| {
        raw.walk(0, 1, names);
        let errno = raw.errno(&Request::Lopen { fid: 1, flags });
        raw.errno(&Request::Clunk { fid: 1 });
        errno
    };
    assert_eq!(try_open(&["README"], open::READ_ONLY | 0o100_000), 0, "O_LARGEFILE means nothing");
    assert_eq!(try_open(&["README"], open::ACCESS), EINVAL);
    assert_eq!(try_open(&["README"], open::WRITE_ONLY), EACCES);
    assert_eq!(try_open(&["README"], open::DIRECTORY), ENOTDIR);
    assert_eq!(try_open(&["secret"], open::READ_ONLY), EACCES);
    assert_eq!(try_open(&["ctl"], open::WRITE_ONLY | open::TRUNCATE | open::APPEND), 0);
    assert_eq!(try_open(&["dir"], open::READ_ONLY), 0);
    assert_eq!(try_open(&["dir"], open::READ_WRITE), EISDIR);
    assert_eq!(try_open(&["link"], open::READ_ONLY), EINVAL);
    raw.open(2, &["README"], open::READ_ONLY);
    assert_eq!(raw.errno(&Request::Lopen { fid: 2, flags: 0 }), EBUSY, "twice");
    assert_eq!(raw.errno(&Request::Lopen { fid: 3, flags: 0 }), EBADF);
    raw.open(4, &["block"], open::READ_ONLY | open::NONBLOCK);
    assert_eq!(raw.ask(2, &Request::Read { fid: 4, offset: 0, count: 9 }).data(), b"");
}

/// The records of an Rreaddir, each whole.
fn records(message: &Message) -> Vec<(String, u64, u8)> {
    let mut cursor = Cursor::new(message.data());
    let mut records = Vec::new();
    while !cursor.is_empty() {
        let record = DirEntry::get(Dialect::L, &mut cursor).expect("records are never split");
        records.push((record.name.to_owned(), record.offset, record.kind));
    }
    records
}

#[test]
fn directories_of_any_length_in_pieces_of_any_length() {
    let running = Running::start();
    let raw = &mut running.session_with(8192);
    raw.open(1, &["many"], open::DIRECTORY);
    for count in [28, 29, 57, 100, 1000, 8168, u32::MAX] {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let answer = raw.ask(3, &Request::Readdir { fid: 1, offset, count });
            let part = records(&answer);
            let Some(last) = part.last() else { break };
            offset = last.1;
            names.extend(part.into_iter().map(|(name, ..)| name));
        }
        let expected: Vec<_> = [".".into(), "..".into()].into_iter().chain((0..MANY).map(|n| n.to_string())).collect();
        assert_eq!(names, expected, "in pieces of {count}");
    }
    assert_eq!(raw.errno(&Request::Readdir { fid: 1, offset: 0, count: 24 }), EINVAL, "not even one fits");
    assert_eq!(raw.errno(&Request::Readdir { fid: 0, offset: 0, count: 100 }), EBADF, "not open");
    raw.open(2, &["README"], open::READ_ONLY);
    assert_eq!(raw.errno(&Request::Readdir { fid: 2, offset: 0, count: 100 }), ENOTDIR);
    raw.open(3, &[], open::READ_ONLY);
    let root = records(&raw.ask(3, &Request::Readdir { fid: 3, offset: 0, count: 8000 }));
    let kinds: BTreeSet<_> = root.iter().map(|(name, _, kind)| (name.as_str(), *kind)).collect();
    for expected in [(".", 4), ("..", 4), ("README", 8), ("echo", 8), ("dir", 4), ("link", 10)] {
        assert!(kinds.contains(&expected), "{expected:?}");
    }
}

#[test]
fn attributes() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.walk(0, 1, &["big"]);
    let answer = raw.ask(3, &Request::Getattr { fid: 1, request_mask: u64::MAX });
    let Reply::Getattr { valid, qid, attributes } = answer.reply() else { panic!("{answer:?}") };
    assert_eq!(valid, getattr::BASIC | getattr::DATA_VERSION | getattr::LASTING);
    assert_eq!(qid, Qid { kind: Qid::FILE, version: 7, path: 3 });
    assert_eq!((attributes.mode, attributes.uid, attributes.gid), (0o100_444, 42, 43));
    assert_eq!((attributes.size, attributes.blocks, attributes.data_version), (100_000, 196, 7));
    assert_eq!((attributes.mtime_sec, attributes.mtime_nsec), (1_700_000_000, 123_000_000));
    raw.walk(0, 2, &["link"]);
    let answer = raw.ask(3, &Request::Getattr { fid: 2, request_mask: 1 });
    let Reply::Getattr { valid: 1, attributes, .. } = answer.reply() else { panic!("{answer:?}") };
    assert_eq!((attributes.mode, attributes.size), (0o120_777, 3));
    assert_eq!(raw.ask(3, &Request::Readlink { fid: 2 }).reply(), Reply::Readlink { target: "dir" });
    assert_eq!(raw.errno(&Request::Readlink { fid: 1 }), EINVAL);
    // Our own bits, only for who asks.
    raw.walk(0, 4, &["block"]);
    for (fid, stream) in [(0, 0), (1, 0), (4, getattr::STREAM)] {
        for mask in [0x3fff, getattr::BASIC | getattr::STREAM] {
            let answer = raw.ask(3, &Request::Getattr { fid, request_mask: mask });
            let Reply::Getattr { valid, .. } = answer.reply() else { panic!("{answer:?}") };
            assert_eq!(valid & !(getattr::BASIC | getattr::DATA_VERSION), mask & stream, "{fid}");
        }
    }
    let statfs = raw.ask(3, &Request::Statfs { fid: 1 });
    assert!(matches!(statfs.reply(), Reply::Statfs { kind: FILE_SYSTEM_MAGIC, namelen: 255, .. }));
}

#[test]
fn only_the_size_can_be_set() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.walk(0, 1, &["ctl"]);
    raw.walk(0, 2, &["README"]);
    let mut set = |fid, valid| {
        let (mode, uid, gid, size) = (0o777, 0, 0, 0);
        let (atime_sec, atime_nsec, mtime_sec, mtime_nsec) = (0, 0, 0, 0);
        raw.errno(&Request::Setattr { fid, valid, mode, uid, gid, size, atime_sec, atime_nsec, mtime_sec, mtime_nsec })
    };
    assert_eq!(set(1, setattr::SIZE), 0);
    assert_eq!(set(1, setattr::SIZE | setattr::MTIME), 0, "as Linux sends it");
    assert_eq!(set(1, 0), 0);
    assert_eq!(set(2, setattr::SIZE), EACCES);
    for refused in [setattr::MODE, setattr::UID, setattr::GID, setattr::MTIME, setattr::SIZE | setattr::MTIME_SET] {
        assert_eq!(set(1, refused), EPERM, "{refused:#x}");
    }
    assert_eq!(set(9, setattr::SIZE), EBADF);
}

#[test]
fn what_the_tree_does_not_do_is_refused_with_a_sentence() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.walk(0, 1, &["README"]);
    let (name, mode, gid, flags) = ("x", 0o644, 0, 0);
    for (request, errno) in [
        (Request::Lcreate { fid: 0, name, flags, mode, gid }, EPERM),
        (Request::Mkdir { dfid: 0, name, mode, gid }, EPERM),
        (Request::Symlink { fid: 0, name, target: "y", gid }, EPERM),
        (Request::Link { dfid: 0, fid: 1, name }, EPERM),
        (Request::Mknod { dfid: 0, name, mode, major: 1, minor: 3, gid }, EPERM),
        (Request::Rename { fid: 1, dfid: 0, name }, EPERM),
        (Request::Renameat { olddirfid: 0, oldname: "README", newdirfid: 0, newname: name }, EPERM),
        (Request::Mkdir { dfid: 1, name, mode, gid }, ENOTDIR),
        (Request::Xattrwalk { fid: 1, newfid: 2, name: "security.capability" }, EOPNOTSUPP),
        (Request::Xattrcreate { fid: 1, name, attr_size: 1 << 40, flags }, EOPNOTSUPP),
        (Request::Lock { fid: 1, kind: 1, flags, start: 0, length: 0, proc_id: 1, client_id: "" }, EOPNOTSUPP),
        (Request::Getlock { fid: 1, kind: 1, start: 0, length: 0, proc_id: 1, client_id: "" }, EOPNOTSUPP),
    ] {
        let before = running.toy.noted.lock().unwrap().len();
        assert_eq!(raw.errno(&request), errno, "{request:?}");
        assert_eq!(running.toy.noted.lock().unwrap().len(), before + 1, "{request:?} has a sentence in /err");
    }
    // A wrong fid is the client program's mistake, and no news to its user.
    let before = running.toy.noted.lock().unwrap().len();
    assert_eq!(raw.errno(&Request::Mkdir { dfid: 77, name, mode, gid }), EBADF);
    assert_eq!(running.toy.noted.lock().unwrap().len(), before);
    let me = rustix::process::getuid().as_raw();
    assert!(running.toy.noted.lock().unwrap().iter().all(|(uid, _)| *uid == Some(me)));
}

#[test]
fn unlinking() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.walk(0, 1, &["dir"]);
    let unlink = |dirfid, name, flags| Request::Unlinkat { dirfid, name, flags };
    assert_eq!(raw.ask(3, &unlink(1, "sub", AT_REMOVEDIR)).reply(), Reply::Unlinkat {});
    assert_eq!(raw.errno(&unlink(0, "dir", AT_REMOVEDIR)), EBUSY);
    assert_eq!(raw.errno(&unlink(0, "README", 0)), EPERM);
    assert_eq!(raw.errno(&unlink(0, "README", 7)), EINVAL);
    assert_eq!(raw.errno(&unlink(0, "..", AT_REMOVEDIR)), EBUSY);
    assert_eq!(raw.errno(&unlink(0, "a/b", 0)), EINVAL);
}
