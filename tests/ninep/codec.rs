//! The codec: whatever bytes arrive, it never panics; whatever is encoded is decoded to the same.

use blixard::ninep::field::{Cursor, Field, Tail};
use blixard::ninep::linux::Attributes;
use blixard::ninep::stat::Counted;
use blixard::ninep::{
    Data, Dialect, DirEntry, Extended, Header, List, Malformed, NOFID, NumericId, Qid, Reply, Request, Stat,
};
use bytes::BytesMut;
use proptest::prelude::*;

/// A number and a string that 9P2000 has no room for.
fn numeric(dialect: Dialect, number: u32) -> NumericId {
    if dialect == Dialect::Plain { NumericId::NONE } else { NumericId(number) }
}

fn extended<T: Default>(dialect: Dialect, value: T) -> Extended<T> {
    if dialect == Dialect::Plain { Extended::default() } else { Extended(value) }
}

fn stat(dialect: Dialect) -> Stat<'static> {
    Stat {
        kind: 1,
        dev: 2,
        qid: Qid { kind: 0, version: 3, path: 4 },
        mode: 0o644,
        atime: 5,
        mtime: 6,
        length: 7,
        name: "README",
        uid: "glenda",
        gid: "plan9",
        muid: "",
        extension: extended(dialect, "target"),
        n_uid: numeric(dialect, 8),
        n_gid: numeric(dialect, 9),
        n_muid: numeric(dialect, 10),
    }
}

/// One of each request that the dialect has.
pub fn samples(dialect: Dialect) -> Vec<Request<'static>> {
    requests(dialect).into_iter().filter(|request| request.is_in(dialect)).collect()
}

fn requests(dialect: Dialect) -> Vec<Request<'static>> {
    let n_uname = numeric(dialect, 5);
    let (fid, name, mode, gid) = (1, "README", 0o644, 3);
    let names = Box::leak(Box::new(BytesMut::new()));
    let names = List::of(&["dir", "sub", "leaf"], names).unwrap();
    vec![
        Request::Statfs { fid },
        Request::Lopen { fid, flags: 0 },
        Request::Lcreate { fid, name, flags: 0, mode, gid },
        Request::Symlink { fid, name, target: "x", gid },
        Request::Mknod { dfid: 0, name, mode, major: 1, minor: 2, gid },
        Request::Rename { fid, dfid: 0, name },
        Request::Readlink { fid },
        Request::Getattr { fid, request_mask: 0x7ff },
        Request::Setattr {
            fid,
            valid: 8,
            mode,
            uid: 1,
            gid,
            size: 0,
            atime_sec: 1,
            atime_nsec: 2,
            mtime_sec: 3,
            mtime_nsec: 4,
        },
        Request::Xattrwalk { fid, newfid: 2, name },
        Request::Xattrcreate { fid, name, attr_size: 9, flags: 0 },
        Request::Readdir { fid: 0, offset: 0, count: 1000 },
        Request::Fsync { fid, datasync: Tail(1) },
        Request::Lock { fid, kind: 1, flags: 0, start: 1, length: 2, proc_id: 3, client_id: "me" },
        Request::Getlock { fid, kind: 1, start: 1, length: 2, proc_id: 3, client_id: "me" },
        Request::Link { dfid: 0, fid, name },
        Request::Mkdir { dfid: 0, name, mode, gid },
        Request::Renameat { olddirfid: 0, oldname: name, newdirfid: 0, newname: "x" },
        Request::Unlinkat { dirfid: 0, name, flags: 0 },
        Request::Version { msize: 8192, version: "9P2000.L" },
        Request::Auth { afid: 4, uname: "u", aname: "", n_uname },
        Request::Attach { fid: 6, afid: 4, uname: "u", aname: "", n_uname },
        Request::Flush { oldtag: 5 },
        Request::Walk { fid: 0, newfid: 1, names },
        Request::Read { fid, offset: 0, count: 100 },
        Request::Write { fid, offset: 0, data: Data(b"data") },
        Request::Clunk { fid },
        Request::Remove { fid },
        Request::Open { fid, mode: 0x11 },
        Request::Create { fid: 0, name, perm: 0o644, mode: 1, extension: extended(dialect, "x") },
        Request::Stat { fid },
        Request::Wstat { fid, stat: Counted(stat(dialect)) },
    ]
}

