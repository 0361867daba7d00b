//! One client's session: version, attach, walk, and which function answers which request. What may wait is put aside in
//! [`Waiting`]; everything else is answered in the order of arrival.

use super::fids::{Fid, Fids};
use super::peer::Peer;
use super::waiting::{Ended, Finished, Waiting, What};
use crate::fs::sessions::Session as Counted;
use crate::fs::tree::{Caller, Creation, Identity, Kind, Place, Tree};
use crate::ninep::frame::Output;
use crate::ninep::{
    Data, Dialect, Extended, Header, List, MSIZE_MAX, MSIZE_MIN, Malformed, NOFID, NOTAG, Qid, Reply, Request,
    VERSION_UNKNOWN, linux, print,
};
use crate::text::{Code, Refusal};
use bytes::{Bytes, BytesMut};
use futures::future::Aborted;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The target of the trace, in which every message is a line as `9pserve -D` of plan9port prints it.
const TRACE: &str = "blixard::ninep::trace";

/// The most bytes of a sentence in an Rerror: it fits into every message, and clients cut it at 128 (ERRMAX) or 256.
const SENTENCE_BYTES_MAX: usize = 1024;

/// The types of the two replies that carry data.
const RREAD: u8 = 117;
const RREADDIR: u8 = 41;

/// The type of the message with which a session begins.
const TVERSION: u8 = 100;
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

/// What Tversion settles.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    dialect: Dialect,
    msize: u32,
}

/// A session.
pub(super) struct Session {
    pub(super) tree: Arc<dyn Tree>,
    peer: Peer,
    /// Where it is counted.
    counted: Arc<Counted>,
    /// Agreed on by Tversion; no session before that.
    agreed: Option<Agreed>,
    /// Who attached last; whose `/err` is told of refusals that belong to no fid.
    caller: Option<Arc<Caller>>,
    pub(super) fids: Fids,
    waiting: Waiting,
    pub(super) scratch: BytesMut,
}

/// Where the answer to one request goes.
pub(super) struct Answerer<'a> {
    pub dialect: Dialect,
    pub tag: u16,
    pub output: &'a mut Output,
}

impl Answerer<'_> {
    /// Sends this answer.
    pub fn send(&mut self, reply: &Reply<'_>) -> Result<(), Failure> {
        self.reply(reply).map_err(|e| own(Code::Fault, e.to_string()))
    }

    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), Malformed> {
        if traced() {
            trace(&print::reply(self.dialect, self.tag, reply));
        }
        self.output.reply(self.dialect, self.tag, reply)
    }

    /// Rread, of at most `count` bytes. Long data is not copied.
    pub fn data(&mut self, mut data: Bytes, count: usize) -> Result<(), Failure> {
        data.truncate(count);
        if traced() {
            trace(&print::reply(self.dialect, self.tag, &Reply::Read { data: Data(&data) }));
        }
        self.output.data(RREAD, self.tag, data).map_err(|e| own(Code::Fault, e.to_string()))
    }

    /// Rreaddir.
    pub fn records(&mut self, data: Bytes) -> Result<(), Failure> {
        if traced() {
            trace(&print::reply(self.dialect, self.tag, &Reply::Readdir { data: Data(&data) }));
        }
        self.output.data(RREADDIR, self.tag, data).map_err(|e| own(Code::Fault, e.to_string()))
    }

    /// Rwrite.
    pub fn wrote(&mut self, count: usize) -> Result<(), Failure> {
        self.send(&Reply::Write { count: u32::try_from(count).unwrap_or(u32::MAX) })
    }
}

/// Are messages to be printed? It is asked once a message, and costs a load while they are not.
fn traced() -> bool {
    tracing::enabled!(target: TRACE, tracing::Level::TRACE)
}

fn trace(line: &dyn std::fmt::Display) {
    tracing::trace!(target: TRACE, "{line}");
}

impl Session {
    /// A session in which nothing has been said.
    pub fn new(tree: Arc<dyn Tree>, peer: Peer, counted: Arc<Counted>) -> Self {
        let (fids, waiting, scratch) = (Fids::default(), Waiting::default(), BytesMut::new());
        Session { tree, peer, counted, agreed: None, caller: None, fids, waiting, scratch }
    }

    /// A message was handled.
    pub fn count(&self) {
        self.counted.handled(self.fids.len(), self.waiting.len());
    }

    /// Has a version been agreed on?
    pub fn has_begun(&self) -> bool {
        self.agreed.is_some()
    }

    /// What is spoken. Before anything was agreed on: the dialect in which every Tversion can be read.
    pub(super) fn dialect(&self) -> Dialect {
        self.agreed.map_or(Dialect::Plain, |agreed| agreed.dialect)
    }

