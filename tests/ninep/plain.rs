//! What 9P2000 and 9P2000.u have in their own way: Topen, Tcreate, Tstat, Twstat, and directories that are read by Tread.

use super::raw::{Message, Running};
use super::toy::{MANY, README};
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::stat::{Counted, mode, open};
use blixard::ninep::{Data, Dialect, Extended, NumericId, Qid, Reply, Request, Stat};
use std::os::unix::net::UnixStream;

type Raw = super::raw::Raw<UnixStream>;

const EPERM: i32 = 1;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;

const BOTH: [Dialect; 2] = [Dialect::Plain, Dialect::U];

fn each(rule: impl Fn(&Running, &mut Raw)) {
    for dialect in BOTH {
        let running = Running::start();
        let raw = &mut running.session_in(dialect);
        rule(&running, raw);
    }
}

#[test]
fn open_modes() {
    each(|_, raw| {
        raw.walk(0, 9, &["README"]);
        let mut opens = |names: &[&str], mode| {
            raw.walk(0, 1, names);
            let answer = raw.ask(2, &Request::Open { fid: 1, mode });
            raw.does(&Request::Clunk { fid: 1 });
            answer
        };
        let opened = opens(&["README"], open::READ);
        let qid = Qid { kind: Qid::FILE, version: 7, path: 2 };
        assert_eq!(opened.reply(), Reply::Open { qid, iounit: 65_536 - 24 });
        for (name, mode) in [
            ("README", open::READ | open::CLOSE_ON_EXEC),
            ("ctl", open::WRITE),
            ("ctl", open::WRITE | open::TRUNCATE),
            ("echo", open::READ_WRITE),
            ("echo", open::READ | open::TRUNCATE),
            ("dir", open::READ),
        ] {
            assert!(matches!(opens(&[name], mode).reply(), Reply::Open { .. }), "{name} {mode:#x}");
        }
        for (name, mode, errno) in [
            ("README", open::WRITE, EACCES),
            ("README", open::READ | open::TRUNCATE, EACCES),
            ("README", open::EXECUTE, EACCES),
            ("README", open::REMOVE_ON_CLOSE, EPERM),
            ("README", 0x04, EINVAL),
            ("README", 0xff, EINVAL),
            ("secret", open::READ, EACCES),
            ("dir", open::WRITE, EISDIR),
            ("dir", open::READ | open::TRUNCATE, EISDIR),
            ("dir", open::EXECUTE, EACCES),
        ] {
            assert!(opens(&[name], mode).refuses_with(errno), "{name} {mode:#x}");
        }
        raw.does(&Request::Open { fid: 9, mode: open::READ });
        raw.fails(&Request::Open { fid: 9, mode: open::READ }, EBUSY);
        raw.fails(&Request::Open { fid: 77, mode: open::READ }, EBADF);
    });
}

/// Linux opens so for `>>`, in .u alone.
#[test]
fn append_is_of_u() {
    each(|_, raw| {
        raw.walk(0, 1, &["ctl"]);
        let request = Request::Open { fid: 1, mode: open::WRITE | open::APPEND };
        if raw.dialect == Dialect::U { drop(raw.does(&request)) } else { raw.fails(&request, EINVAL) }
    });
}

fn stat_of(raw: &mut Raw, fid: u32) -> Message {
    raw.does(&Request::Stat { fid })
}

