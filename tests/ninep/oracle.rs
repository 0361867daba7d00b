//! The codec of rs9p, which nobody here wrote, as the oracle of ours for 9P2000.L: random messages of every type that it has
//! are encoded by one and decoded by the other, both ways, and mean the same to both.
//!
//! Two faults of rs9p are left aside: it takes the count of an Rreaddir for a number of records, so that it can't read its
//! own, and it does not know the `datasync` of Tfsync.

use super::random::Random;
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::{Data, Dialect, Header, NumericId, Qid, Reply, Request};
use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use rs9p::fcall::{self as theirs, FCall};
use rs9p::serialize::{read_msg, write_msg};

/// What the messages of rs9p are made of.
trait Fields {
    fn data(&mut self) -> theirs::Data;
    fn qid(&mut self) -> theirs::QId;
    fn time(&mut self) -> theirs::Time;
    fn lock(&mut self) -> theirs::LockType;
    fn getlock(&mut self) -> theirs::Getlock;
    fn statfs(&mut self) -> theirs::StatFs;
    fn stat(&mut self) -> theirs::Stat;
    fn setattr(&mut self) -> theirs::SetAttr;
    fn flock(&mut self) -> theirs::Flock;
    fn message(&mut self, nth: usize) -> FCall;
}

impl Fields for Random {
    fn data(&mut self) -> theirs::Data {
        theirs::Data(self.bytes(3000))
    }

    fn qid(&mut self) -> theirs::QId {
        let typ = theirs::QIdType::from_bits_retain(self.u64() as u8);
        theirs::QId { typ, version: self.u32(), path: self.u64() }
    }

    fn time(&mut self) -> theirs::Time {
        theirs::Time { sec: self.u64(), nsec: self.u64() }
    }

    fn lock(&mut self) -> theirs::LockType {
        theirs::LockType::from_bits_truncate(self.u64() as u8)
    }

    fn getlock(&mut self) -> theirs::Getlock {
        let (typ, start, length) = (self.lock(), self.u64(), self.u64());
        theirs::Getlock { typ, start, length, proc_id: self.u32(), client_id: self.text() }
    }

    fn statfs(&mut self) -> theirs::StatFs {
        theirs::StatFs {
            typ: self.u32(),
            bsize: self.u32(),
            blocks: self.u64(),
            bfree: self.u64(),
            bavail: self.u64(),
            files: self.u64(),
            ffree: self.u64(),
            fsid: self.u64(),
            namelen: self.u32(),
        }
    }

    fn stat(&mut self) -> theirs::Stat {
        theirs::Stat {
            mode: self.u32(),
            uid: self.u32(),
            gid: self.u32(),
            nlink: self.u64(),
            rdev: self.u64(),
            size: self.u64(),
            blksize: self.u64(),
            blocks: self.u64(),
            atime: self.time(),
            mtime: self.time(),
            ctime: self.time(),
        }
    }

    fn setattr(&mut self) -> theirs::SetAttr {
        let (mode, uid, gid, size) = (self.u32(), self.u32(), self.u32(), self.u64());
        theirs::SetAttr { mode, uid, gid, size, atime: self.time(), mtime: self.time() }
    }

    fn flock(&mut self) -> theirs::Flock {
        let flags = theirs::LockFlag::from_bits_truncate(self.u32());
        let theirs::Getlock { typ, start, length, proc_id, client_id } = self.getlock();
        theirs::Flock { typ, flags, start, length, proc_id, client_id }
    }

