//! The rules of the protocol that hold in every dialect, one by one, with raw messages.

use super::raw::{Message, Raw, Running, encoded_in, until};
use super::toy::{README, big};
use blixard::ninep::linux::open;
use blixard::ninep::{Data, Dialect, NOFID, NONUNAME, NOTAG, NumericId, Qid, Reply, Request};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EBADF: i32 = 9;
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
fn msize_is_clamped() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        for (asked, agreed) in [(8192, 8192), (65_560, 65_560), (1 << 20, 1 << 20), (u32::MAX, 1 << 20)] {
            let answer = version(raw, asked, dialect.name());
            assert_eq!(answer.reply(), Reply::Version { msize: agreed, version: dialect.name() });
        }
        assert!(version(raw, 8191, dialect.name()).refuses_with(EINVAL));
        // Nothing was agreed on, so that nothing else may come.
        raw.send(1, &Request::Clunk { fid: 0 });
        assert!(raw.is_closed());
    }
}

#[test]
fn what_is_answered_to_versions() {
    let running = Running::start();
    let raw = &mut running.connect();
    for (asked, agreed) in [
        ("9P2000", "9P2000"),
        ("9P2000.u", "9P2000.u"),
        ("9P2000.L", "9P2000.L"),
        ("9P2000.e", "9P2000"),
        ("9P2001.L", "9P2000"),
        ("9P1999", "unknown"),
        ("8P2000", "unknown"),
        ("9p2000.L", "unknown"),
        ("", "unknown"),
    ] {
        assert_eq!(version(raw, 65_536, asked).reply(), Reply::Version { msize: 65_536, version: agreed });
    }
    raw.send(1, &Request::Clunk { fid: 0 });
    assert!(raw.is_closed(), "the last was not agreed on");
}

/// Each Tversion begins a session in the dialect that it names, whatever was spoken before.
#[test]
fn dialects_follow_one_another() {
    let running = Running::start();
    let raw = &mut running.connect();
    for dialect in [Dialect::L, Dialect::Plain, Dialect::U, Dialect::Plain, Dialect::L] {
        raw.dialect = dialect;
        raw.greet(8192);
        raw.open(1, &["README"], open::READ_ONLY);
        raw.fails(&Request::Clunk { fid: 7 }, EBADF);
        let (of_l, of_others) = (Request::Statfs { fid: 0 }, Request::Stat { fid: 0 });
        let (known, unknown) = if dialect == Dialect::L { (of_l, of_others) } else { (of_others, of_l) };
        raw.does(&known);
        let other = if dialect == Dialect::L { Dialect::U } else { Dialect::L };
        raw.send_bytes(&encoded_in(other, 2, &unknown));
        assert!(raw.receive().refuses_with(EOPNOTSUPP));
    }
}

#[test]
fn a_new_version_begins_a_new_session() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.open(1, &["block"], open::READ_ONLY);
        raw.send(7, &Request::Read { fid: 1, offset: 0, count: 10 });
        until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
        assert!(matches!(version(raw, 8192, dialect.name()).reply(), Reply::Version { msize: 8192, .. }));
        assert_eq!(running.toy.waiting.load(Ordering::SeqCst), 0, "its requests are cancelled");
        assert_eq!(running.toy.open.load(Ordering::SeqCst), 0, "its fids are gone");
        raw.fails(&Request::Clunk { fid: 0 }, EBADF);
        raw.attach(0, "");
    }
}

