//! The tree itself: walk, stat, readdir, open and remove, all of them derived from the tables.

use super::confinement::{self, about, check_seen, sees};
use super::errors::Errors;
use super::forward;
use super::handles::{CtlHandle, Guarded, NewHandle, Open, TextHandle, render};
use super::place::{LINK, Parts, ROOT};
use super::root::{FILES as ROOT_FILES, KINDS};
use super::sessions::Sessions;
use super::table::{Asked, Content, File, Kind as ObjectKind, Object};
use super::texts::Texts;
use super::tree::{
    Answer, BY_A_NODE, Caller, Creation, Credential, DirEntry, Handle, Identity, Kind, OpenMode, Opened, Place, Stat,
    Tree, gone,
};
use crate::engine::state::{By, NOBODY, NodeId, Operation, State, Touched};
use crate::engine::{Engine, LocalHost};
use crate::text::{Code, Refusal, attrs::shown};
use bytes::Bytes;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest name on a path, in bytes, as Linux has it (NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// The tree over an engine and the host that it runs on. A clone is the same one.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    engine: Engine,
    host: Arc<dyn LocalHost>,
    node: NodeId,
    identity: PathBuf,
    errors: Errors,
    texts: Texts,
    sessions: Arc<Sessions>,
}

/// A version of as many bits as a qid has for it.
fn version(of: u64) -> u32 {
    u32::try_from(of & u64::from(u32::MAX)).unwrap_or(0)
}

