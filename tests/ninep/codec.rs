//! The codec: whatever bytes arrive, it never panics; whatever is encoded is decoded to the same.

use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::linux::Attributes;
use blixard::ninep::{Data, DirEntry, Header, List, Malformed, Qid, Reply, Request};
use bytes::BytesMut;
use proptest::prelude::*;

/// One of each request.
pub fn samples() -> Vec<Request<'static>> {
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
        Request::Fsync { fid, datasync: 1 },
        Request::Lock { fid, kind: 1, flags: 0, start: 1, length: 2, proc_id: 3, client_id: "me" },
        Request::Getlock { fid, kind: 1, start: 1, length: 2, proc_id: 3, client_id: "me" },
        Request::Link { dfid: 0, fid, name },
        Request::Mkdir { dfid: 0, name, mode, gid },
        Request::Renameat { olddirfid: 0, oldname: name, newdirfid: 0, newname: "x" },
        Request::Unlinkat { dirfid: 0, name, flags: 0 },
        Request::Version { msize: 8192, version: "9P2000.L" },
        Request::Auth { afid: 4, uname: "u", aname: "", n_uname: 5 },
        Request::Attach { fid: 6, afid: 4, uname: "u", aname: "", n_uname: 5 },
        Request::Flush { oldtag: 5 },
        Request::Walk { fid: 0, newfid: 1, names },
        Request::Read { fid, offset: 0, count: 100 },
        Request::Write { fid, offset: 0, data: Data(b"data") },
        Request::Clunk { fid },
        Request::Remove { fid },
    ]
}

fn replies() -> Vec<Reply<'static>> {
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
        Reply::Error { ename: "no" },
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

#[test]
fn every_message_there_and_back_and_cut_short() {
    for request in samples() {
        let mut bytes = BytesMut::from(&b"before"[..]);
        request.encode(77, &mut bytes).unwrap();
        let bytes = &bytes[6..];
        let (header, body) = header_and_body(bytes);
        assert_eq!((header.size as usize, header.kind, header.tag), (bytes.len(), request.kind(), 77));
        assert_eq!(Request::decode(header.kind, body).unwrap(), request, "{}", request.name());
        for length in 0..body.len() {
            assert!(Request::decode(header.kind, &body[..length]).is_err(), "{} cut to {length}", request.name());
        }
        let more = [body, &[0]].concat();
        assert_eq!(Request::decode(header.kind, &more), Err(Malformed::Trailing(1)), "{}", request.name());
    }
    for reply in replies() {
        let mut bytes = BytesMut::new();
        reply.encode(78, &mut bytes).unwrap();
        let (header, body) = header_and_body(&bytes);
        assert_eq!((header.size as usize, header.kind, header.tag), (bytes.len(), reply.kind(), 78));
        assert_eq!(Reply::decode(header.kind, body).unwrap(), reply, "{}", reply.name());
        for length in 0..body.len() {
            assert!(Reply::decode(header.kind, &body[..length]).is_err(), "{} cut to {length}", reply.name());
        }
    }
}

/// Bytes as diod's `protocol.md` and walk(5) lay them out, written down by hand.
#[test]
fn the_layout_on_the_wire() {
    let encoded = |request: &Request<'_>| {
        let mut bytes = BytesMut::new();
        request.encode(0x0201, &mut bytes).unwrap();
        bytes.to_vec()
    };
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
        .encode(1, &mut bytes)
        .unwrap();
    assert_eq!(bytes.len(), 160, "size of Rgetattr");
}

#[test]
fn what_is_too_long_leaves_nothing_behind() {
    let long = "x".repeat(65_536);
    let mut bytes = BytesMut::from(&b"before"[..]);
    let request = Request::Mkdir { dfid: 0, name: &long, mode: 0, gid: 0 };
    assert_eq!(request.encode(1, &mut bytes), Err(Malformed::TooLong(65_536)));
    assert_eq!(&bytes[..], b"before");
    assert_eq!(List::of(&["x"; 17], &mut bytes).unwrap_err(), Malformed::TooManyNames(17));
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(kind: u8, body in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(request) = Request::decode(kind, &body) {
            let mut bytes = BytesMut::new();
            request.encode(1, &mut bytes).unwrap();
            prop_assert_eq!(&bytes[7..], &body[..]);
        }
        if let Ok(reply) = Reply::decode(kind, &body) {
            let mut bytes = BytesMut::new();
            reply.encode(1, &mut bytes).unwrap();
            prop_assert_eq!(&bytes[7..], &body[..]);
        }
        let mut cursor = Cursor::new(&body);
        while DirEntry::get(&mut cursor).is_ok() {}
    }

    #[test]
    fn walks_there_and_back(fid: u32, newfid: u32, tag: u16, names in prop::collection::vec(".{0,40}", 0..=16)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut scratch = BytesMut::new();
        let request = Request::Walk { fid, newfid, names: List::of(&names, &mut scratch).unwrap() };
        let mut bytes = BytesMut::new();
        request.encode(tag, &mut bytes).unwrap();
        let (header, body) = header_and_body(&bytes);
        let decoded = Request::decode(header.kind, body).unwrap();
        prop_assert_eq!(decoded, request);
        let Request::Walk { names: decoded, .. } = decoded else { panic!("{decoded:?}") };
        prop_assert_eq!(decoded.iter().collect::<Vec<_>>(), names);
    }

    #[test]
    fn writes_there_and_back(fid: u32, offset: u64, data in prop::collection::vec(any::<u8>(), 0..5000)) {
        let request = Request::Write { fid, offset, data: Data(&data) };
        let mut bytes = BytesMut::new();
        request.encode(1, &mut bytes).unwrap();
        let (header, body) = header_and_body(&bytes);
        prop_assert_eq!(Request::decode(header.kind, body).unwrap(), request);
    }
}
