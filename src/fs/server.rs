//! The tree itself: walk, stat, readdir, open and remove, all of them derived from the tables.

use super::errors::Errors;
use super::handles::{CtlHandle, NewHandle, Open, TextHandle, render};
use super::place::{LINK, Parts, ROOT};
use super::root::{FILES as ROOT_FILES, KINDS};
use super::table::{Asked, Content, File, Kind as ObjectKind, Object};
use super::tree::{Answer, Caller, Creation, DirEntry, Handle, Kind, OpenMode, Opened, Place, Stat, Tree, gone};
use crate::engine::state::{By, NOBODY, NodeId, Operation, State, Touched};
use crate::engine::{Engine, LocalHost};
use crate::text::{Code, Refusal, attrs::shown, nearest};
use std::sync::Arc;

/// The tree over an engine and the host that it runs on. A clone is the same one.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    engine: Engine,
    host: Arc<dyn LocalHost>,
    node: NodeId,
    errors: Errors,
}

/// What is at a place.
enum At {
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
    pub fn new(engine: Engine, host: Arc<dyn LocalHost>, node: NodeId) -> Server {
        Server(Arc::new(Shared { engine, host, node, errors: Errors::default() }))
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn host(&self) -> &dyn LocalHost {
        &*self.0.host
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
        self.0.errors.note(who, refusal, self.state().now().millis());
    }

    fn at(&self, state: &State, place: Place) -> Result<At, Refusal> {
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
            Content::Text(_) => None,
            Content::Ctl(_) if in_object => Some(Operation::Control),
            Content::Ctl(_) => Some(Operation::Administer),
            Content::New(maker) => Some(maker.right),
            Content::Stream(_, right) => *right,
        }
    }

    /// May the caller write this file? Objects without an owner are the cluster's: only admins change them.
    fn may_write(&self, state: &State, who: &Caller, file: &File, object: Option<&Object>) -> bool {
        let owner = object.and_then(|o| o.owner.as_deref());
        Server::write_right(file, object.is_some()).is_some_and(|right| state.may(&who.user, owner, right))
    }

    fn uid_of(state: &State, user: Option<&str>) -> u32 {
        // The cluster's own objects are shown as root's.
        user.and_then(|name| state.user_named(name)).and_then(|u| u.uid).unwrap_or(0)
    }

    fn file_stat(
        &self,
        state: &Arc<State>,
        who: &Caller,
        file: &'static File,
        object: u64,
    ) -> Result<(Kind, u64), Refusal> {
        Ok(match &file.content {
            Content::New(_) | Content::Stream(..) => (Kind::Stream, 0),
            Content::Text(_) | Content::Ctl(_) => {
                (Kind::File, render(file, &self.asked(state, who, object))?.len() as u64)
            }
        })
    }
}

/// The directory entry kinds and numbers for a table's files.
fn file_entry(file: &File, kind: u8, object: u64) -> (Place, Kind) {
    let stream = matches!(file.content, Content::New(_) | Content::Stream(..));
    let place = Parts::new(kind, file.number, object).pack();
    (place, if stream { Kind::Stream } else { Kind::File })
}

/// Cookies: files come first, by number; then objects, by number; then links, by their object's number.
const OBJECTS_FROM: u64 = 1 << 48;
const LINKS_FROM: u64 = 2 << 48;

impl Server {
    /// The files of a table as entries after a cookie. False: the visitor has had enough.
    fn visit_files(files: &[File], kind: u8, object: u64, after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) -> bool {
        files.iter().filter(|f| u64::from(f.number) > after).all(|file| {
            let (place, entry_kind) = file_entry(file, kind, object);
            visit(DirEntry { name: file.name.to_owned(), place, kind: entry_kind, cookie: u64::from(file.number) })
        })
    }

    fn visit_root(after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) {
        if !Server::visit_files(ROOT_FILES, ROOT, Parts::of(Place::ROOT).object, after, visit) {
            return;
        }
        for kind in KINDS.iter().filter(|k| OBJECTS_FROM + u64::from(k.number) > after) {
            let place = Parts::new(kind.number, 0, 0).pack();
            let cookie = OBJECTS_FROM + u64::from(kind.number);
            if !visit(DirEntry { name: kind.name.to_owned(), place, kind: Kind::Directory, cookie }) {
                return;
            }
        }
    }

