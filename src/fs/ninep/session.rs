//! One client's session: version, attach, walk, and which function answers which request. What may wait is put aside in
//! [`Waiting`]; everything else is answered in the order of arrival.

use super::fids::{Fid, Fids};
use super::peer::Peer;
use super::waiting::{Ended, Finished, Waiting, What};
use crate::fs::sessions::Session as Counted;
use crate::fs::tree::{Caller, Creation, Kind, Place, Stat, Tree};
use crate::ninep::frame::Output;
use crate::ninep::{
    Header, List, MSIZE_MAX, MSIZE_MIN, Malformed, NOFID, NOTAG, Qid, Reply, Request, VERSION_L, VERSION_UNKNOWN, linux,
};
use crate::text::{Code, Refusal};
use bytes::BytesMut;
use futures::future::Aborted;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The type of a message that names files.
const TWALK: u8 = 110;

/// Why a request is refused.
pub(super) enum Failure {
    /// The tree refused, and has noted it.
    Tree(Refusal),
    /// The front refuses, and has to note it.
    Own(Refusal),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Tree(refusal)
    }
}

/// A refusal of the front itself.
pub(super) fn own(code: Code, sentence: impl Into<String>) -> Failure {
    Failure::Own(Refusal::new(code, sentence))
}

/// Why a connection is ended by the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// What arrives can't be understood any more.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Something else came before an agreement on the version.
    #[error("invalid session: message type {0} came before a version was agreed on")]
    NoVersion(u8),
    /// An answer could not be told from another's.
    #[error("invalid message: its tag {0} is that of a request which is not answered yet")]
    TagInUse(u16),
}

/// A session.
pub(super) struct Session {
    pub(super) tree: Arc<dyn Tree>,
    peer: Peer,
    /// Where it is counted.
    counted: Arc<Counted>,
    /// Agreed on by Tversion; no session before that.
    msize: Option<u32>,
    /// Who attached last; whose `/err` is told of refusals that belong to no fid.
    caller: Option<Arc<Caller>>,
    pub(super) fids: Fids,
    waiting: Waiting,
    pub(super) scratch: BytesMut,
}

/// Where the answer to one request goes.
pub(super) struct Answerer<'a> {
    pub tag: u16,
    pub output: &'a mut Output,
}

impl Answerer<'_> {
    /// Sends this answer.
    pub fn send(&mut self, reply: &Reply<'_>) -> Result<(), Failure> {
        self.output.reply(self.tag, reply).map_err(|e| own(Code::Fault, e.to_string()))
    }
}

impl Session {
    /// A session in which nothing has been said.
    pub fn new(tree: Arc<dyn Tree>, peer: Peer, counted: Arc<Counted>) -> Self {
        let (fids, waiting, scratch) = (Fids::default(), Waiting::default(), BytesMut::new());
        Session { tree, peer, counted, msize: None, caller: None, fids, waiting, scratch }
    }

    /// A message was handled.
    pub fn count(&self) {
        self.counted.handled(self.fids.len(), self.waiting.len());
    }

    /// Has a version been agreed on?
    pub fn has_begun(&self) -> bool {
        self.msize.is_some()
    }

    /// The longest message that may come.
    pub fn size_max(&self) -> u32 {
        self.msize.unwrap_or(MSIZE_MIN)
    }

    /// The most data in one message.
    pub(super) fn data_max(&self) -> usize {
        usize::try_from(self.size_max().saturating_sub(crate::ninep::IO_HEADER_BYTES)).unwrap_or(usize::MAX)
    }