/// What is known of a place without looking into it: of a file also which one it is, and of which object.
type Outside = (Stat, Option<(&'static File, u64)>);

/// What is at a place.
pub(super) enum At {
    Root,
    /// A kind's directory.
    Folder(&'static ObjectKind),
    /// An object's directory.
    Object(&'static ObjectKind, Object),
    /// The link with an object's name.
    Link(Object),
    /// A file of a kind's directory.
    Own(&'static ObjectKind, &'static File),
    /// A file of the root, or of the object with this number.
    File(&'static File, u64, Option<Object>),
}

impl Server {
    /// The tree that this node serves.
    ///
    /// `identity` is the node's, with which other nodes are asked for what they alone know.
    pub fn new(engine: Engine, host: Arc<dyn LocalHost>, node: NodeId, identity: PathBuf) -> Server {
        Server(Arc::new(Shared {
            engine,
            identity,
            host,
            node,
            errors: Errors::default(),
            texts: Texts::default(),
            sessions: Arc::default(),
        }))
    }

    /// The file of the node's identity.
    pub(super) fn identity(&self) -> &Path {
        &self.0.identity
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn host(&self) -> &dyn LocalHost {
        &*self.0.host
    }

    /// Who is connected; the 9P server is told of it.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.0.sessions
    }

    pub(super) fn node(&self) -> NodeId {
        self.0.node
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.0.engine.state()
    }

    pub(super) fn errors_of(&self, who: &Caller) -> String {
        self.0.errors.of(who)
    }

    pub(super) fn note_for(&self, who: &Caller, refusal: &Refusal) {
        let now =
            self.engine().time().inspect_err(|error| tracing::warn!(%error, "a refusal is kept without its time"));
        self.0.errors.note(who, refusal, now.ok().map(|now| now.millis()));
    }

    /// What is at a place, for this caller.
    pub(super) fn at(&self, state: &State, who: &Caller, place: Place) -> Result<At, Refusal> {
        check_seen(state, who, place)?;
        let parts = Parts::of(place);
        let file_of = |files: &'static [File]| files.iter().find(|f| f.number == parts.file).ok_or_else(gone);
        if parts.kind == ROOT {
            return match parts.file {
                0 => Ok(At::Root),
                _ => Ok(At::File(file_of(ROOT_FILES)?, 0, None)),
            };
        }
        let kind = *KINDS.iter().find(|k| k.number == parts.kind).ok_or_else(gone)?;
        if parts.object == 0 {
            return match parts.file {
                0 => Ok(At::Folder(kind)),
                _ => Ok(At::Own(kind, file_of(kind.files)?)),
            };
        }
        let object = (kind.object)(state, parts.object).ok_or_else(gone)?;
        match parts.file {
            0 => Ok(At::Object(kind, object)),
            LINK if kind.numbered && object.name.is_some() => Ok(At::Link(object)),
            LINK => Err(gone()),
            _ => Ok(At::File(file_of(kind.object_files)?, parts.object, Some(object))),
        }
    }

    fn asked<'a>(&'a self, state: &'a Arc<State>, who: &'a Caller, object: u64) -> Asked<'a> {
        Asked { server: self, state, who, object }
    }

    /// The right that writing a file needs; None: nobody can.
    fn write_right(file: &File, in_object: bool) -> Option<Operation> {
        match &file.content {
            Content::Text(_) | Content::Live(_) | Content::Owned(_) | Content::Private(_, false) => None,
            Content::Private(_, true) => Some(Operation::Administer),
            Content::Ctl(_) if in_object => Some(Operation::Control),
            Content::Ctl(_) => Some(Operation::Administer),
            Content::New(maker) => Some(maker.right),
            Content::Stream(_, right) => *right,
        }
    }

    /// May the caller write the file at this place? What has no owner is the cluster's: only admins change it.
    fn may_write(&self, state: &State, who: &Caller, file: &File, place: Place) -> bool {
        let in_object = !matches!(Parts::of(place), Parts { kind: ROOT, .. } | Parts { object: 0, .. });
        if matches!(file.content, Content::Private(_, true)) {
            return Server::may_read(state, who, file, place);
        }
        Server::write_right(file, in_object).is_some_and(|right| state.may(&who.user, about(place), right))
    }

    /// May the caller read it? Who sees a file may, unless it is for admins and nodes.
    fn may_read(state: &State, who: &Caller, file: &File, place: Place) -> bool {
        let is_private = matches!(file.content, Content::Private(..));
        !is_private || is_node(who) || state.may(&who.user, about(place), Operation::Administer)
    }

    /// What the caller may do with a file.
    fn mode(&self, state: &State, who: &Caller, file: &File, place: Place) -> u32 {
        let read = if Server::may_read(state, who, file, place) { 0o444 } else { 0 };
        read | if self.may_write(state, who, file, place) { 0o222 } else { 0 }
    }

    fn uid_of(state: &State, user: Option<&str>) -> u32 {
        // The cluster's own objects are shown as root's.
        user.and_then(|name| state.user_named(name)).and_then(|u| u.uid).unwrap_or(0)
    }

    /// What stat tells of a place but for what is in it.
    fn outside(&self, state: &State, who: &Caller, place: Place) -> Result<Outside, Refusal> {
        let base = Stat {
            place,
            kind: Kind::Directory,
            mode: 0o555,
            size: 0,
            version: version(state.seq()),
            mtime_ms: state.now().millis(),
            owner: "root".to_owned(),
            owner_uid: 0,
            group_gid: 0,
            nlink: 2,
            lasting: true,
        };
        let touched =
            |last: Touched, base: Stat| Stat { version: version(last.seq), mtime_ms: last.at.millis(), ..base };
        let of = |object: &Object, base: Stat| Stat {
            version: version(object.changed_seq),
            mtime_ms: object.changed.millis(),
            owner: object.owner.clone().unwrap_or_else(|| "root".to_owned()),
            owner_uid: Server::uid_of(state, object.owner.as_deref()),
            ..base
        };
        Ok(match self.at(state, who, place)? {
            At::Root => {
                let kinds = KINDS.iter().filter(|k| sees(state, &who.user, Parts::new(k.number, 0, 0).pack())).count();
                (Stat { nlink: 2 + u32::try_from(kinds).unwrap_or(0), ..base }, None)
            }
            At::Folder(kind) => {
                let seen = state.within(&who.user).map(|within| confinement::touched(state, within));
                (touched(seen.unwrap_or(state.directory(kind.entity).members), base), None)
            }
            At::Own(kind, file) => {
                let mode = self.mode(state, who, file, place);
                (touched(state.directory(kind.entity).objects, Stat { mode, ..base }), Some((file, 0)))
            }
            // Numbers are never used again, names are.
            At::Object(kind, object) => (Stat { lasting: kind.numbered, ..of(&object, base) }, None),
            At::Link(object) => {
                let size = Parts::of(place).object.to_string().len() as u64;
                (Stat { kind: Kind::Link, mode: 0o777, size, nlink: 1, lasting: false, ..of(&object, base) }, None)
            }
            At::File(file, id, object) => {
                let mode = self.mode(state, who, file, place);
                let stat = Stat { mode, ..base };
                let dated = match &object {
                    Some(object) => of(object, stat),
                    None => stat,
                };
                (dated, Some((file, id)))
            }
        })
    }

    /// What stat tells of a file from its content. What nothing dates has the content's hash for its version.
    fn file_stat(&self, asked: &Asked<'_>, place: Place, file: &'static File, dated: Stat) -> Result<Stat, Refusal> {
        let finite = |text: &Bytes| (Kind::File, text.len() as u64);
        let ((kind, size), version) = match &file.content {
            Content::New(_) | Content::Stream(..) | Content::Private(..) => ((Kind::Stream, 0), dated.version),
            Content::Owned(_) if forward::is_elsewhere(asked) => ((Kind::Stream, 0), dated.version),
            Content::Text(_) | Content::Ctl(_) => (finite(&self.text_of(asked, place, file)?), dated.version),
            Content::Live(_) | Content::Owned(_) => {
                let text = self.text_of(asked, place, file)?;
                let mut hasher = DefaultHasher::new();
                hasher.write(&text);
                (finite(&text), version(hasher.finish()))
            }
        };
        Ok(Stat { kind, size, version, nlink: 1, ..dated })
    }

    /// The entry that dates a text: the last that changed what it is about. None: nothing does.
    pub(super) fn dated_by(state: &State, place: Place, file: &File) -> Option<u64> {
        let parts = Parts::of(place);
        let kind =
            KINDS.iter().find(|k| k.number == parts.kind).filter(|_| matches!(file.content, Content::Text(_)))?;
        match parts.object {
            0 => Some(state.directory(kind.entity).objects.seq),
            id => (kind.object)(state, id).map(|object| object.changed_seq),
        }
    }

    /// The text of a finite file.
    pub(super) fn text_of(&self, asked: &Asked<'_>, place: Place, file: &'static File) -> Result<Bytes, Refusal> {
        // What nothing dates is made anew.
        let Some(seq) = Server::dated_by(asked.state, place, file) else { return render(file, asked) };
        if let Some(text) = self.0.texts.find(place, seq) {
            return Ok(text);
        }
        let text = render(file, asked)?;
        self.0.texts.keep(place, seq, &text);
        Ok(text)
    }
}

impl Server {
    fn open_file(
        &self,
        asked: &Asked<'_>,
        place: Place,
        file: &'static File,
        how: OpenMode,
    ) -> Result<Opened, Refusal> {
        let open = Open::of(asked);
        if let Content::Owned(_) = file.content
            && let Some(handle) = forward::of_vm(asked, file.name, how, forward::ANSWERS_WITHIN)?
        {
            let handle = Arc::new(Guarded { handle, open, place, how });
            return Ok(Opened { handle, stream: true, commands: false });
        }
        let text = || TextHandle::new(open.clone(), place, file, asked.state.clone());
        let handle: Arc<dyn Handle> = match &file.content {
            Content::Text(_) | Content::Live(_) | Content::Owned(_) => Arc::new(text()),
            Content::Ctl(verbs) => Arc::new(CtlHandle::new(text(), verbs)),
            Content::New(maker) => Arc::new(NewHandle::new(open.clone(), maker)),
            Content::Stream(stream, _) | Content::Private(stream, _) => stream(asked, how)?,
        };
        let stream = file.kind() == Kind::Stream;
        let commands = matches!(file.content, Content::New(_) | Content::Ctl(_));
        Ok(Opened { handle: Arc::new(Guarded { handle, open, place, how }), stream, commands })
    }

    /// May the caller write what is there now?
    pub(super) fn check_right(&self, who: &Caller, place: Place) -> Result<(), Refusal> {
        let state = self.state();
        let checked = match self.at(&state, who, place) {
            Ok(At::Own(_, file) | At::File(file, ..)) => return self.check_write(&state, who, file, place),
            Ok(_) => Err(Refusal::new(Code::IsDirectory, "invalid write: this is a directory")),
            Err(refusal) => Err(refusal),
        };
        checked.inspect_err(|refusal| self.note_for(who, refusal))
    }

    /// Is what was opened still there for the caller?
    pub(super) fn check_sight(&self, who: &Caller, place: Place) -> Result<(), Refusal> {
        check_seen(&self.state(), who, place)
    }

    fn check_open(&self, state: &State, who: &Caller, file: &File, place: Place, how: OpenMode) -> Result<(), Refusal> {
        if how.read && !Server::may_read(state, who, file, place) {
            let sentence = format!(
                "no permission to read '{}': it is for admins and nodes, and user '{}' is none (see /me)",
                file.name, who.user
            );
            let refusal = Refusal::denied(sentence);
            self.note_for(who, &refusal);
            return Err(refusal);
        }
        if how.write { self.check_write(state, who, file, place) } else { Ok(()) }
    }

    fn check_write(&self, state: &State, who: &Caller, file: &File, place: Place) -> Result<(), Refusal> {
        if self.may_write(state, who, file, place) {
            return Ok(());
        }
        let sentence = match &file.content {
            Content::Text(_)
            | Content::Live(_)
            | Content::Owned(_)
            | Content::Private(_, false)
            | Content::Stream(_, None) => {
                format!("no permission: '{}' is only read", file.name)
            }
            _ => format!("no permission to write '{}': user '{}' has no right to (see /me)", file.name, who.user),
        };
        let refusal = Refusal::denied(sentence);
        self.note_for(who, &refusal);
        Err(refusal)
    }
}

/// Is it another node that asks for itself?
fn is_node(who: &Caller) -> bool {
    who.authenticated_by == BY_A_NODE && who.user == NOBODY
}

impl Tree for Server {
    fn caller(&self, credential: &Credential, authenticated_by: &'static str, dialect: &'static str) -> Caller {
        let state = self.state();
        let (uid, user) = match credential {
            Credential::Uid(uid) => (Some(*uid), state.user_with_uid(*uid)),
            Credential::Certificate { name, serial, issued_ms } => {
                let admitted = state.admits(name, serial, *issued_ms).is_ok();
                (None, state.user_named(name).filter(|_| admitted))
            }
            // A member's word for who is asking there: nodes trust each other with everything.
            Credential::Node { name, user } => {
                (None, state.user_named(user).filter(|_| state.node_named(name).is_some()))
            }
            Credential::Unknown => (None, None),
        };
        let user = user.map_or(NOBODY, |u| u.name.as_str()).to_owned();
        Caller { uid, user, authenticated_by, dialect, from: String::new() }
    }

    fn admit(&self, credential: &Credential) -> Result<(), Refusal> {
        match credential {
            Credential::Certificate { name, serial, issued_ms } => self.state().admits(name, serial, *issued_ms),
            Credential::Node { name, .. } if self.state().node_named(name).is_none() => {
                Err(Refusal::denied(format!("no permission: node '{name}' is not in this cluster, or not any more")))
            }
            Credential::Uid(_) | Credential::Node { .. } | Credential::Unknown => Ok(()),
        }
    }

    fn walk(&self, who: &Caller, dir: Place, name: &str) -> Result<Place, Refusal> {
        let (state, parts) = (self.state(), Parts::of(dir));
        if name == ".." {
            return Ok(Server::parent(parts));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(Refusal::new(
                Code::NameTooLong,
                format!("the name '{}' is too long: {NAME_BYTES_MAX} bytes are the most", shown(name)),
            ));
        }
        let at = self.at(&state, who, dir)?;
        let found = Server::walk_in(&state, &at, parts, name)?;
        if sees(&state, &who.user, found) { Ok(found) } else { Err(Server::not_found(name, &[])) }
    }

    fn name(&self, who: &Caller, place: Place) -> Result<String, Refusal> {
        let state = self.state();
        Ok(match self.at(&state, who, place)? {
            At::Root => "/".to_owned(),
            At::Folder(kind) => kind.name.to_owned(),
            At::Own(_, file) | At::File(file, ..) => file.name.to_owned(),
            At::Object(kind, _) if kind.numbered => Parts::of(place).object.to_string(),
            At::Object(_, object) | At::Link(object) => object.name.ok_or_else(gone)?,
        })
    }

    fn stat(&self, who: &Caller, place: Place) -> Result<Stat, Refusal> {
        let state = self.state();
        match self.outside(&state, who, place)? {
            (stat, None) => Ok(stat),
            (stat, Some((file, object))) => self.file_stat(&self.asked(&state, who, object), place, file, stat),
        }
    }

    fn identity(&self, who: &Caller, place: Place) -> Result<Identity, Refusal> {
        let state = self.state();
        match self.outside(&state, who, place)? {
            (stat, Some((file, object))) if matches!(file.content, Content::Live(_) | Content::Owned(_)) => {
                let stat = self.file_stat(&self.asked(&state, who, object), place, file, stat)?;
                Ok(Identity::of(&stat))
            }
            (stat, Some((file, _))) => Ok(Identity { kind: file.kind(), ..Identity::of(&stat) }),
            (stat, None) => Ok(Identity::of(&stat)),
        }
    }

    fn readdir(
        &self,
        who: &Caller,
        dir: Place,
        after: u64,
        visit: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<(), Refusal> {
        let state = self.state();
        match self.at(&state, who, dir)? {
            At::Root => {
                let seen = |entry: &DirEntry| sees(&state, &who.user, entry.place);
                Server::visit_root(after, &mut |entry| !seen(&entry) || visit(entry));
            }
            At::Folder(kind) => match state.within(&who.user) {
                Some(within) => confinement::visit_vms(&state, within, after, visit),
                None => Server::visit_folder(&state, kind, after, visit),
            },
            At::Object(kind, _) => {
                Server::visit_files(kind.object_files, kind.number, Parts::of(dir).object, after, visit);
            }
            At::Link(_) | At::File(..) | At::Own(..) => {
                return Err(Refusal::new(Code::NotDirectory, "invalid path: this is not a directory"));
            }
        }
        Ok(())
    }

    fn readlink(&self, who: &Caller, place: Place) -> Result<String, Refusal> {
        match self.at(&self.state(), who, place)? {
            At::Link(_) => Ok(Parts::of(place).object.to_string()),
            _ => Err(Refusal::invalid("invalid path: this is not a link")),
        }
    }

    fn open(&self, who: &Caller, place: Place, how: OpenMode) -> Result<Opened, Refusal> {
        let state = self.state();
        match self.at(&state, who, place)? {
            At::Own(_, file) => {
                self.check_open(&state, who, file, place, how)?;
                self.open_file(&self.asked(&state, who, 0), place, file, how)
            }
            At::File(file, object_id, _) => {
                self.check_open(&state, who, file, place, how)?;
                self.open_file(&self.asked(&state, who, object_id), place, file, how)
            }
            At::Link(_) => Err(Refusal::invalid("invalid path: this is a link")),
            _ => Err(Refusal::new(Code::IsDirectory, "invalid open: this is a directory")),
        }
    }

    fn remove(&self, who: &Caller, dir: Place, name: &str, directory: bool) -> Answer<()> {
        let (server, who) = (self.clone(), who.clone());
        match self.removal(&who, dir, name, directory) {
            Err(refusal) => {
                self.note_for(&who, &refusal);
                Answer::Now(Err(refusal))
            }
            Ok(command) => Answer::Later(Box::pin(async move {
                let done = server.engine().submit(By::User(who.user.clone()), vec![command]).await;
                done.map(drop).inspect_err(|refusal| server.note_for(&who, refusal))
            })),
        }
    }

    fn truncate(&self, who: &Caller, place: Place, _size: u64) -> Result<(), Refusal> {
        let state = self.state();
        match self.at(&state, who, place)? {
            At::Own(_, file) | At::File(file, ..) => self.check_write(&state, who, file, place),
            _ => Err(Refusal::new(Code::IsDirectory, "invalid truncation: this is a directory")),
        }
    }

    fn refuse_create(&self, who: &Caller, dir: Place, name: &str, what: Creation) -> Refusal {
        let refusal = self.creation_refused(who, dir, name, what);
        self.note_for(who, &refusal);
        refusal
    }

    fn note(&self, who: &Caller, refusal: &Refusal) {
        self.note_for(who, refusal);
    }
}
