//! The rules of the protocol, one by one, with raw messages.

use super::raw::{Message, Raw, Running, encoded, until};
use super::toy::{MANY, README, big};
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::linux::{AT_REMOVEDIR, FILE_SYSTEM_MAGIC, getattr, open, setattr};
use blixard::ninep::{Data, Dialect, DirEntry, NOFID, NONUNAME, NOTAG, NumericId, Qid, Reply, Request};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const EMSGSIZE: i32 = 90;
const EOPNOTSUPP: i32 = 95;

fn version<S: Read + Write>(raw: &mut Raw<S>, msize: u32, version: &str) -> Message {
    raw.ask(NOTAG, &Request::Version { msize, version })
}

fn qids(walked: &Message) -> Vec<Qid> {
    let Reply::Walk { qids } = walked.reply() else { panic!("{walked:?}") };
    qids.iter().collect()
}

#[test]
fn msize_is_clamped_and_other_dialects_are_unknown() {
    let running = Running::start();
    let raw = &mut running.connect();
    for (asked, agreed) in [(8192, 8192), (65_560, 65_560), (1 << 20, 1 << 20), (u32::MAX, 1 << 20)] {
        let answer = version(raw, asked, "9P2000.L");
        assert_eq!(answer.reply(), Reply::Version { msize: agreed, version: "9P2000.L" });
    }
    for dialect in ["8P2000", "9P1999.L", "", "9p2000.L"] {
        assert!(matches!(version(raw, 65_536, dialect).reply(), Reply::Version { version: "unknown", .. }));
    }
    assert_eq!(version(raw, 8191, "9P2000.L").errno(), Some(EINVAL));
    // Nothing was agreed on, so that nothing else may come.
    raw.send(1, &Request::Clunk { fid: 0 });
    assert!(raw.is_closed());
}

#[test]
fn a_new_version_begins_a_new_session() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["block"], open::READ_ONLY);
    raw.send(7, &Request::Read { fid: 1, offset: 0, count: 10 });
    until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
    assert!(matches!(version(raw, 8192, "9P2000.L").reply(), Reply::Version { msize: 8192, .. }));
    assert_eq!(running.toy.waiting.load(Ordering::SeqCst), 0, "its requests are cancelled");
    assert_eq!(running.toy.open.load(Ordering::SeqCst), 0, "its fids are gone");
    assert_eq!(raw.errno(&Request::Clunk { fid: 0 }), EBADF);
    raw.attach(0, "");
}

#[test]
fn attach_takes_a_subtree_and_no_authentication() {
    let running = Running::start();
    let raw = &mut running.session();
    let attach = |fid, afid, aname| Request::Attach { fid, afid, uname: "", aname, n_uname: NONUNAME };
    assert_eq!(raw.errno(&attach(0, NOFID, "")), EINVAL, "fid in use");
    assert_eq!(raw.errno(&attach(1, 7, "")), EINVAL, "afid");
    assert_eq!(raw.errno(&attach(NOFID, NOFID, "")), EINVAL);
    assert_eq!(raw.errno(&attach(1, NOFID, "/nowhere")), ENOENT);
    assert_eq!(raw.errno(&attach(1, NOFID, "README")), ENOTDIR);
    assert_eq!(raw.errno(&Request::Auth { afid: 1, uname: "", aname: "", n_uname: NumericId(0) }), ENOENT);
    raw.attach(1, "/dir/sub/");
    assert_eq!(qids(&raw.walk(1, 2, &["leaf"])).len(), 1);
    // The subtree's root is as far up as it goes.
    let up = qids(&raw.walk(1, 3, &["..", "..", "leaf"]));
    assert_eq!((up.len(), up[0].path), (3, 11));
    // As the root's parent is the root.
    assert_eq!(qids(&raw.walk(0, 4, &["..", ".."]))[1].path, 1);
}

