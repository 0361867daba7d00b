//! What the tables of the directories are made of: a file is a line, a kind of object is a table.

use super::server::Server;
use super::tree::{self, Caller, Handle, OpenMode};
use super::verbs::Verb;
use crate::clock::HybridTime;
use crate::engine::state::{Command, Kind as Entity, Operation, State};
use crate::text::Refusal;
use std::sync::Arc;

/// A file of a directory: one line of its table.
pub(super) struct File {
    /// Its number in places; never changes, never used again.
    pub(super) number: u8,
    /// Its name.
    pub(super) name: &'static str,
    /// What it is made of.
    pub(super) content: Content,
    /// For people: one line.
    pub(super) help: &'static str,
}

impl File {
    /// What it is to who opens it.
    pub(super) fn kind(&self) -> tree::Kind {
        match self.content {
            Content::New(_) | Content::Stream(..) | Content::Private(_) => tree::Kind::Stream,
            Content::Text(_) | Content::Live(_) | Content::Owned(_) | Content::Ctl(_) => tree::Kind::File,
        }
    }
}

/// What a file is made of.
pub(super) enum Content {
    /// Text of nothing but the objects that it is about: it changes when they do. Made when it is read.
    Text(MakeText),
    /// Text of something else as well: of who asks, of this host, of other objects.
    Live(MakeText),
    /// Text that only the node knows where the VM is. Elsewhere it is fetched from there as it is read, and has no size before that.
    Owned(MakeText),
    /// Verbs are written, their usage is read.
    Ctl(&'static [Verb]),
    /// A clone file: attributes are written, numbers are read.
    New(&'static Maker),
    /// Whatever blocks, answers, or never ends. The right that writing it needs, if it can be written.
    Stream(OpenStream, Option<Operation>),
    /// A stream that admins read, and nobody writes.
    Private(OpenStream),
}

/// Makes a text.
pub(super) type MakeText = fn(&Asked<'_>) -> Result<String, Refusal>;

/// Opens a stream.
pub(super) type OpenStream = fn(&Asked<'_>, OpenMode) -> Result<Arc<dyn Handle>, Refusal>;

/// What `new` needs to know of a kind.
pub(super) struct Maker {
    /// The right that it needs.
    pub(super) right: Operation,
    /// A line of attributes as a command.
    pub(super) command: fn(&State, &[crate::text::Attr]) -> Result<Command, Refusal>,
    /// What it takes, with defaults: what is read from it.
    pub(super) usage: fn(&State) -> String,
}

/// Who asks, for which object, when the state was this.
pub(super) struct Asked<'a> {
    pub(super) server: &'a Server,
    pub(super) state: &'a Arc<State>,
    pub(super) who: &'a Caller,
    /// The object's number; of the root and of a kind's own files 0.
    pub(super) object: u64,
}

/// A directory of objects below the root.
pub(super) struct Kind {
    /// Its number in places; never changes.
    pub(super) number: u8,
    /// Its name.
    pub(super) name: &'static str,
    /// Its own files.
    pub(super) files: &'static [File],
    /// The files of each object.
    pub(super) object_files: &'static [File],
    /// Are its directories named by number, with a link for the name? Else they are named by name.
    pub(super) numbered: bool,
    /// The object with this name.
    pub(super) find: fn(&State, &str) -> Option<u64>,
    /// An object.
    pub(super) object: fn(&State, u64) -> Option<Object>,
    /// The objects with numbers greater than this, by number.
    pub(super) after: fn(&State, u64) -> Numbered<'_>,
    /// Those of them that have a link for their name.
    pub(super) linked_after: fn(&State, u64) -> Numbered<'_>,
    /// What its objects are to the state machine.
    pub(super) entity: Entity,
    /// What rmdir of an object is.
    pub(super) delete: fn(&State, u64) -> Option<Command>,
}

/// Objects: their numbers and names.
pub(super) type Numbered<'s> = Box<dyn Iterator<Item = (u64, Option<&'s str>)> + 's>;

/// What all objects have.
pub(super) struct Object {
    pub(super) name: Option<String>,
    /// Whose it is; None: the cluster's.
    pub(super) owner: Option<String>,
    /// When it last changed.
    pub(super) changed: HybridTime,
    /// The entry that last changed it.
    pub(super) changed_seq: u64,
}