#[test]
fn attach_takes_a_subtree_and_no_authentication() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        let attach = |fid, afid, aname| Request::Attach { fid, afid, uname: "", aname, n_uname: NONUNAME };
        raw.fails(&attach(0, NOFID, ""), EINVAL);
        raw.fails(&attach(1, 7, ""), EINVAL);
        raw.fails(&attach(NOFID, NOFID, ""), EINVAL);
        raw.fails(&attach(1, NOFID, "/nowhere"), ENOENT);
        raw.fails(&attach(1, NOFID, "README"), ENOTDIR);
        raw.fails(&Request::Auth { afid: 1, uname: "", aname: "", n_uname: NumericId(0) }, ENOENT);
        raw.attach(1, "/dir/sub/");
        assert_eq!(qids(&raw.walk(1, 2, &["leaf"])).len(), 1);
        // The subtree's root is as far up as it goes.
        let up = qids(&raw.walk(1, 3, &["..", "..", "leaf"]));
        assert_eq!((up.len(), up[0].path), (3, 11));
        // As the root's parent is the root.
        assert_eq!(qids(&raw.walk(0, 4, &["..", ".."]))[1].path, 1);
    }
}

#[test]
fn walk() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        assert_eq!(raw.walk(0, 1, &[]).reply(), raw.walk(0, 2, &[]).reply(), "a clone has no qids");
        let found = qids(&raw.walk(1, 3, &["dir", "sub", "..", "sub", "leaf"]));
        assert_eq!(found.iter().map(|q| q.path).collect::<Vec<_>>(), [10, 11, 10, 11, 12]);
        assert_eq!(found.iter().map(|q| q.kind).collect::<Vec<_>>(), [0x80, 0x80, 0x80, 0x80, 0]);
        // Partial: as far as it came, and newfid is not made.
        assert_eq!(qids(&raw.walk(0, 4, &["dir", "nowhere", "sub"])).len(), 1);
        raw.fails(&Request::Clunk { fid: 4 }, EBADF);
        // A failure at the first name is an error.
        assert!(raw.walk(0, 4, &["nowhere"]).refuses_with(ENOENT));
        assert!(raw.walk(9, 4, &[]).refuses_with(EBADF));
        assert!(raw.walk(0, 1, &["dir"]).refuses_with(EINVAL), "newfid in use");
        assert!(raw.walk(0, NOFID, &["dir"]).refuses_with(EINVAL));
        assert!(raw.walk(3, 4, &["x"]).refuses_with(ENOTDIR));
        if dialect != Dialect::Plain {
            assert_eq!(qids(&raw.walk(0, 5, &["link"]))[0].kind, Qid::LINK);
            assert!(raw.walk(5, 4, &["sub"]).refuses_with(ENOTDIR), "a server follows no links");
        }
        // To itself: the fid moves, unless it is a partial walk.
        assert_eq!(qids(&raw.walk(1, 1, &["dir", "nowhere"])).len(), 1);
        assert_eq!(qids(&raw.walk(1, 1, &["dir"])).len(), 1);
        assert_eq!(qids(&raw.walk(1, 1, &["sub"])).len(), 1);
        assert_eq!(qids(&raw.walk(0, 6, &[".."; 16])).len(), 16);
        for (name, errno) in
            [("", EINVAL), (".", EINVAL), ("a/b", EINVAL), ("a\0b", EINVAL), (&"x".repeat(256), ENAMETOOLONG)]
        {
            assert!(raw.walk(0, 7, &[name]).refuses_with(errno), "{name:?}");
        }
    }
}

#[test]
fn walk_from_an_open_fid() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.open(1, &["dir"], open::DIRECTORY);
        assert!(raw.walk(1, 1, &["sub"]).refuses_with(EBUSY));
        assert_eq!(qids(&raw.walk(1, 2, &["sub"])).len(), 1);
        raw.open(3, &["README"], open::READ_ONLY);
        assert!(raw.walk(3, 4, &["x"]).refuses_with(ENOTDIR));
        assert_eq!(qids(&raw.walk(3, 4, &[])).len(), 0);
        raw.fails(&Request::Read { fid: 4, offset: 0, count: 1 }, EBADF);
    }
}

#[test]
fn reads_are_as_long_as_they_may_be() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_of(dialect, 8192);
        raw.open(1, &["big"], open::READ_ONLY);
        let text = big();
        let mut read = |offset: u64, count: u32| raw.ask(3, &Request::Read { fid: 1, offset, count }).data().to_vec();
        for (offset, count, got) in
            [(0, 10, 10), (0, 8168, 8168), (0, 8169, 8168), (0, u32::MAX, 8168), (99_995, 100, 5)]
        {
            assert_eq!(read(offset, count), text[offset as usize..][..got], "{offset} {count}");
        }
        assert_eq!(read(100_000, 10), b"");
        assert_eq!(read(u64::MAX, 10), b"");
        assert_eq!(read(0, 0), b"");
    }
}