    fn visit_folder(state: &State, kind: &ObjectKind, after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) {
        if !Server::visit_files(kind.files, kind.number, 0, after, visit) {
            return;
        }
        let mut id = after.saturating_sub(OBJECTS_FROM).min(LINKS_FROM - OBJECTS_FROM);
        while let Some(next) = (kind.next)(state, id).filter(|_| after < LINKS_FROM) {
            id = next;
            let Some(object) = (kind.object)(state, id) else { continue };
            let name = if kind.numbered { id.to_string() } else { object.name.unwrap_or_default() };
            let place = Parts::new(kind.number, 0, id).pack();
            if !visit(DirEntry { name, place, kind: Kind::Directory, cookie: OBJECTS_FROM + id }) {
                return;
            }
        }
        if !kind.numbered {
            return;
        }
        let mut id = after.saturating_sub(LINKS_FROM);
        while let Some(next) = (kind.next)(state, id) {
            id = next;
            let Some(name) = (kind.object)(state, id).and_then(|o| o.name) else { continue };
            let place = Parts::new(kind.number, LINK, id).pack();
            if !visit(DirEntry { name, place, kind: Kind::Link, cookie: LINKS_FROM + id }) {
                return;
            }
        }
    }

    fn not_found(name: &str, files: &[File]) -> Refusal {
        let names: Vec<&str> = files.iter().map(|f| f.name).collect();
        let hint = nearest(name, &names).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        Refusal::not_found(format!("'{}' was not found{hint}", shown(name)))
    }

    fn walk_in(state: &State, at: &At, parts: Parts, name: &str) -> Result<Place, Refusal> {
        let in_table = |files: &'static [File], kind: u8, object: u64| {
            files.iter().find(|f| f.name == name).map(|f| Parts::new(kind, f.number, object).pack())
        };
        match at {
            At::Root => {
                let kind = KINDS.iter().find(|k| k.name == name).map(|k| Parts::new(k.number, 0, 0).pack());
                kind.or_else(|| in_table(ROOT_FILES, ROOT, parts.object))
                    .ok_or_else(|| Server::not_found(name, ROOT_FILES))
            }
            At::Folder(kind) => {
                let number = || {
                    // "07" is not the name of vms/7.
                    let id = name.parse::<u64>().ok().filter(|id| *id > 0 && id.to_string() == name)?;
                    (kind.object)(state, id).map(|_| Parts::new(kind.number, 0, id).pack())
                };
                let named = || {
                    let id = (kind.find)(state, name)?;
                    Some(Parts::new(kind.number, if kind.numbered { LINK } else { 0 }, id).pack())
                };
                let numbered = if kind.numbered { number() } else { None };
                let found = in_table(kind.files, kind.number, 0).or(numbered).or_else(named);
                found.ok_or_else(|| Server::not_found(name, kind.files))
            }
            At::Object(kind, _) => {
                let found = in_table(kind.object_files, kind.number, parts.object);
                found.ok_or_else(|| Server::not_found(name, kind.object_files))
            }
            At::Link(_) | At::File(..) | At::Own(..) => {
                Err(Refusal::new(Code::NotDirectory, "invalid path: this is not a directory"))
            }
        }
    }

    fn parent(parts: Parts) -> Place {
        match parts {
            Parts { kind: ROOT, .. } | Parts { file: 0, object: 0, .. } => Place::ROOT,
            Parts { kind, file: 0 | LINK, .. } => Parts::new(kind, 0, 0).pack(),
            Parts { kind, object, .. } => Parts::new(kind, 0, object).pack(),
        }
    }

    fn open_file(
        &self,
        state: &Arc<State>,
        who: &Caller,
        (file, object): (&'static File, u64),
        how: OpenMode,
    ) -> Result<Opened, Refusal> {
        let open = Open { server: self.clone(), who: who.clone(), object };
        let handle: Arc<dyn Handle> = match &file.content {
            Content::Text(_) => Arc::new(TextHandle::new(open, file, state.clone())),
            Content::Ctl(verbs) => {
                Arc::new(CtlHandle::new(TextHandle::new(open, file, state.clone()), verbs, how.write))
            }
            Content::New(maker) => Arc::new(NewHandle::new(open, maker, how.write)),
            Content::Stream(stream, _) => stream(&self.asked(state, who, object), how)?,
        };
        let stream = matches!(file.content, Content::New(_) | Content::Stream(..));
        Ok(Opened { handle, stream, commands: matches!(file.content, Content::New(_) | Content::Ctl(_)) })
    }

    fn check_write(&self, state: &State, who: &Caller, file: &File, object: Option<&Object>) -> Result<(), Refusal> {
        if self.may_write(state, who, file, object) {
            return Ok(());
        }
        let sentence = match Server::write_right(file, object.is_some()) {
            None => format!("no permission: '{}' is only read", file.name),
            Some(_) => format!("no permission to write '{}': user '{}' has no right to (see /me)", file.name, who.user),
        };
        let refusal = Refusal::denied(sentence);
        self.note_for(who, &refusal);
        Err(refusal)
    }
}