fn replies(dialect: Dialect) -> Vec<Reply<'static>> {
    let qid = Qid { kind: 0x80, version: 1, path: 2 };
    let qids = Box::leak(Box::new(BytesMut::new()));
    let qids = List::of(&[qid, qid], qids).unwrap();
    let attributes = Attributes { mode: 1, uid: 2, size: 3, data_version: 4, ..Attributes::default() };
    vec![
        Reply::Lerror { ecode: 2 },
        Reply::Statfs { kind: 1, bsize: 2, blocks: 3, bfree: 4, bavail: 5, files: 6, ffree: 7, fsid: 8, namelen: 9 },
        Reply::Lopen { qid, iounit: 1 },
        Reply::Lcreate { qid, iounit: 1 },
        Reply::Symlink { qid },
        Reply::Mknod { qid },
        Reply::Rename {},
        Reply::Readlink { target: "x" },
        Reply::Getattr { valid: 1, qid, attributes },
        Reply::Setattr {},
        Reply::Xattrwalk { size: 1 },
        Reply::Xattrcreate {},
        Reply::Readdir { data: Data(b"xyz") },
        Reply::Fsync {},
        Reply::Lock { status: 1 },
        Reply::Getlock { kind: 1, start: 2, length: 3, proc_id: 4, client_id: "me" },
        Reply::Link {},
        Reply::Mkdir { qid },
        Reply::Renameat {},
        Reply::Unlinkat {},
        Reply::Version { msize: 1, version: "unknown" },
        Reply::Auth { aqid: qid },
        Reply::Attach { qid },
        Reply::Error { ename: "no", errno: extended(dialect, 5) },
        Reply::Open { qid, iounit: 1 },
        Reply::Create { qid, iounit: 1 },
        Reply::Stat { stat: Counted(stat(dialect)) },
        Reply::Wstat {},
        Reply::Flush {},
        Reply::Walk { qids },
        Reply::Read { data: Data(b"abc") },
        Reply::Write { count: 3 },
        Reply::Clunk {},
        Reply::Remove {},
    ]
}

fn header_and_body(bytes: &[u8]) -> (Header, &[u8]) {
    (Header::decode(bytes).unwrap(), &bytes[7..])
}

/// Encodes, decodes, and decodes all that is shorter or longer.
macro_rules! there_and_back {
    ($table:ident, $dialect:expr, $message:expr) => {{
        let (dialect, message) = ($dialect, $message);
        let mut bytes = BytesMut::from(&b"before"[..]);
        let name = message.name();
        if !message.is_in(dialect) {
            let unknown = Malformed::UnknownType { kind: message.kind(), dialect };
            assert_eq!(message.encode(dialect, 77, &mut bytes).as_ref(), Err(&unknown));
            assert_eq!($table::decode(dialect, message.kind(), &[]), Err(unknown));
            assert_eq!(&bytes[..], b"before");
            continue;
        }
        message.encode(dialect, 77, &mut bytes).unwrap();
        let bytes = &bytes[6..];
        let (header, body) = header_and_body(bytes);
        assert_eq!((header.size as usize, header.kind, header.tag), (bytes.len(), message.kind(), 77));
        assert_eq!($table::decode(dialect, header.kind, body).unwrap(), message, "{name} of {dialect}");
        for length in 0..body.len() {
            // Some clients send no `datasync`.
            let is_whole = (name, length) == ("Fsync", 4) && header.kind == 50;
            let cut = $table::decode(dialect, header.kind, &body[..length]);
            assert_eq!(cut.is_ok(), is_whole, "{name} cut to {length}");
        }
        let more = [body, &[0]].concat();
        assert_eq!($table::decode(dialect, header.kind, &more), Err(Malformed::Trailing(1)), "{name}");
    }};
}

#[test]
fn every_message_there_and_back_and_cut_short() {
    for dialect in Dialect::ALL {
        for request in requests(dialect) {
            there_and_back!(Request, dialect, request);
        }
        for reply in replies(dialect) {
            there_and_back!(Reply, dialect, reply);
        }
    }
}

