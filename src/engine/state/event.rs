//! What happened: events, compact as they are kept, and as the line that `events` shows.

use super::{Kind, NodeId, VmId};
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The longest sentence that an event carries, in bytes; the object's `error` has more of it.
pub const EVENT_SENTENCE_BYTES_MAX: usize = 240;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The entry that made it so.
    pub seq: u64,
    /// When, by the cluster's time.
    pub at: HybridTime,
    /// To what.
    pub subject: Subject,
    /// What.
    pub what: What,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The cluster itself.
    Cluster,
    /// A VM.
    Vm(VmId),
    /// A node, by number and name.
    Node(NodeId, Arc<str>),
    /// An image, by name.
    Image(Arc<str>),
    /// A pool, by name.
    Pool(Arc<str>),
    /// A user, by name.
    User(Arc<str>),
}

/// What happened to it. The order of variants is part of the format: add at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// It was made.
    Created,
    /// Attributes changed.
    Set,
    /// Its agent has begun to start it.
    Starting {
        /// Which start.
        generation: u64,
    },
    /// It runs.
    Running {
        /// Which start.
        generation: u64,
    },
    /// The guest has answered.
    GuestReady {
        /// Which start.
        generation: u64,
    },
    /// Its CPUs are to be stopped, or to run again.
    Pausing,
    /// See [`What::Pausing`].
    Resuming,
    /// Its CPUs are stopped.
    Paused,
    /// Its CPUs run again.
    Resumed,
    /// Its agent has begun to end it.
    Stopping,
    /// It was ended, or powered itself off.
    Stopped,
    /// It could not be started, or crashed.
    Failed(Arc<str>),
    /// Something is wrong, but its state is as it was.
    Trouble(Arc<str>),
    /// Its agent has begun to clear up what is left of it.
    Deleting,
    /// It is no more.
    Removed,
    /// A node's process has started, or ended cleanly.
    Up,
    /// See [`What::Up`].
    Down,
    /// It is to be started again when its agent has ended it.
    StartingAgain,
    /// A node begins with a fresh store.
    NewStore,
    /// A node has not renewed its lease in time.
    Lost,
    /// A node that was lost is there again.
    Back,
    /// A VM is to run, and no node has room for it: why.
    Waiting(Arc<str>),
    /// A VM ends where it is, to begin on this node.
    Moving(Arc<str>),
    /// A VM that does not run is on no node any more.
    TakenOff,
    /// A node takes no more VMs.
    Cordoned,
    /// And is to be empty.
    Draining,
    /// A node has become empty.
    Drained,
    /// A node takes VMs again.
    Undrained,
    /// A node is to be empty, and then no member any more.
    Leaving,
}

impl What {
    pub(super) fn failed(sentence: &str) -> What {
        What::Failed(bounded(sentence, EVENT_SENTENCE_BYTES_MAX))
    }

    pub(super) fn trouble(sentence: &str) -> What {
        What::Trouble(bounded(sentence, EVENT_SENTENCE_BYTES_MAX))
    }

    /// The same without the sentence for people, if it has one; names stay.
    pub fn without_words(&self) -> Cow<'_, What> {
        match self {
            What::Failed(_) => Cow::Owned(What::Failed(Arc::default())),
            What::Trouble(_) => Cow::Owned(What::Trouble(Arc::default())),
            What::Waiting(_) => Cow::Owned(What::Waiting(Arc::default())),
            // Each by its name: of a new one it is to be said which it is.
            What::Created
            | What::Set
            | What::Starting { .. }
            | What::Running { .. }
            | What::GuestReady { .. }
            | What::Pausing
            | What::Resuming
            | What::Paused
            | What::Resumed
            | What::Stopping
            | What::Stopped
            | What::Deleting
            | What::Removed
            | What::Up
            | What::Down
            | What::StartingAgain
            | What::NewStore
            | What::Lost
            | What::Back
            | What::Moving(_)
            | What::TakenOff
            | What::Cordoned
            | What::Draining
            | What::Drained
            | What::Undrained
            | What::Leaving => Cow::Borrowed(self),
        }
    }
}