#[test]
fn walk() {
    let running = Running::start();
    let raw = &mut running.session();
    assert_eq!(raw.walk(0, 1, &[]).reply(), raw.walk(0, 2, &[]).reply(), "a clone has no qids");
    let found = qids(&raw.walk(1, 3, &["dir", "sub", "..", "sub", "leaf"]));
    assert_eq!(found.iter().map(|q| q.path).collect::<Vec<_>>(), [10, 11, 10, 11, 12]);
    assert_eq!(found.iter().map(|q| q.kind).collect::<Vec<_>>(), [0x80, 0x80, 0x80, 0x80, 0]);
    // Partial: as far as it came, and newfid is not made.
    assert_eq!(qids(&raw.walk(0, 4, &["dir", "nowhere", "sub"])).len(), 1);
    assert_eq!(raw.errno(&Request::Clunk { fid: 4 }), EBADF);
    // A failure at the first name is an error.
    assert_eq!(raw.walk(0, 4, &["nowhere"]).errno(), Some(ENOENT));
    assert_eq!(raw.walk(9, 4, &[]).errno(), Some(EBADF));
    assert_eq!(raw.walk(0, 1, &["dir"]).errno(), Some(EINVAL), "newfid in use");
    assert_eq!(raw.walk(0, NOFID, &["dir"]).errno(), Some(EINVAL));
    assert_eq!(raw.walk(3, 4, &["x"]).errno(), Some(ENOTDIR));
    assert_eq!(qids(&raw.walk(0, 5, &["link"]))[0].kind, Qid::LINK);
    assert_eq!(raw.walk(5, 4, &["sub"]).errno(), Some(ENOTDIR), "a server follows no links");
    // To itself: the fid moves, unless it is a partial walk.
    assert_eq!(qids(&raw.walk(1, 1, &["dir", "nowhere"])).len(), 1);
    assert_eq!(qids(&raw.walk(1, 1, &["dir"])).len(), 1);
    assert_eq!(qids(&raw.walk(1, 1, &["sub"])).len(), 1);
    assert_eq!(qids(&raw.walk(0, 6, &[".."; 16])).len(), 16);
    for (name, errno) in
        [("", EINVAL), (".", EINVAL), ("a/b", EINVAL), ("a\0b", EINVAL), (&"x".repeat(256), ENAMETOOLONG)]
    {
        assert_eq!(raw.walk(0, 7, &[name]).errno(), Some(errno), "{name:?}");
    }
}

#[test]
fn walk_from_an_open_fid() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["dir"], open::DIRECTORY);
    assert_eq!(raw.walk(1, 1, &["sub"]).errno(), Some(EBUSY));
    assert_eq!(qids(&raw.walk(1, 2, &["sub"])).len(), 1);
    raw.open(3, &["README"], open::READ_ONLY);
    assert_eq!(raw.walk(3, 4, &["x"]).errno(), Some(ENOTDIR));
    assert_eq!(qids(&raw.walk(3, 4, &[])).len(), 0);
    assert_eq!(raw.errno(&Request::Read { fid: 4, offset: 0, count: 1 }), EBADF, "the clone is not open");
}

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

#[test]
fn reads_are_as_long_as_they_may_be() {
    let running = Running::start();
    let raw = &mut running.session_with(8192);
    raw.open(1, &["big"], open::READ_ONLY);
    let text = big();
    let mut read = |offset: u64, count: u32| raw.ask(3, &Request::Read { fid: 1, offset, count }).data().to_vec();
    for (offset, count, got) in [(0, 10, 10), (0, 8168, 8168), (0, 8169, 8168), (0, u32::MAX, 8168), (99_995, 100, 5)] {
        assert_eq!(read(offset, count), text[offset as usize..][..got], "{offset} {count}");
    }
    assert_eq!(read(100_000, 10), b"");
    assert_eq!(read(u64::MAX, 10), b"");
    assert_eq!(read(0, 0), b"");
}