    /// The longest message that may come.
    pub fn size_max(&self) -> u32 {
        self.agreed.map_or(MSIZE_MIN, |agreed| agreed.msize)
    }

    /// The most data in one message.
    pub(super) fn data_max(&self) -> usize {
        usize::try_from(self.size_max().saturating_sub(crate::ninep::IO_HEADER_BYTES)).unwrap_or(usize::MAX)
    }

    /// Answers one message, or puts it aside.
    pub fn handle(&mut self, header: Header, body: &[u8], output: &mut Output) -> Result<(), Broken> {
        let tag = header.tag;
        let dialect = match self.agreed {
            Some(agreed) => agreed.dialect,
            None if header.kind == TVERSION => Dialect::Plain,
            None => return Err(Broken::NoVersion(header.kind)),
        };
        let request = Request::decode(dialect, header.kind, body);
        if traced() {
            match &request {
                Ok(request) => trace(&print::request(dialect, tag, request)),
                Err(malformed) => trace(&format_args!("T{} tag {tag}: {malformed}", header.kind)),
            }
        }
        if let Ok(Request::Version { msize, version }) = request {
            return Ok(self.version(msize, version, tag, output)?);
        }
        if self.waiting.has(tag) {
            return Err(Broken::TagInUse(tag));
        }
        let mut answer = Answerer { dialect, tag, output };
        let answered = match request {
            Err(malformed @ Malformed::UnknownType { .. }) => Err(own(Code::Unsupported, malformed.to_string())),
            // As over any other front: there is no file of such a name.
            Err(Malformed::NotUtf8) if header.kind == TWALK => {
                let not_found = own(Code::NotFound, "the name was not found: it is not UTF-8, as all names here are");
                Err(as_known(not_found, dialect))
            }
            Err(malformed) => Err(own(Code::Invalid, malformed.to_string())),
            Ok(_) if tag == NOTAG => Err(own(Code::Invalid, "invalid tag: NOTAG is for Tversion alone")),
            Ok(request) => self.dispatch(request, &mut answer),
        };
        match answered {
            Ok(()) => Ok(()),
            Err(failure) => Ok(self.refuse(failure, &mut answer)?),
        }
    }

    fn dispatch(&mut self, request: Request<'_>, answer: &mut Answerer<'_>) -> Result<(), Failure> {
        use Request::*;
        match request {
            Version { .. } => Ok(()),
            // ENOENT is what diod's programs take for "not required"; Linux asks nobody.
            Auth { .. } => {
                Err(own(Code::NotFound, "not found: authentication is not required; attach without an afid"))
            }
            Attach { fid, afid, uname, aname, .. } => self.attach(fid, afid, (uname, aname), answer),
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
            Open { fid, mode } => self.open(fid, mode, answer),
            Create { fid, name, perm, .. } => self.create(fid, name, perm),
            Stat { fid } => self.stat(fid, answer),
            Wstat { fid, stat } => self.wstat(fid, &stat.0, answer),
        }
    }

    /// Answers with an errno or a sentence, and puts the sentence where the client's user can read it.
    fn refuse(&self, failure: Failure, answer: &mut Answerer<'_>) -> Result<(), Malformed> {
        let refusal = match failure {
            Failure::Tree(refusal) => refusal,
            Failure::Own(refusal) => {
                // A wrong fid is a mistake of the client, and no news to its user; or it asked for several things at once, and
                // what comes after the first that failed fails, too.
                if let Some(caller) = self.caller.as_ref().filter(|_| refusal.code != Code::BadFile) {
                    self.tree.note(caller, &refusal);
                }
                refusal
            }
        };
        let errno = refusal.code.errno().unsigned_abs();
        match answer.dialect {
            Dialect::L => answer.reply(&Reply::Lerror { ecode: errno }),
            Dialect::Plain | Dialect::U => {
                let sentence = &refusal.sentence;
                let ename = sentence.get(..sentence.floor_char_boundary(SENTENCE_BYTES_MAX)).unwrap_or(sentence);
                answer.reply(&Reply::Error { ename, errno: Extended(errno) })
            }
        }
    }

    /// Tversion begins a session anew, whatever was before: version(5).
    fn version(&mut self, asked: u32, version: &str, tag: u16, output: &mut Output) -> Result<(), Malformed> {
        (self.fids, self.waiting, self.agreed) = (Fids::default(), Waiting::default(), None);
        let (spoken, msize) = (Dialect::agreed(version), asked.min(MSIZE_MAX));
        let mut answer = Answerer { dialect: spoken.unwrap_or(Dialect::Plain), tag, output };
        let Some(dialect) = spoken else {
            return answer.reply(&Reply::Version { msize, version: VERSION_UNKNOWN });
        };
        if asked < MSIZE_MIN {
            return self
                .refuse(own(Code::Invalid, format!("invalid msize {asked}: {MSIZE_MIN} is the least")), &mut answer);
        }
        self.agreed = Some(Agreed { dialect, msize });
        self.counted.agreed(dialect.name(), msize);
        answer.reply(&Reply::Version { msize, version: dialect.name() })
    }

