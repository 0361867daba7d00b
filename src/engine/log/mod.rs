//! The log: one totally ordered, durable sequence of records. What is in a record it does not know.

pub mod committed;
pub mod followed;
pub mod forward;
pub mod hiqlite;
pub mod memory;
pub mod told;

pub use self::hiqlite::{
    Addresses, DISK_RESERVE_BYTES, Durability, HiqliteLog, Member, MemberChange, OpenOptions, Room, Voters, check_room,
};
pub use committed::{Committed, Publisher};
pub use followed::FollowedLog;
pub use memory::MemoryLog;

use async_trait::async_trait;
use bytes::Bytes;

/// The largest record in bytes. A write of 64 KiB (the tree's limit) makes an entry of at most about twice that.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;
/// The most records in one append: enough to share a commit among all who wait, few enough to answer soon.
pub const BATCH_RECORDS_MAX: usize = 256;
/// The most bytes in one append. An append larger than the file of a write-ahead log would kill it: an eighth of that.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// One committed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place, counted from 1 without gaps.
    pub seq: u64,
    /// An encoded entry.
    pub bytes: Bytes,
}

/// The whole state as it was after the record `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record that is in it.
    pub seq: u64,
    /// The encoded state; the log keeps it compressed and checks it by its hash.
    pub bytes: Bytes,
}

/// Why an append failed. The difference decides what the submitter may say to its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing was done and nothing will be: EAGAIN.
    #[error("nothing was written: {0}")]
    NotDone(String),
    /// Nothing was done and nothing will be, for want of room on the disk: ENOSPC.
    #[error("nothing was written: {0}")]
    Full(String),
    /// It may be in the log, now or later: send the same records again before anything newer, or say ETIMEDOUT.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// This log can't go on; the process must end and be started again.
    #[error("the log can't go on: {0}")]
    Fatal(String),
}

/// Why the log can't be read or opened. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// What is stored is not what was written.
    #[error("the log in {path} is damaged: {what}; {advice}")]
    Damaged {
        /// The data folder.
        path: String,
        /// What was found.
        what: String,
        /// What a person can do about it.
        advice: String,
    },
    /// The disk or the database refused.
    #[error("the log can't be used: {0}")]
    Failed(String),
}

/// What this node is in the log's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It orders the records. A node alone leads itself.
    Leader,
    /// It votes, and follows a leader.
    Follower,
    /// It votes, and looks for a leader.
    Candidate,
    /// It gets the records, and has no vote.
    Learner,
    /// It is not part of Raft, and follows the log of a member.
    Worker,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Worker => "worker",
        })
    }
}

/// How the log is at this moment, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What this node is.
    pub role: Role,
    /// Raft's term: counts the elections.
    pub term: u64,
    /// The leader's identity in Raft, if this node knows one.
    pub leader: Option<u64>,
    /// Whether records can be committed: there is a leader, and if it is this node, a majority has answered it lately.
    pub quorum: bool,
    /// How many vote.
    pub voters: usize,
    /// Raft entries that this node has and has not applied yet.
    pub lag: u64,
    /// Why the log can't go on, if it can't.
    pub dead: Option<String>,
}

/// The log as the engine uses it. Implementations: `memory.rs`, `hiqlite/`, `followed.rs`.
///
/// Committed records come through the [`Committed`] that opening gave, in order of `seq`; it is bounded and the
/// log drops what does not fit: whoever sees a gap reads the missing records with [`Log::read`].
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Where it is, for messages to people.
    fn path(&self) -> String;
    /// Appends the records in this order as one commit; resolves when they are durable.
    async fn append(&self, records: Vec<Bytes>) -> Result<(), AppendError>;
    /// Up to `max` committed records after `after`, in order.
    async fn read(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError>;
    /// The newest snapshot.
    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError>;
    /// Stores a snapshot; older ones may be dropped once it is durable.
    async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), AppendError>;
    /// Drops records up to and including `upto`, in slices. There must be a snapshot at or after it.
    async fn cut(&self, upto: u64) -> Result<(), AppendError>;
    /// Notes that `seq` was applied and that the chain of hashes over all records up to it is `chain`. Called before the
    /// records up to `seq` are acknowledged; at the next opening a log that ends before it is [`LogError::Damaged`].
    fn mark(&self, seq: u64, chain: [u8; 32]) -> Result<(), LogError>;
    /// The mark that was there when the log was opened, if any.
    fn last_mark(&self) -> Option<(u64, [u8; 32])>;
    /// The number of the newest record that was committed anywhere before the call (a linearizable read: the leader has made
    /// sure that it still leads).
    async fn newest(&self) -> Result<u64, AppendError>;
    /// What the clock of the node that leads shows while it is asked, in milliseconds since the Unix epoch. None: nobody else leads.
    async fn leader_clock(&self) -> Result<Option<u64>, AppendError> {
        Ok(None)
    }
    /// Why nothing can be written through this node for want of room, in a sentence.
    fn full(&self) -> Option<String> {
        None
    }
    /// How it is. Looks at what this node knows, and waits for nothing.
    fn health(&self) -> Health;
    /// Whether nobody but this node has a copy.
    fn alone(&self) -> bool;
    /// Ends it cleanly, in bounded time.
    async fn close(&self);
}