/// Bytes as diod's `protocol.md`, walk(5), stat(5) and the draft of 9P2000.u lay them out, written down by hand.
#[test]
fn the_layout_on_the_wire() {
    let encoded_as = |dialect, request: &Request<'_>| {
        let mut bytes = BytesMut::new();
        request.encode(dialect, 0x0201, &mut bytes).unwrap();
        bytes.to_vec()
    };
    let encoded = |request: &Request<'_>| encoded_as(Dialect::L, request);
    let version = encoded(&Request::Version { msize: 0x10000, version: "9P2000.L" });
    assert_eq!(version, b"\x15\0\0\0\x64\x01\x02\0\0\x01\0\x08\x009P2000.L");
    let mut scratch = BytesMut::new();
    let names = List::of(&["a", "bc"], &mut scratch).unwrap();
    let walk = encoded(&Request::Walk { fid: 1, newfid: 2, names });
    assert_eq!(walk, b"\x18\0\0\0\x6e\x01\x02\x01\0\0\0\x02\0\0\0\x02\0\x01\0a\x02\0bc");
    let write = encoded(&Request::Write { fid: 3, offset: 4, data: Data(b"hi") });
    assert_eq!(write, b"\x19\0\0\0\x76\x01\x02\x03\0\0\0\x04\0\0\0\0\0\0\0\x02\0\0\0hi");
    let mut bytes = BytesMut::new();
    Reply::Getattr { valid: 0x7ff, qid: Qid::default(), attributes: Attributes::default() }
        .encode(Dialect::L, 1, &mut bytes)
        .unwrap();
    assert_eq!(bytes.len(), 160, "size of Rgetattr");
    let attach = Request::Attach { fid: 0, afid: NOFID, uname: "me", aname: "", n_uname: NumericId(1000) };
    let plain = b"\x15\0\0\0\x68\x01\x02\0\0\0\0\xff\xff\xff\xff\x02\0me\0\0";
    let unix = b"\x19\0\0\0\x68\x01\x02\0\0\0\0\xff\xff\xff\xff\x02\0me\0\0\xe8\x03\0\0";
    assert_eq!(encoded_as(Dialect::Plain, &attach), plain);
    assert_eq!(encoded_as(Dialect::U, &attach), unix);
    assert_eq!(encoded(&attach), unix);
    let create = Request::Create { fid: 1, name: "d", perm: 0x8000_01ff, mode: 0, extension: Extended("") };
    let plain = b"\x13\0\0\0\x72\x01\x02\x01\0\0\0\x01\0d\xff\x01\0\x80\0";
    assert_eq!(encoded_as(Dialect::Plain, &create), plain);
    assert_eq!(encoded_as(Dialect::U, &create), [b"\x15", &plain[1..], b"\0\0"].concat());
    let mut bytes = BytesMut::new();
    Reply::Stat { stat: Counted(stat(Dialect::Plain)) }.encode(Dialect::Plain, 1, &mut bytes).unwrap();
    let record = b"\x01\0\x02\0\0\0\0\x03\0\0\0\x04\0\0\0\0\0\0\0\xa4\x01\0\0\x05\0\0\0\x06\0\0\0\
        \x07\0\0\0\0\0\0\0\x06\0README\x06\0glenda\x05\0plan9\0\0";
    assert_eq!(&bytes[..], [b"\x4b\0\0\0\x7d\x01\0\x42\0\x40\0".as_slice(), record].concat());
    let mut bytes = BytesMut::new();
    Reply::Stat { stat: Counted(stat(Dialect::U)) }.encode(Dialect::U, 1, &mut bytes).unwrap();
    let more = b"\x06\0target\x08\0\0\0\x09\0\0\0\x0a\0\0\0";
    assert_eq!(&bytes[..], [b"\x5f\0\0\0\x7d\x01\0\x56\0\x54\0".as_slice(), record, more].concat());
}

#[test]
fn what_is_too_long_leaves_nothing_behind() {
    let long = "x".repeat(65_536);
    let mut bytes = BytesMut::from(&b"before"[..]);
    let request = Request::Mkdir { dfid: 0, name: &long, mode: 0, gid: 0 };
    assert_eq!(request.encode(Dialect::L, 1, &mut bytes), Err(Malformed::TooLong(65_536)));
    assert_eq!(&bytes[..], b"before");
    assert_eq!(List::of(&["x"; 17], &mut bytes).unwrap_err(), Malformed::TooManyNames(17));
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(kind: u8, body in prop::collection::vec(any::<u8>(), 0..400)) {
        for dialect in Dialect::ALL {
            if let Ok(request) = Request::decode(dialect, kind, &body) {
                let mut bytes = BytesMut::new();
                request.encode(dialect, 1, &mut bytes).unwrap();
                let missing = if matches!(request, Request::Fsync { .. }) && body.len() == 4 { 4 } else { 0 };
                prop_assert_eq!(&bytes[7..bytes.len() - missing], &body[..]);
            }
            if let Ok(reply) = Reply::decode(dialect, kind, &body) {
                let mut bytes = BytesMut::new();
                reply.encode(dialect, 1, &mut bytes).unwrap();
                prop_assert_eq!(&bytes[7..], &body[..]);
            }
            let mut cursor = Cursor::new(&body);
            while DirEntry::get(dialect, &mut cursor).is_ok() {}
            let mut cursor = Cursor::new(&body);
            while Stat::get(dialect, &mut cursor).is_ok() {}
        }
    }

    #[test]
    fn walks_there_and_back(fid: u32, newfid: u32, tag: u16, names in prop::collection::vec(".{0,40}", 0..=16)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut scratch = BytesMut::new();
        let request = Request::Walk { fid, newfid, names: List::of(&names, &mut scratch).unwrap() };
        let mut bytes = BytesMut::new();
        request.encode(Dialect::L, tag, &mut bytes).unwrap();
        let (header, body) = header_and_body(&bytes);
        let decoded = Request::decode(Dialect::L, header.kind, body).unwrap();
        prop_assert_eq!(decoded, request);
        let Request::Walk { names: decoded, .. } = decoded else { panic!("{decoded:?}") };
        prop_assert_eq!(decoded.iter().collect::<Vec<_>>(), names);
    }

    #[test]
    fn writes_there_and_back(fid: u32, offset: u64, data in prop::collection::vec(any::<u8>(), 0..5000)) {
        let request = Request::Write { fid, offset, data: Data(&data) };
        let mut bytes = BytesMut::new();
        request.encode(Dialect::L, 1, &mut bytes).unwrap();
        let (header, body) = header_and_body(&bytes);
        prop_assert_eq!(Request::decode(Dialect::L, header.kind, body).unwrap(), request);
    }
}