    /// Answers one message, or puts it aside.
    pub fn handle(&mut self, header: Header, body: &[u8], output: &mut Output) -> Result<(), Broken> {
        let tag = header.tag;
        let request = Request::decode(header.kind, body);
        if let Ok(Request::Version { msize, version }) = request {
            return Ok(self.version(msize, version, tag, output)?);
        }
        if self.msize.is_none() {
            return Err(Broken::NoVersion(header.kind));
        }
        if self.waiting.has(tag) {
            return Err(Broken::TagInUse(tag));
        }
        let mut answer = Answerer { tag, output };
        let answered = match request {
            Err(malformed @ Malformed::UnknownType(_)) => Err(own(Code::Unsupported, malformed.to_string())),
            // As over any other front: there is no file of such a name.
            Err(Malformed::NotUtf8) if header.kind == TWALK => {
                Err(own(Code::NotFound, "the name was not found: it is not UTF-8, as all names here are"))
            }
            Err(malformed) => Err(own(Code::Invalid, malformed.to_string())),
            Ok(_) if tag == NOTAG => Err(own(Code::Invalid, "invalid tag: NOTAG is for Tversion alone")),
            Ok(request) => self.dispatch(request, &mut answer),
        };
        match answered {
            Ok(()) => Ok(()),
            Err(failure) => Ok(self.refuse(tag, failure, output)?),
        }
    }

    fn dispatch(&mut self, request: Request<'_>, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        use Request::*;
        match request {
            Version { .. } => Ok(()),
            // ENOENT is what diod's programs take for "not required"; Linux asks nobody.
            Auth { .. } => Err(own(Code::NotFound, "authentication is not required: attach without an afid")),
            Attach { fid, afid, aname, .. } => self.attach(fid, afid, aname, answer),
            Flush { oldtag } => self.flush(oldtag, answer),
            Walk { fid, newfid, names } => self.walk(fid, newfid, names, answer),
            Lopen { fid, flags } => self.lopen(fid, flags, answer),
            Read { fid, offset, count } => self.read(fid, offset, count, answer),
            Write { fid, offset, data } => self.write(fid, offset, data.0, answer),
            Readdir { fid, offset, count } => self.readdir(fid, offset, count, answer),
            Clunk { fid } => self.clunk(fid, answer),
            Remove { fid } => self.remove(fid, answer),
            Unlinkat { dirfid, name, flags } => self.unlinkat(dirfid, name, flags, answer),
            Getattr { fid, request_mask } => self.getattr(fid, request_mask, answer),
            Setattr { fid, valid, size, .. } => self.setattr(fid, valid, size, answer),
            Statfs { fid } => self.statfs(fid, answer),
            Readlink { fid } => self.readlink(fid, answer),
            Fsync { fid, .. } => self.fsync(fid, answer),
            Lcreate { fid, name, .. } => self.refuse_create(fid, name, Creation::File),
            Mkdir { dfid, name, .. } => self.refuse_create(dfid, name, Creation::Directory),
            Symlink { fid, name, .. } => self.refuse_create(fid, name, Creation::Link),
            Link { dfid, name, .. } => self.refuse_create(dfid, name, Creation::Link),
            Mknod { dfid, name, .. } => self.refuse_create(dfid, name, Creation::Special),
            Rename { dfid, name, .. } => self.refuse_create(dfid, name, Creation::Rename),
            Renameat { newdirfid, newname, .. } => self.refuse_create(newdirfid, newname, Creation::Rename),
            // Linux takes EOPNOTSUPP for "no such attributes here", and says nothing of it to ls or cp.
            Xattrwalk { fid, .. } | Xattrcreate { fid, .. } => self.unsupported(fid, "extended attributes"),
            Lock { fid, .. } | Getlock { fid, .. } => self.unsupported(fid, "locks"),
        }
    }

    /// Answers with an errno, and puts the sentence where the client's user can read it.
    fn refuse(&mut self, tag: u16, failure: Failure, output: &mut Output) -> Result<(), Malformed> {
        let refusal = match failure {
            Failure::Tree(refusal) => refusal,
            Failure::Own(refusal) => {
                if let Some(caller) = &self.caller {
                    self.tree.note(caller, &refusal);
                }
                refusal
            }
        };
        output.reply(tag, &Reply::Lerror { ecode: refusal.code.errno().unsigned_abs() })
    }