    /// A message of the nth type.
    fn message(&mut self, nth: usize) -> FCall {
        let r = self;
        match nth {
            0 => FCall::RlError { ecode: r.u32() },
            1 => FCall::TStatFs { fid: r.u32() },
            2 => FCall::RStatFs { statfs: r.statfs() },
            3 => FCall::TlOpen { fid: r.u32(), flags: r.u32() },
            4 => FCall::RlOpen { qid: r.qid(), iounit: r.u32() },
            5 => FCall::TlCreate { fid: r.u32(), name: r.text(), flags: r.u32(), mode: r.u32(), gid: r.u32() },
            6 => FCall::RlCreate { qid: r.qid(), iounit: r.u32() },
            7 => FCall::TSymlink { fid: r.u32(), name: r.text(), symtgt: r.text(), gid: r.u32() },
            8 => FCall::RSymlink { qid: r.qid() },
            9 => {
                let (dfid, name, mode) = (r.u32(), r.text(), r.u32());
                FCall::TMkNod { dfid, name, mode, major: r.u32(), minor: r.u32(), gid: r.u32() }
            }
            10 => FCall::RMkNod { qid: r.qid() },
            11 => FCall::TRename { fid: r.u32(), dfid: r.u32(), name: r.text() },
            12 => FCall::RRename,
            13 => FCall::TReadLink { fid: r.u32() },
            14 => FCall::RReadLink { target: r.text() },
            15 => FCall::TGetAttr { fid: r.u32(), req_mask: theirs::GetAttrMask::from_bits_truncate(r.u64()) },
            16 => {
                let valid = theirs::GetAttrMask::from_bits_truncate(r.u64());
                FCall::RGetAttr { valid, qid: r.qid(), stat: r.stat() }
            }
            17 => {
                let (fid, valid) = (r.u32(), theirs::SetAttrMask::from_bits_truncate(r.u32()));
                FCall::TSetAttr { fid, valid, stat: r.setattr() }
            }
            18 => FCall::RSetAttr,
            19 => FCall::TxAttrWalk { fid: r.u32(), newfid: r.u32(), name: r.text() },
            20 => FCall::RxAttrWalk { size: r.u64() },
            21 => FCall::TxAttrCreate { fid: r.u32(), name: r.text(), attr_size: r.u64(), flags: r.u32() },
            22 => FCall::RxAttrCreate,
            23 => FCall::TReadDir { fid: r.u32(), offset: r.u64(), count: r.u32() },
            24 => FCall::TFSync { fid: r.u32() },
            25 => FCall::RFSync,
            26 => FCall::TLock { fid: r.u32(), flock: r.flock() },
            27 => FCall::RLock { status: theirs::LockStatus::from_bits_truncate(r.u64() as u8) },
            28 => FCall::TGetLock { fid: r.u32(), flock: r.getlock() },
            29 => FCall::RGetLock { flock: r.getlock() },
            30 => FCall::TLink { dfid: r.u32(), fid: r.u32(), name: r.text() },
            31 => FCall::RLink,
            32 => FCall::TMkDir { dfid: r.u32(), name: r.text(), mode: r.u32(), gid: r.u32() },
            33 => FCall::RMkDir { qid: r.qid() },
            34 => {
                let (olddirfid, oldname) = (r.u32(), r.text());
                FCall::TRenameAt { olddirfid, oldname, newdirfid: r.u32(), newname: r.text() }
            }
            35 => FCall::RRenameAt,
            36 => FCall::TUnlinkAt { dirfd: r.u32(), name: r.text(), flags: r.u32() },
            37 => FCall::RUnlinkAt,
            38 => FCall::TAuth { afid: r.u32(), uname: r.text(), aname: r.text(), n_uname: r.u32() },
            39 => FCall::RAuth { aqid: r.qid() },
            40 => {
                let (fid, afid) = (r.u32(), r.u32());
                FCall::TAttach { fid, afid, uname: r.text(), aname: r.text(), n_uname: r.u32() }
            }
            41 => FCall::RAttach { qid: r.qid() },
            42 => FCall::TVersion { msize: r.u32(), version: r.text() },
            43 => FCall::RVersion { msize: r.u32(), version: r.text() },
            44 => FCall::TFlush { oldtag: r.u64() as u16 },
            45 => FCall::RFlush,
            46 => {
                let (fid, newfid, names) = (r.u32(), r.u32(), r.below(17));
                FCall::TWalk { fid, newfid, wnames: (0..names).map(|_| r.text()).collect() }
            }
            47 => {
                let qids = r.below(17);
                FCall::RWalk { wqids: (0..qids).map(|_| r.qid()).collect() }
            }
            48 => FCall::TRead { fid: r.u32(), offset: r.u64(), count: r.u32() },
            49 => FCall::RRead { data: r.data() },
            50 => FCall::TWrite { fid: r.u32(), offset: r.u64(), data: r.data() },
            51 => FCall::RWrite { count: r.u32() },
            52 => FCall::TClunk { fid: r.u32() },
            53 => FCall::RClunk,
            54 => FCall::TRemove { fid: r.u32() },
            _ => FCall::RRemove,
        }
    }
}