#[test]
fn stats() {
    each(|_, raw| {
        let unix = raw.dialect == Dialect::U;
        let id = |id| if unix { NumericId(id) } else { NumericId::NONE };
        raw.walk(0, 1, &["big"]);
        let qid = Qid { kind: Qid::FILE, version: 7, path: 3 };
        let big = Stat {
            kind: 0,
            dev: 0,
            qid,
            mode: 0o444,
            atime: 1_700_000_000,
            mtime: 1_700_000_000,
            length: 100_000,
            name: "big",
            uid: "toy",
            gid: "toy",
            muid: "",
            extension: Extended(""),
            n_uid: id(42),
            n_gid: id(43),
            n_muid: NumericId::NONE,
        };
        assert_eq!(stat_of(raw, 1).reply(), Reply::Stat { stat: Counted(big) });
        raw.walk(0, 2, &["dir", "sub"]);
        let (qid, mode) = (Qid { kind: Qid::DIRECTORY, version: 7, path: 11 }, mode::DIRECTORY | 0o755);
        let sub = Stat { qid, mode, length: 0, name: "sub", ..big };
        assert_eq!(stat_of(raw, 2).reply(), Reply::Stat { stat: Counted(sub) });
        // Whatever way led to it, it has its own name.
        raw.walk(2, 3, &[".."]);
        let dir = Stat { qid: Qid { path: 10, ..qid }, name: "dir", ..sub };
        assert_eq!(stat_of(raw, 3).reply(), Reply::Stat { stat: Counted(dir) });
        let root = Stat { qid: Qid { path: 1, ..qid }, name: "/", ..sub };
        assert_eq!(stat_of(raw, 0).reply(), Reply::Stat { stat: Counted(root) });
        raw.attach(4, "dir");
        assert_eq!(stat_of(raw, 4).reply(), Reply::Stat { stat: Counted(Stat { name: "/", ..dir }) });
        raw.fails(&Request::Stat { fid: 77 }, EBADF);
    });
}

#[test]
fn links() {
    each(|_, raw| {
        let unix = raw.dialect == Dialect::U;
        let walked = raw.walk(0, 1, &["link"]);
        let Reply::Walk { qids } = walked.reply() else { panic!("{walked:?}") };
        let qid = qids.iter().next().unwrap();
        let answer = stat_of(raw, 1);
        let Reply::Stat { stat: Counted(stat) } = answer.reply() else { panic!("{answer:?}") };
        assert_eq!(stat.qid, qid);
        if unix {
            assert_eq!((qid.kind, qid.path), (Qid::LINK, 13));
            let shown = (stat.name, stat.mode, stat.length, stat.extension);
            assert_eq!(shown, ("link", mode::LINK | 0o777, 3, Extended("dir")));
            raw.fails(&Request::Open { fid: 1, mode: open::READ }, EINVAL);
            return;
        }
        // 9P2000 has none: the way through it ends in what it leads to, which goes by its own name.
        assert_eq!((qid.kind, qid.path, stat.name, stat.mode), (Qid::DIRECTORY, 10, "dir", mode::DIRECTORY | 0o755));
        for names in [&["link", "sub", "leaf"][..], &["dir", "..", "link", "sub", "..", "sub", "leaf"]] {
            let walked = raw.walk(0, 2, names);
            let Reply::Walk { qids } = walked.reply() else { panic!("{walked:?}") };
            assert_eq!((qids.len(), qids.iter().last().unwrap().path), (names.len(), 12));
            raw.does(&Request::Clunk { fid: 2 });
        }
        raw.open(3, &["dir", "up"], 0);
        assert_eq!(raw.does(&Request::Read { fid: 3, offset: 0, count: 100 }).data(), README, "up -> ../README");
        // Nor does one lead out of what was attached to: `up` is not in it then.
        raw.attach(4, "dir");
        assert!(raw.walk(4, 5, &["up"]).refuses_with(2));
    });
}

/// The records of a read directory, each whole: name, kind and how many bytes it took.
fn records(message: &Message) -> Vec<(String, u8)> {
    let mut cursor = Cursor::new(message.data());
    let mut records = Vec::new();
    while !cursor.is_empty() {
        let stat = Stat::get(message.dialect, &mut cursor).expect("records are never split");
        records.push((stat.name.to_owned(), stat.qid.kind));
    }
    records
}