    /// Tversion begins a session anew, whatever was before: version(5).
    fn version(&mut self, msize: u32, version: &str, tag: u16, output: &mut Output) -> Result<(), Malformed> {
        (self.fids, self.waiting, self.msize) = (Fids::default(), Waiting::default(), None);
        let agreed = msize.min(MSIZE_MAX);
        if version != VERSION_L {
            output.reply(tag, &Reply::Version { msize: agreed, version: VERSION_UNKNOWN })
        } else if msize < MSIZE_MIN {
            let refusal = Refusal::invalid(format!("invalid msize {msize}: {MSIZE_MIN} is the least"));
            self.refuse(tag, Failure::Own(refusal), output)
        } else {
            self.msize = Some(agreed);
            self.counted.agreed(VERSION_L, agreed);
            output.reply(tag, &Reply::Version { msize: agreed, version: VERSION_L })
        }
    }

    /// Who the user is was settled by the connection: `uname` and `n_uname` are not believed.
    fn attach(&mut self, fid: u32, afid: u32, aname: &str, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        if afid != NOFID {
            return Err(own(Code::Invalid, "invalid afid: authentication is not required, so it must be NOFID"));
        }
        self.fids.check_free(fid)?;
        let who = Arc::new(self.peer.caller(&*self.tree, VERSION_L));
        self.caller = Some(who.clone());
        let (root, kind) = (Place::ROOT, Kind::Directory);
        let mut at = Fid { who, root, place: root, kind, entry: None, open: None, running: 0 };
        let mut qid = qid(&self.tree.stat(&at.who, root)?);
        for name in aname.split('/').filter(|name| !name.is_empty()) {
            qid = self.step(&mut at, name)?;
        }
        at.directory()?;
        (at.root, at.entry) = (at.place, None);
        self.fids.put(fid, at);
        answer.send(&Reply::Attach { qid })
    }

    /// walk(5). An open directory may be walked from, but only to another fid: Linux 5.11 to 6.0 needs it, and QEMU's
    /// server allows it as well.
    fn walk(&mut self, fid: u32, newfid: u32, names: List<'_, &str>, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        let from = self.fids.get(fid)?;
        if fid != newfid {
            self.fids.check_free(newfid)?;
        } else if from.open.is_some() {
            return Err(own(
                Code::Busy,
                format!("invalid walk: fid {fid} is open, and can't stand for something else"),
            ));
        }
        let mut at = from.clone_unopened();
        let mut qids = [Qid::default(); crate::ninep::WALK_NAMES_MAX];
        let mut reached = 0;
        for (name, slot) in names.iter().zip(&mut qids) {
            match self.step(&mut at, name) {
                Ok(qid) => *slot = qid,
                Err(failure) if reached == 0 => return Err(failure),
                Err(_) => break,
            }
            reached += 1;
        }
        if reached == names.len() {
            self.fids.put(newfid, at);
        }
        let reached = qids.get(..reached).unwrap_or_default();
        let qids = List::of(reached, &mut self.scratch).map_err(|e| own(Code::Fault, e.to_string()))?;
        answer.send(&Reply::Walk { qids })
    }

    /// One name further.
    fn step(&self, at: &mut Fid, name: &str) -> Result<Qid, Failure> {
        at.directory()?;
        check_name(name)?;
        let up = name == "..";
        let next = if up && at.place == at.root { at.place } else { self.tree.walk(&at.who, at.place, name)? };
        let stat = self.tree.stat(&at.who, next)?;
        at.entry = (!up).then(|| (at.place, name.into()));
        (at.place, at.kind) = (next, stat.kind);
        Ok(qid(&stat))
    }

    fn clunk(&mut self, fid: u32, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        self.forget(fid)?;
        answer.send(&Reply::Clunk {})
    }

    /// Takes a fid out of the table; what waits on it is told.
    pub(super) fn forget(&mut self, number: u32) -> Result<Fid, Failure> {
        let fid = self.fids.remove(number)?;
        if fid.running > 0 {
            self.waiting.clunked(number);
        }
        Ok(fid)
    }