#[test]
fn writes_go_through_whole() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["echo"], open::READ_WRITE);
    let text = big();
    let data = Data(&text[..65_536 - 24]);
    let answer = raw.ask(3, &Request::Write { fid: 1, offset: 5, data });
    assert_eq!(answer.reply(), Reply::Write { count: 65_512 });
    let back = raw.ask(3, &Request::Read { fid: 1, offset: 9, count: 65_512 });
    assert_eq!(back.data(), data.0);
    assert_eq!(raw.errno(&Request::Write { fid: 1, offset: 0, data: Data(b"") }), 0);
    raw.open(2, &["README"], open::READ_ONLY);
    assert_eq!(raw.errno(&Request::Write { fid: 2, offset: 0, data: Data(b"x") }), EBADF);
    raw.open(3, &["ctl"], open::WRITE_ONLY);
    assert_eq!(raw.errno(&Request::Read { fid: 3, offset: 0, count: 1 }), EBADF);
    assert_eq!(raw.errno(&Request::Write { fid: 3, offset: 0, data: Data(b"bad") }), EINVAL);
    assert_eq!(raw.errno(&Request::Write { fid: 3, offset: 0, data: Data(b"ok") }), 0);
    assert_eq!(raw.errno(&Request::Fsync { fid: 3, datasync: 0 }), 0);
    // A command that fills the message may have been cut; one that ends with its line has not.
    let mut long = [b"ok ".as_slice(), &[b'x'; 65_536]].concat()[..65_536 - 24].to_vec();
    assert_eq!(raw.errno(&Request::Write { fid: 3, offset: 0, data: Data(&long) }), EMSGSIZE);
    assert_eq!(raw.errno(&Request::Write { fid: 3, offset: 0, data: Data(&long[1..]) }), EINVAL, "the tree's to judge");
    *long.last_mut().unwrap() = b'\n';
    assert_eq!(raw.errno(&Request::Write { fid: 3, offset: 0, data: Data(&long) }), 0);
    raw.open(4, &["dir"], open::READ_ONLY);
    assert_eq!(raw.errno(&Request::Read { fid: 4, offset: 0, count: 1 }), EISDIR);
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
    assert_eq!(valid, getattr::BASIC | getattr::DATA_VERSION);
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
        (Request::Mkdir { dfid: 77, name, mode, gid }, EBADF),
    ] {
        let before = running.toy.noted.lock().unwrap().len();
        assert_eq!(raw.errno(&request), errno, "{request:?}");
        assert_eq!(running.toy.noted.lock().unwrap().len(), before + 1, "{request:?} has a sentence in /err");
    }
    let me = rustix::process::getuid().as_raw();
    assert!(running.toy.noted.lock().unwrap().iter().all(|(uid, _)| *uid == Some(me)));
}

#[test]
fn removing() {
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
    raw.walk(0, 2, &["dir", "sub"]);
    assert_eq!(raw.ask(3, &Request::Remove { fid: 2 }).reply(), Reply::Remove {});
    assert_eq!(raw.errno(&Request::Clunk { fid: 2 }), EBADF, "remove is a clunk");
    raw.walk(0, 2, &["README"]);
    assert_eq!(raw.errno(&Request::Remove { fid: 2 }), EPERM);
    assert_eq!(raw.errno(&Request::Clunk { fid: 2 }), EBADF, "even when it fails");
    assert_eq!(raw.errno(&Request::Remove { fid: 0 }), EBUSY, "the root");
    assert_eq!(raw.errno(&Request::Clunk { fid: 0 }), EBADF);
}

#[test]
fn clunk_and_disconnect_close_what_was_open() {
    let running = Running::start();
    let open = || running.toy.open.load(Ordering::SeqCst);
    let mut raw = running.session();
    raw.open(1, &["README"], open::READ_ONLY);
    raw.open(2, &["block"], open::READ_ONLY);
    assert_eq!(open(), 2);
    assert_eq!(raw.ask(3, &Request::Clunk { fid: 1 }).reply(), Reply::Clunk {});
    assert_eq!((open(), raw.errno(&Request::Clunk { fid: 1 })), (1, EBADF));
    // A blocked read of a fid that is clunked is told, after the Rclunk.
    raw.send(5, &Request::Read { fid: 2, offset: 0, count: 10 });
    assert_eq!(raw.ask(6, &Request::Clunk { fid: 2 }).reply(), Reply::Clunk {});
    let read = raw.receive();
    assert_eq!((read.tag, read.errno()), (5, Some(EINTR)));
    assert_eq!(open(), 0);
    raw.open(3, &["block"], open::READ_ONLY);
    raw.send(5, &Request::Read { fid: 3, offset: 0, count: 10 });
    until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
    drop(raw);
    until("all is closed", || open() == 0 && running.toy.waiting.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_blocked_read_holds_up_nobody() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["block"], open::READ_ONLY);
    raw.open(2, &["README"], open::READ_ONLY);
    for tag in 100..200 {
        raw.send(tag, &Request::Read { fid: 1, offset: 0, count: 100 });
    }
    for _ in 0..10 {
        assert_eq!(raw.ask(3, &Request::Read { fid: 2, offset: 0, count: 100 }).data(), README);
    }
    running.toy.release();
    let mut tags = BTreeSet::new();
    for _ in 100..200 {
        let answer = raw.receive();
        assert_eq!(answer.data(), b"released\n");
        tags.insert(answer.tag);
    }
    assert_eq!(tags, (100..200).collect());
}