/// At most so many bytes of a sentence, cut between letters, as one line.
pub(super) fn bounded(sentence: &str, bytes_max: usize) -> Arc<str> {
    let end = sentence.floor_char_boundary(bytes_max);
    sentence.get(..end).unwrap_or(sentence).replace(['\n', '\r'], " ").into()
}

impl Subject {
    /// The kind of object, if it is one of many.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Subject::Cluster => None,
            Subject::Vm(_) => Some(Kind::Vm),
            Subject::Node(..) => Some(Kind::Node),
            Subject::Image(_) => Some(Kind::Image),
            Subject::Pool(_) => Some(Kind::Pool),
            Subject::User(_) => Some(Kind::User),
        }
    }
}

/// Its path in the tree.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Cluster => f.write_str("cluster"),
            Subject::Vm(id) => write!(f, "vms/{id}"),
            Subject::Node(_, name) => write!(f, "nodes/{name}"),
            Subject::Image(name) => write!(f, "images/{name}"),
            Subject::Pool(name) => write!(f, "ipam/{name}"),
            Subject::User(name) => write!(f, "users/{name}"),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Created => f.write_str("created"),
            What::Set => f.write_str("set"),
            What::Starting { generation } => write!(f, "starting generation {generation}"),
            What::Running { generation } => write!(f, "running generation {generation}"),
            What::GuestReady { generation } => write!(f, "guest ready generation {generation}"),
            What::Pausing => f.write_str("pausing"),
            What::Resuming => f.write_str("resuming"),
            What::Paused => f.write_str("paused"),
            What::Resumed => f.write_str("resumed"),
            What::Stopping => f.write_str("stopping"),
            What::Stopped => f.write_str("stopped"),
            What::Failed(sentence) => write!(f, "failed {sentence}"),
            What::Trouble(sentence) => write!(f, "trouble {sentence}"),
            What::Deleting => f.write_str("deleting"),
            What::Removed => f.write_str("removed"),
            What::Up => f.write_str("up"),
            What::Down => f.write_str("down"),
            What::StartingAgain => f.write_str("starting again"),
            What::NewStore => f.write_str("new store"),
            What::Lost => f.write_str("lost"),
            What::Back => f.write_str("back"),
            What::Waiting(why) => write!(f, "waiting {why}"),
            What::Moving(node) => write!(f, "moving to {node}"),
            What::TakenOff => f.write_str("taken off its node"),
            What::Cordoned => f.write_str("cordoned"),
            What::Draining => f.write_str("draining"),
            What::Drained => f.write_str("drained"),
            What::Undrained => f.write_str("undrained"),
            What::Leaving => f.write_str("leaving"),
        }
    }
}

/// `SEQ TIME SUBJECT WHAT`, without a newline.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.seq, crate::text::time::rfc3339(self.at.millis()), self.subject, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let said = |subject: Subject, what: What| {
            Event { seq: 7, at: HybridTime::from_millis(1_767_225_600_000), subject, what }.to_string()
        };
        let vm = || Subject::Vm(VmId(42));
        for (what, line) in [
            (What::Created, "created"),
            (What::Starting { generation: 3 }, "starting generation 3"),
            (What::Running { generation: 3 }, "running generation 3"),
            (What::GuestReady { generation: 3 }, "guest ready generation 3"),
            (What::StartingAgain, "starting again"),
            (What::failed("it broke\nbadly\r\n"), "failed it broke badly  "),
            (What::trouble("the disk is slow"), "trouble the disk is slow"),
        ] {
            assert_eq!(said(vm(), what), format!("7 2026-01-01T00:00:00.000Z vms/42 {line}"));
        }
        assert!(said(Subject::Node(NodeId(1), "alpha".into()), What::Up).ends_with(" nodes/alpha up"));
        assert!(said(Subject::Pool("lab".into()), What::Removed).ends_with(" ipam/lab removed"));
        assert!(said(Subject::Cluster, What::Created).ends_with(" cluster created"));
    }

    #[test]
    fn sentences_are_cut_between_letters() {
        assert_eq!(&*bounded("aäb", 2), "a");
        assert_eq!(&*bounded("aäb", 3), "aä");
        assert_eq!(&*bounded("aäb", 9), "aäb");
    }
}