#[test]
fn directories_of_any_length_in_pieces_of_any_length() {
    each(|_, raw| {
        raw.open(1, &["many"], 0);
        for count in [100, 101, 250, 1000, 8168, u32::MAX] {
            let (mut names, mut offset) = (Vec::new(), 0);
            loop {
                let answer = raw.does(&Request::Read { fid: 1, offset, count });
                let part = records(&answer);
                if part.is_empty() {
                    break;
                }
                offset += answer.data().len() as u64;
                names.extend(part.into_iter().map(|(name, _)| name));
            }
            assert_eq!(names, (0..MANY).map(|n| n.to_string()).collect::<Vec<_>>(), "in pieces of {count}");
        }
        raw.fails(&Request::Read { fid: 1, offset: 0, count: 40 }, EINVAL);
        raw.fails(&Request::Read { fid: 0, offset: 0, count: 100 }, EBADF);
        raw.open(3, &[], 0);
        let root = records(&raw.does(&Request::Read { fid: 3, offset: 0, count: 8000 }));
        assert!(root.contains(&("README".into(), Qid::FILE)) && root.contains(&("dir".into(), Qid::DIRECTORY)));
        assert_eq!(root.contains(&("link".into(), Qid::LINK)), raw.dialect == Dialect::U, "{root:?}");
        assert!(!root.iter().any(|(name, _)| [".", "..", "/"].contains(&name.as_str())));
    });
}

#[test]
fn a_directory_is_read_from_the_start_or_on_from_the_last_read() {
    each(|_, raw| {
        raw.open(1, &["many"], 0);
        let read = |raw: &mut Raw, offset| raw.does(&Request::Read { fid: 1, offset, count: 300 });
        let first = read(raw, 0);
        let length = first.data().len() as u64;
        for offset in [1, length - 1, length + 1, 2 * length, u64::MAX] {
            raw.fails(&Request::Read { fid: 1, offset, count: 300 }, EINVAL);
        }
        // Neither a refusal, nor a read of nothing, moves it.
        assert!(raw.does(&Request::Read { fid: 1, offset: length, count: 0 }).data().is_empty());
        assert_eq!(read(raw, 0), first);
        raw.fails(&Request::Read { fid: 1, offset: length, count: 10 }, EINVAL);
        let second = read(raw, length);
        assert_ne!(records(&second), records(&first));
        // Two fids of one directory know nothing of each other.
        raw.open(2, &["many"], 0);
        raw.fails(&Request::Read { fid: 2, offset: length, count: 300 }, EINVAL);
        let third = read(raw, length + second.data().len() as u64);
        assert!(!third.data().is_empty());
        assert_eq!(read(raw, 0), first);
    });
}

