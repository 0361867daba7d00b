//! What is in a directory: names, places, listings; and what may be made or removed there, which is little.

use super::place::{LINK, Parts, ROOT};
use super::root::{FILES as ROOT_FILES, KINDS};
use super::server::{At, Server};
use super::table::{File, Kind as ObjectKind};
use super::tree::{Caller, Creation, DirEntry, Kind, Place, Tree};
use crate::engine::state::{Command, State};
use crate::text::{Code, Refusal, attrs::shown, nearest};

/// The directory entry kinds and numbers for a table's files.
fn file_entry(file: &File, kind: u8, object: u64) -> (Place, Kind) {
    (Parts::new(kind, file.number, object).pack(), file.kind())
}

impl Server {
    /// Cookies: files come first, by number; then objects, by number; then links, by their object's number.
    pub(super) const OBJECTS_FROM: u64 = 1 << 48;
    pub(super) const LINKS_FROM: u64 = 2 << 48;

    /// The files of a table as entries after a cookie. False: the visitor has had enough.
    pub(super) fn visit_files(
        files: &[File],
        kind: u8,
        object: u64,
        after: u64,
        visit: &mut dyn FnMut(DirEntry) -> bool,
    ) -> bool {
        files.iter().filter(|f| u64::from(f.number) > after).all(|file| {
            let (place, entry_kind) = file_entry(file, kind, object);
            visit(DirEntry { name: file.name.to_owned(), place, kind: entry_kind, cookie: u64::from(file.number) })
        })
    }

    pub(super) fn visit_root(after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) {
        if !Server::visit_files(ROOT_FILES, ROOT, Parts::of(Place::ROOT).object, after, visit) {
            return;
        }
        for kind in KINDS.iter().filter(|k| Server::OBJECTS_FROM + u64::from(k.number) > after) {
            let place = Parts::new(kind.number, 0, 0).pack();
            let cookie = Server::OBJECTS_FROM + u64::from(kind.number);
            if !visit(DirEntry { name: kind.name.to_owned(), place, kind: Kind::Directory, cookie }) {
                return;
            }
        }
    }

    pub(super) fn visit_folder(state: &State, kind: &ObjectKind, after: u64, visit: &mut dyn FnMut(DirEntry) -> bool) {
        if !Server::visit_files(kind.files, kind.number, 0, after, visit) {
            return;
        }
        if after < Server::LINKS_FROM {
            for (id, name) in (kind.after)(state, after.saturating_sub(Server::OBJECTS_FROM)) {
                let name = if kind.numbered { id.to_string() } else { name.unwrap_or_default().to_owned() };
                let place = Parts::new(kind.number, 0, id).pack();
                if !visit(DirEntry { name, place, kind: Kind::Directory, cookie: Server::OBJECTS_FROM + id }) {
                    return;
                }
            }
        }
        for (id, name) in (kind.linked_after)(state, after.saturating_sub(Server::LINKS_FROM)) {
            let Some(name) = name else { continue };
            let place = Parts::new(kind.number, LINK, id).pack();
            if !visit(DirEntry { name: name.to_owned(), place, kind: Kind::Link, cookie: Server::LINKS_FROM + id }) {
                return;
            }
        }
    }

    pub(super) fn not_found(name: &str, files: &[File]) -> Refusal {
        let names: Vec<&str> = files.iter().map(|f| f.name).collect();
        let hint = nearest(name, &names).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
        Refusal::not_found(format!("'{}' was not found{hint}", shown(name)))
    }

    pub(super) fn walk_in(state: &State, at: &At, parts: Parts, name: &str) -> Result<Place, Refusal> {
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

    pub(super) fn parent(parts: Parts) -> Place {
        match parts {
            Parts { kind: ROOT, .. } | Parts { file: 0, object: 0, .. } => Place::ROOT,
            Parts { kind, file: 0 | LINK, .. } => Parts::new(kind, 0, 0).pack(),
            Parts { kind, object, .. } => Parts::new(kind, 0, object).pack(),
        }
    }

    /// The command that a removal is.
    pub(super) fn removal(&self, who: &Caller, dir: Place, name: &str, directory: bool) -> Result<Command, Refusal> {
        let (state, place) = (self.state(), self.walk(who, dir, name)?);
        let not_permitted = |sentence: String| Err(Refusal::not_permitted(sentence));
        match (self.at(&state, who, place)?, directory) {
            (At::Object(kind, _), true) => match (kind.delete)(&state, Parts::of(place).object) {
                Some(command) => Ok(command),
                None => {
                    not_permitted(format!("no permission for rmdir: objects of /{} can't be deleted so", kind.name))
                }
            },
            (At::Object(..) | At::Folder(_) | At::Root, false) => {
                Err(Refusal::new(Code::IsDirectory, "invalid rm: this is a directory; rmdir deletes an object"))
            }
            (At::Link(_), false) => not_permitted(format!(
                "no permission to rm '{}': it is a name; `set name=` in its ctl takes the name away, rmdir of the number deletes",
                shown(name)
            )),
            (At::File(_, _, Some(_)), false) => not_permitted(format!(
                "no permission to rm '{}': it belongs to its object; rmdir deletes the object",
                shown(name)
            )),
            (At::File(..) | At::Own(..) | At::Link(_), true) => {
                Err(Refusal::new(Code::NotDirectory, "invalid rmdir: this is not a directory"))
            }
            _ => not_permitted(format!("no permission to remove '{}': it is part of the tree", shown(name))),
        }
    }

    /// Why this can't be made there, and what would make something.
    pub(super) fn creation_refused(&self, who: &Caller, dir: Place, name: &str, what: Creation) -> Refusal {
        let makes = match self.at(&self.state(), who, dir) {
            Ok(At::Folder(kind)) if kind.files.iter().any(|f| f.name == "new") => {
                format!("to make one, write attributes to /{}/new", kind.name)
            }
            _ => "nothing can be made here".to_owned(),
        };
        let name = shown(name);
        Refusal::not_permitted(match what {
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
        })
    }
}