#[test]
fn writes_go_through_whole() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.open(1, &["echo"], open::READ_WRITE);
        let text = big();
        let data = Data(&text[..65_536 - 24]);
        let answer = raw.ask(3, &Request::Write { fid: 1, offset: 5, data });
        assert_eq!(answer.reply(), Reply::Write { count: 65_512 });
        let back = raw.ask(3, &Request::Read { fid: 1, offset: 9, count: 65_512 });
        assert_eq!(back.data(), data.0);
        raw.does(&Request::Write { fid: 1, offset: 0, data: Data(b"") });
        raw.open(2, &["README"], open::READ_ONLY);
        raw.fails(&Request::Write { fid: 2, offset: 0, data: Data(b"x") }, EBADF);
        raw.open(3, &["ctl"], open::WRITE_ONLY);
        raw.fails(&Request::Read { fid: 3, offset: 0, count: 1 }, EBADF);
        raw.fails(&Request::Write { fid: 3, offset: 0, data: Data(b"bad") }, EINVAL);
        raw.does(&Request::Write { fid: 3, offset: 0, data: Data(b"ok") });
        raw.fsync(3);
        // A command that fills the message may have been cut; one that ends with its line has not.
        let mut long = [b"ok ".as_slice(), &[b'x'; 65_536]].concat()[..65_536 - 24].to_vec();
        raw.fails(&Request::Write { fid: 3, offset: 0, data: Data(&long) }, EMSGSIZE);
        raw.fails(&Request::Write { fid: 3, offset: 0, data: Data(&long[1..]) }, EINVAL);
        *long.last_mut().unwrap() = b'\n';
        raw.does(&Request::Write { fid: 3, offset: 0, data: Data(&long) });
        raw.open(4, &["dir"], open::READ_ONLY);
        raw.fails(&Request::Write { fid: 4, offset: 0, data: Data(b"x") }, EISDIR);
        if dialect == Dialect::L {
            raw.fails(&Request::Read { fid: 4, offset: 0, count: 1 }, EISDIR);
        }
    }
}

#[test]
fn removing() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.walk(0, 2, &["dir", "sub"]);
        assert_eq!(raw.ask(3, &Request::Remove { fid: 2 }).reply(), Reply::Remove {});
        raw.fails(&Request::Clunk { fid: 2 }, EBADF);
        raw.walk(0, 2, &["README"]);
        raw.fails(&Request::Remove { fid: 2 }, EPERM);
        raw.fails(&Request::Clunk { fid: 2 }, EBADF);
        raw.fails(&Request::Remove { fid: 0 }, EBUSY);
        raw.fails(&Request::Clunk { fid: 0 }, EBADF);
    }
}

#[test]
fn clunk_and_disconnect_close_what_was_open() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let open = || running.toy.open.load(Ordering::SeqCst);
        let mut raw = running.session_in(dialect);
        raw.open(1, &["README"], open::READ_ONLY);
        raw.open(2, &["block"], open::READ_ONLY);
        assert_eq!(open(), 2);
        assert_eq!(raw.ask(3, &Request::Clunk { fid: 1 }).reply(), Reply::Clunk {});
        assert_eq!(open(), 1);
        raw.fails(&Request::Clunk { fid: 1 }, EBADF);
        // A blocked read of a fid that is clunked is told, after the Rclunk.
        raw.send(5, &Request::Read { fid: 2, offset: 0, count: 10 });
        assert_eq!(raw.ask(6, &Request::Clunk { fid: 2 }).reply(), Reply::Clunk {});
        let read = raw.receive();
        assert!(read.tag == 5 && read.refuses_with(EINTR));
        assert_eq!(open(), 0);
        raw.open(3, &["block"], open::READ_ONLY);
        raw.send(5, &Request::Read { fid: 3, offset: 0, count: 10 });
        until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
        drop(raw);
        until("all is closed", || open() == 0 && running.toy.waiting.load(Ordering::SeqCst) == 0);
    }
}