#[test]
fn an_answer_that_waited_is_cut_to_what_was_asked() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["block"], open::READ_ONLY);
    raw.send(5, &Request::Read { fid: 1, offset: 0, count: 4 });
    until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
    running.toy.release();
    assert_eq!(raw.receive().data(), b"rele");
}

#[test]
fn flush() {
    let running = Running::start();
    let raw = &mut running.session();
    let flushed = |message: Message, tag| assert_eq!((message.tag, message.reply()), (tag, Reply::Flush {}));
    raw.open(1, &["block"], open::READ_ONLY);
    // A blocked read: no answer to it, and its tag can be used again at once.
    raw.send(5, &Request::Read { fid: 1, offset: 0, count: 10 });
    flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
    assert_eq!(running.toy.waiting.load(Ordering::SeqCst), 0);
    assert_eq!(raw.ask(5, &Request::Clunk { fid: 77 }).errno(), Some(EBADF));
    // A finished one, an unknown one, itself.
    flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
    flushed(raw.ask(6, &Request::Flush { oldtag: 999 }), 6);
    flushed(raw.ask(6, &Request::Flush { oldtag: 6 }), 6);
    flushed(raw.ask(6, &Request::Flush { oldtag: NOTAG }), 6);
    // Two flushes of one request, and a flush of a flush, in one go: answered in order.
    let mut bytes = encoded(5, &Request::Read { fid: 1, offset: 0, count: 10 });
    bytes.extend(encoded(7, &Request::Flush { oldtag: 5 }));
    bytes.extend(encoded(8, &Request::Flush { oldtag: 5 }));
    bytes.extend(encoded(9, &Request::Flush { oldtag: 7 }));
    raw.send_bytes(&bytes);
    for tag in [7, 8, 9] {
        flushed(raw.receive(), tag);
    }
    // A write that waits.
    raw.open(2, &["slow"], open::WRITE_ONLY);
    raw.send(5, &Request::Write { fid: 2, offset: 0, data: Data(b"x") });
    flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
    // One that has been answered before the flush came.
    raw.send(5, &Request::Read { fid: 1, offset: 0, count: 100 });
    until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
    running.toy.release();
    assert_eq!(raw.receive().data(), b"released\n");
    flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
}

#[test]
fn a_tag_in_use_ends_the_connection() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["block"], open::READ_ONLY);
    raw.send(5, &Request::Read { fid: 1, offset: 0, count: 10 });
    raw.send(5, &Request::Clunk { fid: 0 });
    assert!(raw.is_closed());
    until("all is closed", || running.toy.open.load(Ordering::SeqCst) == 0);
}

#[test]
fn notag_is_for_version_alone() {
    let running = Running::start();
    let raw = &mut running.session();
    assert_eq!(raw.ask(NOTAG, &Request::Clunk { fid: 0 }).errno(), Some(EINVAL));
    assert_eq!(raw.errno(&Request::Clunk { fid: 0 }), 0, "it was not done");
}

#[test]
fn who_it_is_is_what_the_kernel_says() {
    let me = rustix::process::getuid().as_raw();
    let noted = |running: &Running| running.toy.noted.lock().unwrap().last().unwrap().0;
    let running = Running::start();
    let raw = &mut running.session();
    raw.errno(&Request::Clunk { fid: 77 });
    assert_eq!(noted(&running), Some(me));
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&Request::Clunk { fid: 77 });
    assert_eq!(noted(&running), Some(me), "loopback TCP");
    // Guests that can't be told from others: nobody is believed over TCP.
    let running = Running::start_for_guests(None);
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&Request::Clunk { fid: 77 });
    assert_eq!(noted(&running), None);
    let raw = &mut running.session();
    raw.errno(&Request::Clunk { fid: 77 });
    assert_eq!(noted(&running), Some(me));
    // A guest.
    let running = Running::start_for_guests(Some(me..me + 1));
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&Request::Clunk { fid: 77 });
    assert_eq!(noted(&running), None);
}