#[test]
fn directories_are_resumed_while_objects_come_and_go() {
    each(|running, raw| {
        raw.open(1, &["many"], 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        for round in 0.. {
            let answer = raw.does(&Request::Read { fid: 1, offset, count: 1000 });
            offset += answer.data().len() as u64;
            let part = records(&answer);
            if part.is_empty() {
                break;
            }
            names.extend(part.into_iter().map(|(name, _)| name.parse::<u64>().unwrap()));
            // What was listed last goes, and so does what would come next; both are gone before it is gone on.
            let last = *names.last().unwrap();
            running.toy.hide(last);
            running.toy.hide(last + 1);
            assert!(round < MANY, "it never ends");
        }
        assert!(names.is_sorted_by(|a, b| a < b), "nothing comes twice");
        let hidden = running.toy.hidden();
        let missed: Vec<u64> = (0..MANY).filter(|n| !names.contains(n) && !hidden.contains(n)).collect();
        assert!(missed.is_empty(), "{missed:?}: nothing that was there all the time is left out");
    });
}

#[test]
fn wstat_truncates_and_syncs_and_does_nothing_else() {
    each(|running, raw| {
        raw.walk(0, 1, &["ctl"]);
        raw.walk(0, 2, &["README"]);
        raw.walk(0, 3, &["dir"]);
        let none = Stat::UNTOUCHED;
        let wstat = |fid, stat| Request::Wstat { fid, stat: Counted(stat) };
        raw.does(&wstat(1, none));
        raw.does(&wstat(2, none));
        raw.does(&wstat(1, Stat { length: 0, ..none }));
        raw.does(&wstat(1, Stat { length: 0, mtime: 1, atime: 1, ..none }));
        raw.does(&wstat(1, Stat { length: 1 << 40, ..none }));
        raw.does(&wstat(1, Stat { name: "ctl", ..none }));
        raw.fails(&wstat(2, Stat { length: 0, ..none }), EACCES);
        raw.fails(&wstat(77, none), EBADF);
        let refused = [
            Stat { name: "other", ..none },
            Stat { name: "other", length: 0, ..none },
            Stat { mode: 0o777, ..none },
            Stat { mode: 0o777, length: 0, ..none },
            Stat { mtime: 1, ..none },
            Stat { atime: 1, ..none },
            Stat { uid: "glenda", ..none },
            Stat { gid: "glenda", ..none },
            Stat { muid: "glenda", ..none },
            Stat { kind: 1, ..none },
            Stat { dev: 1, ..none },
            Stat { qid: Qid { kind: 0, version: 7, path: 7 }, ..none },
        ];
        for stat in refused {
            let before = running.toy.noted.lock().unwrap().len();
            raw.fails(&wstat(1, stat), EPERM);
            assert_eq!(running.toy.noted.lock().unwrap().len(), before + 1, "{stat:?}");
        }
        raw.fails(&wstat(3, Stat { name: "a/b", ..none }), EINVAL);
        if raw.dialect == Dialect::U {
            raw.fails(&wstat(1, Stat { n_uid: NumericId(0), ..none }), EPERM);
            raw.fails(&wstat(1, Stat { n_gid: NumericId(0), ..none }), EPERM);
            raw.fails(&wstat(1, Stat { extension: Extended("x"), ..none }), EPERM);
        }
    });
}

#[test]
fn nothing_is_created() {
    each(|running, raw| {
        raw.walk(0, 1, &["dir"]);
        raw.walk(0, 2, &["README"]);
        let create = |fid, name, perm| Request::Create { fid, name, perm, mode: open::WRITE, extension: Extended("") };
        for (perm, what) in [
            (0o644, "File"),
            (mode::DIRECTORY | 0o755, "Directory"),
            (mode::LINK | 0o777, "Link"),
            (mode::HARD_LINK, "Link"),
            (0x0080_0000, "Special"),
            (0x0020_0000, "Special"),
        ] {
            raw.fails(&create(1, "x", perm), EPERM);
            let said = running.toy.noted.lock().unwrap().last().unwrap().1.clone();
            assert_eq!(said, format!("not permitted: {what} x"));
        }
        raw.fails(&create(2, "x", 0o644), ENOTDIR);
        raw.fails(&create(77, "x", 0o644), EBADF);
        for name in ["", ".", "a/b"] {
            raw.fails(&create(1, name, 0o644), EINVAL);
        }
        // The fid stands for the directory still, and is not open.
        raw.does(&Request::Open { fid: 1, mode: open::READ });
        raw.fails(&create(1, "x", 0o644), EBUSY);
    });
}

#[test]
fn errors_are_sentences() {
    each(|_, raw| {
        raw.open(1, &["ctl"], 1);
        let answer = raw.ask(3, &Request::Write { fid: 1, offset: 0, data: Data(b"jump") });
        let errno = if raw.dialect == Dialect::U { 22 } else { 0 };
        let ename = "invalid command 'jump': only ok is known";
        assert_eq!(answer.reply(), Reply::Error { ename, errno: Extended(errno) });
        // However long, it fits into what clients take.
        let long = [b"x".repeat(1020), "ä".repeat(500).into_bytes()].concat();
        let answer = raw.ask(3, &Request::Write { fid: 1, offset: 0, data: Data(&long) });
        let Reply::Error { ename, .. } = answer.reply() else { panic!("{answer:?}") };
        assert!((1020..=1024).contains(&ename.len()), "{}", ename.len());
        // The one that Linux, which asks for it by the very words, must know.
        let answer = raw.walk(0, 5, &["nowhere"]);
        let Reply::Error { ename, .. } = answer.reply() else { panic!("{answer:?}") };
        assert!(raw.dialect == Dialect::U || ename == "file not found", "{ename}");
    });
}