    /// Who the user is was settled by the connection: `uname` and `n_uname` are not believed, but another node's.
    fn attach(
        &mut self,
        fid: u32,
        afid: u32,
        (uname, aname): (&str, &str),
        answer: &mut Answerer<'_>,
    ) -> Result<(), Failure> {
        if afid != NOFID {
            return Err(own(Code::Invalid, "invalid afid: authentication is not required, so it must be NOFID"));
        }
        self.fids.check_free(fid)?;
        let who = Arc::new(self.peer.caller_as(&*self.tree, answer.dialect.name(), uname));
        self.caller = Some(who.clone());
        let (root, kind) = (Place::ROOT, Kind::Directory);
        let mut at = Fid { who, root, place: root, kind, open: None, running: 0 };
        let mut qid = qid(self.tree.identity(&at.who, root)?);
        for name in aname.split('/').filter(|name| !name.is_empty()) {
            qid = self.step(&mut at, name)?;
        }
        at.directory()?;
        at.root = at.place;
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
                Err(failure) if reached == 0 => return Err(as_known(failure, answer.dialect)),
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
        let mut found = self.look(at, name)?;
        if found.kind == Kind::Link && self.dialect() == Dialect::Plain {
            // 9P2000 has no links: the name stands for what it leads to.
            let target = self.tree.readlink(&at.who, found.place)?;
            for name in target.split('/') {
                found = self.look(at, name)?;
                (at.place, at.kind) = (found.place, found.kind);
            }
        }
        (at.place, at.kind) = (found.place, found.kind);
        Ok(qid(found))
    }

    /// What is at a name; `..` leads no further up than what was attached to.
    fn look(&self, at: &Fid, name: &str) -> Result<Identity, Refusal> {
        let up = name == "..";
        let place = if up && at.place == at.root { at.place } else { self.tree.walk(&at.who, at.place, name)? };
        self.tree.identity(&at.who, place)
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
        let mut answer = Answerer { dialect: self.dialect(), tag: ended.tag, output };
        if !ended.flushes.is_empty() {
            return ended.flushes.into_iter().try_for_each(|flush| {
                answer.tag = flush;
                answer.reply(&Reply::Flush {})
            });
        }
        let answered = match (ended.what, ended.result) {
            (_, Err(Aborted)) => Err(own(Code::Interrupted, "interrupted: the fid was clunked")),
            (_, Ok(Err(refusal))) => Err(Failure::Tree(refusal)),
            (What::Read { count }, Ok(Ok(Finished::Read(data)))) => answer.data(data, count),
            (_, Ok(Ok(Finished::Read(data)))) => answer.data(data, 0),
            (_, Ok(Ok(Finished::Wrote(count)))) => answer.wrote(count),
            (What::Unlinkat, Ok(Ok(Finished::Removed))) => answer.send(&Reply::Unlinkat {}),
            (_, Ok(Ok(Finished::Removed))) => answer.send(&Reply::Remove {}),
        };
        answered.or_else(|failure| self.refuse(failure, &mut answer))
    }

    pub(super) fn refuse_create(&self, dir: u32, name: &str, what: Creation) -> Result<(), Failure> {
        let fid = self.fids.get(dir)?.directory()?;
        Err(self.tree.refuse_create(&fid.who, fid.place, name, what).into())
    }

    fn unsupported(&self, fid: u32, what: &str) -> Result<(), Failure> {
        self.fids.get(fid)?;
        Err(own(Code::Unsupported, format!("not supported: files of this tree have no {what}")))
    }
}

/// A name that is not there. In 9P2000 a sentence is all that a client has to tell it from other failures: Linux, which makes
/// files where it finds none, knows a few sentences by heart, and this is one of them.
fn as_known(failure: Failure, dialect: Dialect) -> Failure {
    match failure {
        Failure::Tree(refusal) | Failure::Own(refusal)
            if dialect == Dialect::Plain && refusal.code == Code::NotFound =>
        {
            Failure::Tree(Refusal::not_found("file not found"))
        }
        other => other,
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

/// A place's qid.
pub(super) fn qid(of: Identity) -> Qid {
    Qid { kind: qid_kind(of.kind), version: of.version, path: of.place.0 }
}

/// The kind of a qid.
pub(super) fn qid_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Directory => Qid::DIRECTORY,
        Kind::Link => Qid::LINK,
        Kind::File | Kind::Stream => Qid::FILE,
    }
}
