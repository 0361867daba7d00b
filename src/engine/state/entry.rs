//! What the log holds: an entry is one transaction of commands, stamped by its submitter.

use super::{Command, NodeId};
use crate::clock::HybridTime;
use crate::text::Refusal;
use serde::{Deserialize, Serialize};

/// Names an entry for ever: an entry that was appended twice takes effect once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    /// The node that submitted it.
    pub node: NodeId,
    /// Which life of that node's process, counted up; the first entry of a new one closes the older ones.
    pub boot: u64,
    /// Counted up from 1 within the boot; taken only if greater than the last one applied.
    pub n: u64,
}

/// `NODE.BOOT.N`, as `/log` shows it and as a sentence about an unknown outcome names it.
impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.node, self.boot, self.n)
    }
}

/// On whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum By {
    /// A user, by name; `none` is whoever the cluster doesn't know.
    User(String),
    /// The agent of the submitting node itself: reports.
    Agent,
}

/// One transaction: all of its commands take effect or none does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who submitted it, and its place among what they submitted.
    pub id: EntryId,
    /// When, by the submitter's hybrid clock.
    pub at: HybridTime,
    /// For whom.
    pub by: By,
    /// What, in order; at least one, at most [`Entry::COMMANDS_MAX`].
    pub commands: Vec<Command>,
}

impl Entry {
    /// The most commands in one transaction: what a write of 64 KiB can hold of the shortest ones (`stop\n`), rounded up.
    pub const COMMANDS_MAX: usize = 16_384;
}

/// What one command gave back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is so.
    Done,
    /// It was so already: nothing changed.
    Unchanged,
    /// The new object's number.
    Created(u64),
}

/// What became of an entry.
pub type Outcome = Result<Vec<Reply>, Refusal>;