#[test]
fn a_blocked_read_holds_up_nobody() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
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
}

#[test]
fn an_answer_that_waited_is_cut_to_what_was_asked() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.open(1, &["block"], open::READ_ONLY);
        raw.send(5, &Request::Read { fid: 1, offset: 0, count: 4 });
        until("the read waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
        running.toy.release();
        assert_eq!(raw.receive().data(), b"rele");
    }
}

#[test]
fn flush() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        let flushed = |message: Message, tag| assert_eq!((message.tag, message.reply()), (tag, Reply::Flush {}));
        raw.open(1, &["block"], open::READ_ONLY);
        // A blocked read: no answer to it, and its tag can be used again at once.
        raw.send(5, &Request::Read { fid: 1, offset: 0, count: 10 });
        flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
        assert_eq!(running.toy.waiting.load(Ordering::SeqCst), 0);
        assert!(raw.ask(5, &Request::Clunk { fid: 77 }).refuses_with(EBADF));
        // A finished one, an unknown one, itself.
        flushed(raw.ask(6, &Request::Flush { oldtag: 5 }), 6);
        flushed(raw.ask(6, &Request::Flush { oldtag: 999 }), 6);
        flushed(raw.ask(6, &Request::Flush { oldtag: 6 }), 6);
        flushed(raw.ask(6, &Request::Flush { oldtag: NOTAG }), 6);
        // Two flushes of one request, and a flush of a flush, in one go: answered in order.
        let mut bytes = encoded_in(dialect, 5, &Request::Read { fid: 1, offset: 0, count: 10 });
        bytes.extend(encoded_in(dialect, 7, &Request::Flush { oldtag: 5 }));
        bytes.extend(encoded_in(dialect, 8, &Request::Flush { oldtag: 5 }));
        bytes.extend(encoded_in(dialect, 9, &Request::Flush { oldtag: 7 }));
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
}

#[test]
fn a_tag_in_use_ends_the_connection() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        raw.open(1, &["block"], open::READ_ONLY);
        raw.send(5, &Request::Read { fid: 1, offset: 0, count: 10 });
        raw.send(5, &Request::Clunk { fid: 0 });
        assert!(raw.is_closed());
        until("all is closed", || running.toy.open.load(Ordering::SeqCst) == 0);
    }
}

#[test]
fn notag_is_for_version_alone() {
    for dialect in Dialect::ALL {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        assert!(raw.ask(NOTAG, &Request::Clunk { fid: 0 }).refuses_with(EINVAL));
        // It was not done.
        raw.does(&Request::Clunk { fid: 0 });
    }
}

#[test]
fn who_it_is_is_what_the_kernel_says() {
    let me = rustix::process::getuid().as_raw();
    let noted = |running: &Running| running.toy.noted.lock().unwrap().last().unwrap().0;
    let lock = Request::Lock { fid: 0, kind: 1, flags: 0, start: 0, length: 0, proc_id: 1, client_id: "" };
    let running = Running::start();
    let raw = &mut running.session();
    raw.errno(&lock);
    assert_eq!(noted(&running), Some(me));
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&lock);
    assert_eq!(noted(&running), Some(me), "loopback TCP");
    // Guests that can't be told from others: nobody is believed over TCP.
    let running = Running::start_for_guests(None);
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&lock);
    assert_eq!(noted(&running), None);
    let raw = &mut running.session();
    raw.errno(&lock);
    assert_eq!(noted(&running), Some(me));
    // A guest.
    let running = Running::start_for_guests(Some(me..me + 1));
    let raw = &mut running.connect_tcp();
    raw.greet(8192);
    raw.errno(&lock);
    assert_eq!(noted(&running), None);
}