impl Tree for Server {
    fn caller(&self, uid: Option<u32>, authenticated_by: &'static str, dialect: &'static str) -> Caller {
        let state = self.state();
        let user = uid.and_then(|uid| state.user_with_uid(uid)).map_or(NOBODY, |u| u.name.as_str());
        Caller { uid, user: user.to_owned(), authenticated_by, dialect }
    }

    fn walk(&self, _who: &Caller, dir: Place, name: &str) -> Result<Place, Refusal> {
        let (state, parts) = (self.state(), Parts::of(dir));
        if name == ".." {
            return Ok(Server::parent(parts));
        }
        let at = self.at(&state, dir)?;
        Server::walk_in(&state, &at, parts, name)
    }

    fn stat(&self, who: &Caller, place: Place) -> Result<Stat, Refusal> {
        let state = self.state();
        // The version of what changes with every entry: the low bits of its number.
        let version = |seq: u64| u32::try_from(seq & u64::from(u32::MAX)).unwrap_or(0);
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
        };
        let touched =
            |last: Touched, base: Stat| Stat { version: version(last.seq), mtime_ms: last.at.millis(), ..base };
        let of = |object: &Object, base: Stat| Stat {
            version: version(object.changed_seq),
            mtime_ms: object.changed.millis(),
            owner: object.owner.clone().unwrap_or_else(|| "root".to_owned()),
            owner_uid: Server::uid_of(&state, object.owner.as_deref()),
            ..base
        };
        Ok(match self.at(&state, place)? {
            At::Root => Stat { nlink: 2 + u32::try_from(KINDS.len()).unwrap_or(0), ..base },
            At::Folder(kind) => touched(state.directory(kind.entity).members, base),
            At::Own(kind, file) => {
                let (kind_of_file, size) = self.file_stat(&state, who, file, 0)?;
                let mode = if self.may_write(&state, who, file, None) { 0o666 } else { 0o444 };
                touched(state.directory(kind.entity).objects, Stat { kind: kind_of_file, mode, size, nlink: 1, ..base })
            }
            At::Object(_, object) => of(&object, base),
            At::Link(object) => {
                let size = Parts::of(place).object.to_string().len() as u64;
                Stat { kind: Kind::Link, mode: 0o777, size, nlink: 1, ..of(&object, base) }
            }
            At::File(file, id, object) => {
                let (kind, size) = self.file_stat(&state, who, file, id)?;
                let writable = self.may_write(&state, who, file, object.as_ref());
                let mode = if writable { 0o666 } else { 0o444 };
                let stat = Stat { kind, mode, size, nlink: 1, ..base };
                match &object {
                    Some(object) => of(object, stat),
                    None => stat,
                }
            }
        })
    }

    fn readdir(
        &self,
        _who: &Caller,
        dir: Place,
        after: u64,
        visit: &mut dyn FnMut(DirEntry) -> bool,
    ) -> Result<(), Refusal> {
        let state = self.state();
        match self.at(&state, dir)? {
            At::Root => Server::visit_root(after, visit),
            At::Folder(kind) => Server::visit_folder(&state, kind, after, visit),
            At::Object(kind, _) => {
                Server::visit_files(kind.object_files, kind.number, Parts::of(dir).object, after, visit);
            }
            At::Link(_) | At::File(..) | At::Own(..) => {
                return Err(Refusal::new(Code::NotDirectory, "invalid path: this is not a directory"));
            }
        }
        Ok(())
    }

    fn readlink(&self, _who: &Caller, place: Place) -> Result<String, Refusal> {
        match self.at(&self.state(), place)? {
            At::Link(_) => Ok(Parts::of(place).object.to_string()),
            _ => Err(Refusal::invalid("invalid path: this is not a link")),
        }
    }

    fn open(&self, who: &Caller, place: Place, how: OpenMode) -> Result<Opened, Refusal> {
        let state = self.state();
        match self.at(&state, place)? {
            At::Own(_, file) => {
                if how.write {
                    self.check_write(&state, who, file, None)?;
                }
                self.open_file(&state, who, (file, 0), how)
            }
            At::File(file, object_id, object) => {
                if how.write {
                    self.check_write(&state, who, file, object.as_ref())?;
                }
                self.open_file(&state, who, (file, object_id), how)
            }
            At::Link(_) => Err(Refusal::invalid("invalid path: this is a link")),
            _ => Err(Refusal::new(Code::IsDirectory, "invalid open: this is a directory")),
        }
    }

    fn remove(&self, who: &Caller, dir: Place, name: &str, directory: bool) -> Answer<()> {
        let state = self.state();
        let command = (|| {
            let place = self.walk(who, dir, name)?;
            match (self.at(&state, place)?, directory) {
                (At::Object(kind, _), true) => (kind.delete)(&state, Parts::of(place).object).ok_or_else(|| {
                    Refusal::not_permitted(format!("invalid rmdir: objects of /{} can't be deleted so", kind.name))
                }),
                (At::Object(..), false) => {
                    Err(Refusal::new(Code::IsDirectory, "invalid rm: this is a directory; rmdir deletes an object"))
                }
                (At::Link(_), false) => Err(Refusal::not_permitted(format!(
                    "invalid rm: '{}' is a name; `set name=` in its ctl takes the name away, rmdir of the number deletes",
                    shown(name)
                ))),
                (At::File(..), false) => Err(Refusal::not_permitted(format!(
                    "invalid rm: '{}' belongs to its object; rmdir deletes the object",
                    shown(name)
                ))),
                (At::File(..) | At::Own(..) | At::Link(_), true) => {
                    Err(Refusal::new(Code::NotDirectory, "invalid rmdir: this is not a directory"))
                }
                _ => Err(Refusal::not_permitted("invalid rmdir: this directory is part of the tree")),
            }
        })();
        match command {
            Err(refusal) => {
                self.note_for(who, &refusal);
                Answer::Now(Err(refusal))
            }
            Ok(command) => {
                let (server, who) = (self.clone(), who.clone());
                Answer::Later(Box::pin(async move {
                    let done = server.engine().submit(By::User(who.user.clone()), vec![command]).await;
                    done.map(drop).inspect_err(|refusal| server.note_for(&who, refusal))
                }))
            }
        }
    }

    fn truncate(&self, who: &Caller, place: Place, _size: u64) -> Result<(), Refusal> {
        let state = self.state();
        match self.at(&state, place)? {
            At::Own(_, file) => self.check_write(&state, who, file, None),
            At::File(file, _, object) => self.check_write(&state, who, file, object.as_ref()),
            _ => Err(Refusal::new(Code::IsDirectory, "invalid truncation: this is a directory")),
        }
    }

    fn refuse_create(&self, who: &Caller, dir: Place, name: &str, what: Creation) -> Refusal {
        let state = self.state();
        let makes = match self.at(&state, dir) {
            Ok(At::Folder(kind)) if kind.files.iter().any(|f| f.name == "new") => {
                format!("to make one, write attributes to /{}/new", kind.name)
            }
            _ => "nothing can be made here".to_owned(),
        };
        let name = shown(name);
        let sentence = match what {
            Creation::File => {
                format!("no permission to make the file '{name}': {makes}; write to the files that are there")
            }
            Creation::Directory => format!("no permission for mkdir '{name}': {makes}"),
            Creation::Link => {
                format!("no permission for a link '{name}': names are set with `set name=` in an object's ctl")
            }
            Creation::Special => format!("no permission for a special file '{name}': {makes}"),
            Creation::Rename => {
                format!("no permission to rename to '{name}': `set name=` in an object's ctl does that")
            }
            Creation::Attributes => {
                "no permission: owners, modes and times of this tree follow from the cluster".to_owned()
            }
        };
        let refusal = Refusal::not_permitted(sentence);
        self.note_for(who, &refusal);
        refusal
    }

    fn note(&self, who: &Caller, refusal: &Refusal) {
        self.note_for(who, refusal);
    }
}