/// How many types [`Fields::message`] has: all that rs9p has but Rreaddir.
const TYPES: usize = 56;

fn their_qid(qid: Qid) -> theirs::QId {
    theirs::QId { typ: theirs::QIdType::from_bits_retain(qid.kind), version: qid.version, path: qid.path }
}

fn their_lock(kind: u8) -> theirs::LockType {
    theirs::LockType::from_bits_retain(kind)
}

/// What a request of ours means to rs9p.
fn their_request(request: &Request<'_>) -> FCall {
    let text = str::to_owned;
    match *request {
        Request::Statfs { fid } => FCall::TStatFs { fid },
        Request::Lopen { fid, flags } => FCall::TlOpen { fid, flags },
        Request::Lcreate { fid, name, flags, mode, gid } => FCall::TlCreate { fid, name: text(name), flags, mode, gid },
        Request::Symlink { fid, name, target, gid } => {
            FCall::TSymlink { fid, name: text(name), symtgt: text(target), gid }
        }
        Request::Mknod { dfid, name, mode, major, minor, gid } => {
            FCall::TMkNod { dfid, name: text(name), mode, major, minor, gid }
        }
        Request::Rename { fid, dfid, name } => FCall::TRename { fid, dfid, name: text(name) },
        Request::Readlink { fid } => FCall::TReadLink { fid },
        Request::Getattr { fid, request_mask } => {
            FCall::TGetAttr { fid, req_mask: theirs::GetAttrMask::from_bits_retain(request_mask) }
        }
        Request::Setattr { fid, valid, mode, uid, gid, size, atime_sec, atime_nsec, mtime_sec, mtime_nsec } => {
            let atime = theirs::Time { sec: atime_sec, nsec: atime_nsec };
            let mtime = theirs::Time { sec: mtime_sec, nsec: mtime_nsec };
            let stat = theirs::SetAttr { mode, uid, gid, size, atime, mtime };
            FCall::TSetAttr { fid, valid: theirs::SetAttrMask::from_bits_retain(valid), stat }
        }
        Request::Xattrwalk { fid, newfid, name } => FCall::TxAttrWalk { fid, newfid, name: text(name) },
        Request::Xattrcreate { fid, name, attr_size, flags } => {
            FCall::TxAttrCreate { fid, name: text(name), attr_size, flags }
        }
        Request::Readdir { fid, offset, count } => FCall::TReadDir { fid, offset, count },
        Request::Fsync { fid, .. } => FCall::TFSync { fid },
        Request::Lock { fid, kind, flags, start, length, proc_id, client_id } => {
            let (typ, flags) = (their_lock(kind), theirs::LockFlag::from_bits_retain(flags));
            FCall::TLock {
                fid,
                flock: theirs::Flock { typ, flags, start, length, proc_id, client_id: text(client_id) },
            }
        }
        Request::Getlock { fid, kind, start, length, proc_id, client_id } => {
            let typ = their_lock(kind);
            FCall::TGetLock { fid, flock: theirs::Getlock { typ, start, length, proc_id, client_id: text(client_id) } }
        }
        Request::Link { dfid, fid, name } => FCall::TLink { dfid, fid, name: text(name) },
        Request::Mkdir { dfid, name, mode, gid } => FCall::TMkDir { dfid, name: text(name), mode, gid },
        Request::Renameat { olddirfid, oldname, newdirfid, newname } => {
            FCall::TRenameAt { olddirfid, oldname: text(oldname), newdirfid, newname: text(newname) }
        }
        Request::Unlinkat { dirfid, name, flags } => FCall::TUnlinkAt { dirfd: dirfid, name: text(name), flags },
        Request::Version { msize, version } => FCall::TVersion { msize, version: text(version) },
        Request::Auth { afid, uname, aname, n_uname: NumericId(n_uname) } => {
            FCall::TAuth { afid, uname: text(uname), aname: text(aname), n_uname }
        }
        Request::Attach { fid, afid, uname, aname, n_uname: NumericId(n_uname) } => {
            FCall::TAttach { fid, afid, uname: text(uname), aname: text(aname), n_uname }
        }
        Request::Flush { oldtag } => FCall::TFlush { oldtag },
        Request::Walk { fid, newfid, names } => {
            FCall::TWalk { fid, newfid, wnames: names.iter().map(str::to_owned).collect() }
        }
        Request::Read { fid, offset, count } => FCall::TRead { fid, offset, count },
        Request::Write { fid, offset, data } => FCall::TWrite { fid, offset, data: theirs::Data(data.0.to_vec()) },
        Request::Clunk { fid } => FCall::TClunk { fid },
        Request::Remove { fid } => FCall::TRemove { fid },
        Request::Open { .. } | Request::Create { .. } | Request::Stat { .. } | Request::Wstat { .. } => {
            panic!("{request:?} is not in 9P2000.L")
        }
    }
}