    /// flush(5): the answer comes when the old request is cancelled, or at once if there is none.
    fn flush(&mut self, oldtag: u16, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        if self.waiting.flush(oldtag, answer.tag) { Ok(()) } else { answer.send(&Reply::Flush {}) }
    }

    /// Puts a request aside until its work is done.
    pub(super) fn put_aside(
        &mut self,
        tag: u16,
        what: What,
        fid: Option<u32>,
        work: super::waiting::Work,
    ) -> Result<(), Failure> {
        if let Some(number) = fid {
            self.fids.get_mut(number)?.running += 1;
        }
        self.waiting.add(tag, what, fid, work);
        Ok(())
    }

    /// May a request such as this be put aside, should it have to be?
    pub(super) fn check_room(&self, what: What) -> Result<(), Failure> {
        self.waiting.check_room(what).map_err(Failure::Own)
    }

    /// Answers the next request that was put aside and has ended.
    pub fn poll_waiting(&mut self, output: &mut Output, context: &mut Context<'_>) -> Poll<Result<(), Malformed>> {
        self.waiting.poll_ended(context).map(|ended| self.ended(ended, output))
    }

    fn ended(&mut self, ended: Ended, output: &mut Output) -> Result<(), Malformed> {
        if let Some(number) = ended.fid {
            self.fids.ended(number);
        }
        if !ended.flushes.is_empty() {
            return ended.flushes.iter().try_for_each(|flush| output.reply(*flush, &Reply::Flush {}));
        }
        let mut answer = Answerer { tag: ended.tag, output };
        let answered = match (ended.what, ended.result) {
            (_, Err(Aborted)) => Err(own(Code::Interrupted, "interrupted: the fid was clunked")),
            (_, Ok(Err(refusal))) => Err(Failure::Tree(refusal)),
            (What::Read { count }, Ok(Ok(Finished::Read(data)))) => answer.data(data, count),
            (_, Ok(Ok(Finished::Read(data)))) => answer.data(data, 0),
            (_, Ok(Ok(Finished::Wrote(count)))) => answer.wrote(count),
            (What::Unlinkat, Ok(Ok(Finished::Removed))) => answer.send(&Reply::Unlinkat {}),
            (_, Ok(Ok(Finished::Removed))) => answer.send(&Reply::Remove {}),
        };
        answered.or_else(|failure| self.refuse(ended.tag, failure, output))
    }

    fn refuse_create(&self, dir: u32, name: &str, what: Creation) -> Result<(), Failure> {
        let fid = self.fids.get(dir)?.directory()?;
        Err(self.tree.refuse_create(&fid.who, fid.place, name, what).into())
    }

    fn unsupported(&self, fid: u32, what: &str) -> Result<(), Failure> {
        self.fids.get(fid)?;
        Err(own(Code::Unsupported, format!("not supported: files of this tree have no {what}")))
    }
}

/// What no name in a message may be; everything else is the tree's to judge.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    if name.is_empty() || name == "." {
        return Err(own(Code::Invalid, format!("invalid name '{name}': '..' or a name in the directory is needed")));
    }
    if name.contains(['/', '\0']) {
        return Err(own(Code::Invalid, "invalid name: it has a slash or a NUL byte"));
    }
    if name.len() > linux::NAME_MAX as usize {
        let most = linux::NAME_MAX;
        return Err(own(
            Code::NameTooLong,
            format!("invalid name: it has {} bytes, and {most} is the most", name.len()),
        ));
    }
    Ok(())
}

/// The qid of what was stat'ed.
pub(super) fn qid(stat: &Stat) -> Qid {
    Qid { kind: qid_kind(stat.kind), version: stat.version, path: stat.place.0 }
}

/// The kind of a qid.
pub(super) fn qid_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => Qid::DIRECTORY,
        Kind::Link => Qid::LINK,
        Kind::File | Kind::Stream => Qid::FILE,
    }
}