/// What a reply of ours means to rs9p.
fn their_reply(reply: &Reply<'_>) -> FCall {
    match *reply {
        Reply::Lerror { ecode } => FCall::RlError { ecode },
        Reply::Statfs { kind: typ, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen } => {
            let statfs = theirs::StatFs { typ, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen };
            FCall::RStatFs { statfs }
        }
        Reply::Lopen { qid, iounit } => FCall::RlOpen { qid: their_qid(qid), iounit },
        Reply::Lcreate { qid, iounit } => FCall::RlCreate { qid: their_qid(qid), iounit },
        Reply::Symlink { qid } => FCall::RSymlink { qid: their_qid(qid) },
        Reply::Mknod { qid } => FCall::RMkNod { qid: their_qid(qid) },
        Reply::Rename {} => FCall::RRename,
        Reply::Readlink { target } => FCall::RReadLink { target: target.to_owned() },
        Reply::Getattr { valid, qid, attributes: a } => {
            let time = |sec, nsec| theirs::Time { sec, nsec };
            let stat = theirs::Stat {
                mode: a.mode,
                uid: a.uid,
                gid: a.gid,
                nlink: a.nlink,
                rdev: a.rdev,
                size: a.size,
                blksize: a.blksize,
                blocks: a.blocks,
                atime: time(a.atime_sec, a.atime_nsec),
                mtime: time(a.mtime_sec, a.mtime_nsec),
                ctime: time(a.ctime_sec, a.ctime_nsec),
            };
            FCall::RGetAttr { valid: theirs::GetAttrMask::from_bits_retain(valid), qid: their_qid(qid), stat }
        }
        Reply::Setattr {} => FCall::RSetAttr,
        Reply::Xattrwalk { size } => FCall::RxAttrWalk { size },
        Reply::Xattrcreate {} => FCall::RxAttrCreate,
        Reply::Fsync {} => FCall::RFSync,
        Reply::Lock { status } => FCall::RLock { status: theirs::LockStatus::from_bits_retain(status) },
        Reply::Getlock { kind, start, length, proc_id, client_id } => {
            let (typ, client_id) = (their_lock(kind), client_id.to_owned());
            FCall::RGetLock { flock: theirs::Getlock { typ, start, length, proc_id, client_id } }
        }
        Reply::Link {} => FCall::RLink,
        Reply::Mkdir { qid } => FCall::RMkDir { qid: their_qid(qid) },
        Reply::Renameat {} => FCall::RRenameAt,
        Reply::Unlinkat {} => FCall::RUnlinkAt,
        Reply::Version { msize, version } => FCall::RVersion { msize, version: version.to_owned() },
        Reply::Auth { aqid } => FCall::RAuth { aqid: their_qid(aqid) },
        Reply::Attach { qid } => FCall::RAttach { qid: their_qid(qid) },
        Reply::Flush {} => FCall::RFlush,
        Reply::Walk { qids } => FCall::RWalk { wqids: qids.iter().map(their_qid).collect() },
        Reply::Read { data } => FCall::RRead { data: theirs::Data(data.0.to_vec()) },
        Reply::Write { count } => FCall::RWrite { count },
        Reply::Clunk {} => FCall::RClunk,
        Reply::Remove {} => FCall::RRemove,
        Reply::Readdir { .. }
        | Reply::Error { .. }
        | Reply::Open { .. }
        | Reply::Create { .. }
        | Reply::Stat { .. }
        | Reply::Wstat { .. } => panic!("{reply:?} is not to be compared"),
    }
}

/// A message of rs9p with its size before it, which rs9p leaves to the transport.
fn encoded_by_them(tag: u16, body: &FCall) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    write_msg(&mut bytes, &theirs::Msg { tag, body: body.clone() }).unwrap();
    let size = bytes.len() as u32;
    bytes[..4].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Decodes by ours what rs9p has encoded, says what it means, and encodes it again.
fn through_ours(bytes: &[u8]) -> (u16, FCall, BytesMut) {
    let Header { kind, tag, .. } = Header::decode(bytes).unwrap();
    let (body, mut again) = (&bytes[HEADER_BYTES..], BytesMut::new());
    // A T-message has an even number.
    if kind % 2 == 0 {
        let request = Request::decode(Dialect::L, kind, body).unwrap();
        request.encode(Dialect::L, tag, &mut again).unwrap();
        (tag, their_request(&request), again)
    } else {
        let reply = Reply::decode(Dialect::L, kind, body).unwrap();
        reply.encode(Dialect::L, tag, &mut again).unwrap();
        (tag, their_reply(&reply), again)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_mean_the_same_to_both(seed: u64) {
        let mut random = Random(seed);
        for nth in 0..TYPES {
            let (tag, message) = (random.u64() as u16, random.message(nth));
            let bytes = encoded_by_them(tag, &message);
            let (seen_tag, seen, again) = through_ours(&bytes);
            prop_assert_eq!(seen_tag, tag);
            prop_assert_eq!(&seen, &message);
            if !matches!(message, FCall::TFSync { .. }) {
                prop_assert_eq!(&again[..], &bytes[..]);
            }
            let back = read_msg(&mut &again[4..]).unwrap();
            prop_assert_eq!((back.tag, back.body), (tag, message));
        }
    }

    #[test]
    fn directories_mean_the_same_to_both(seed: u64, count in 0_u64..20) {
        let r = &mut Random(seed);
        let entry = |r: &mut Random| {
            theirs::DirEntry { qid: r.qid(), offset: r.u64(), typ: r.u64() as u8, name: r.text() }
        };
        let entries: Vec<_> = (0..count).map(|_| entry(r)).collect();
        let message = FCall::RReadDir { data: theirs::DirEntryData::with(entries.clone()) };
        let bytes = encoded_by_them(1, &message);
        let Ok(Reply::Readdir { data: Data(records) }) = Reply::decode(Dialect::L, 41, &bytes[HEADER_BYTES..]) else {
            panic!("it is not understood")
        };
        let mut cursor = Cursor::new(records);
        let mut again = BytesMut::new();
        for theirs in entries {
            let ours = blixard::ninep::DirEntry::get(Dialect::L, &mut cursor).unwrap();
            ours.put(Dialect::L, &mut again).unwrap();
            let seen = (their_qid(ours.qid), ours.offset, ours.kind, ours.name);
            prop_assert_eq!(seen, (theirs.qid, theirs.offset, theirs.typ, theirs.name.as_str()));
        }
        prop_assert!(cursor.is_empty());
        prop_assert_eq!(&again[..], records);
    }
}

/// Every type that rs9p has is among those that are compared.
#[test]
fn every_type_is_compared() {
    let mut random = Random(1);
    let mut kinds: Vec<u8> = (0..TYPES).map(|nth| encoded_by_them(0, &random.message(nth))[4]).collect();
    kinds.push(41);
    kinds.sort_unstable();
    let known = |kind: &u8| {
        let mut bytes = BytesMut::new();
        bytes.put_u8(*kind);
        bytes.put_bytes(0, 300);
        read_msg(&mut &bytes[..]).is_ok()
    };
    assert_eq!(kinds, (0..=u8::MAX).filter(known).collect::<Vec<_>>());
}
