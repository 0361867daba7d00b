//! The log of a machine that is not part of Raft: it has no copy of its own, follows that of a member, and has it carry its appends to the node
//! that leads. Which member that is, and how it is reached, whoever opens it knows.
//!
//! What a member tells is text, a record a line: `SEQ BASE64`. Where the records that are asked for have been cut, it is the snapshot first, in
//! parts: `snapshot SEQ NTH/COUNT BASE64`.

use super::committed::{self, Committed, Publisher, WAITING_MAX};
use super::forward::{Answered, Forwarded};
use super::{AppendError, Health, Log, LogError, Record, Role, Snapshot};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bytes of a snapshot in one line.
pub(super) const PART_BYTES: usize = 32 * 1024;
/// The longest line: a record of the largest size.
pub const LINE_BYTES_MAX: usize = 512 * 1024;
/// The largest snapshot that is taken, in bytes: some million VMs.
const SNAPSHOT_BYTES_MAX: usize = 2 << 30;
/// How long one step of reading a snapshot from a member may take: it has to load it, or others are told it before.
pub const SNAPSHOT_STEP_WITHIN: Duration = Duration::from_secs(30);
/// The pause before a member is asked again, or another one.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What a member has told of its log after a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The records that follow; none: there are no more yet.
    Records(Vec<Record>),
    /// They have been cut; it goes on after this.
    Snapshot(Snapshot),
    /// The same, of which only this was wanted: up to where the snapshot goes.
    Cut(u64),
}

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A record.
    Record(Record),
    /// A part of a snapshot: its record, which part, of how many, and what is in it.
    Snapshot(u64, usize, usize, Vec<u8>),
}

impl std::str::FromStr for Line {
    type Err = String;

    fn from_str(line: &str) -> Result<Line, String> {
        let wrong = || "a member tells of its log what is no record".to_owned();
        let bytes = |text: &str| STANDARD_NO_PAD.decode(text).map_err(|_| wrong());
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["snapshot", seq, part, text] => {
                let (nth, count) = part.split_once('/').ok_or_else(wrong)?;
                let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
                let (nth, count) = (number(nth)?, number(count)?);
                Ok(Line::Snapshot(seq.parse().map_err(|_| wrong())?, nth, count, bytes(text)?))
            }
            [seq, text] => {
                let seq = seq.parse().map_err(|_| wrong())?;
                Ok(Line::Record(Record { seq, bytes: bytes(text)?.into() }))
            }
            _ => Err(wrong()),
        }
    }
}

/// Puts lines together to a part.
#[derive(Debug, Default)]
pub struct Gathering {
    records: Vec<Record>,
    snapshot: Vec<u8>,
    /// How many parts of the snapshot there are, and of which one.
    parts: usize,
    seq: u64,
    whole: Option<Snapshot>,
}

impl Gathering {
    /// One more line. True: it is whole; records alone are whole whenever nothing more comes.
    ///
    /// # Errors
    /// The lines don't belong together: a sentence.
    pub fn take(&mut self, line: Line) -> Result<bool, String> {
        match line {
            Line::Record(record) => self.records.push(record),
            Line::Snapshot(_, nth, ..) if nth != self.parts + 1 => {
                return Err("a part of a snapshot is missing".to_owned());
            }
            Line::Snapshot(seq, ..) if self.parts > 0 && seq != self.seq => {
                return Err("a part is of another snapshot".to_owned());
            }
            Line::Snapshot(seq, nth, count, bytes) => {
                (self.parts, self.seq) = (nth, seq);
                self.snapshot.extend(bytes);
                if self.snapshot.len() > SNAPSHOT_BYTES_MAX {
                    return Err(format!("a snapshot has more than {SNAPSHOT_BYTES_MAX} bytes"));
                }
                if nth == count {
                    self.whole = Some(Snapshot { seq, bytes: std::mem::take(&mut self.snapshot).into() });
                }
            }
        }
        Ok(self.whole.is_some())
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Has a snapshot begun?
    pub fn is_snapshot(&self) -> bool {
        self.parts > 0
    }

    /// What it is.
    ///
    /// # Errors
    /// A snapshot that is not whole: a sentence.
    pub fn part(self) -> Result<Part, String> {
        match self.whole {
            Some(snapshot) => Ok(Part::Snapshot(snapshot)),
            None if self.parts > 0 => Err("a snapshot ends in the middle".to_owned()),
            None => Ok(Part::Records(self.records)),
        }
    }
}

/// A member whose log is followed: whichever there is.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// What there is now after a record: at most about `max` records; of a snapshot nothing but its number, or, if it is `wanted`, all of
    /// it. The error is a sentence; another member is asked the next time.
    async fn part(&self, after: u64, max: usize, wanted: bool) -> Result<Part, String>;
    /// Has it carry a question to the node that leads.
    async fn ask(&self, question: Forwarded) -> Result<Answered, AppendError>;
    /// Does a member answer, as far as is known?
    fn is_there(&self) -> bool;
}

/// The log of a machine that is not part of Raft.
pub struct FollowedLog {
    upstream: Arc<dyn Upstream>,
    ended: CancellationToken,
}

impl FollowedLog {
    /// Opens it; whoever hears of records from the member publishes them.
    pub fn open(upstream: Arc<dyn Upstream>) -> (FollowedLog, Publisher, Committed) {
        let (publisher, committed) = committed::channel(WAITING_MAX);
        (FollowedLog { upstream, ended: CancellationToken::new() }, publisher, committed)
    }

    /// Asks until a member answers: without one there is nothing else to do, and guests run on meanwhile.
    async fn part(&self, after: u64, max: usize, wanted: bool) -> Result<Part, LogError> {
        loop {
            let why = tokio::select! {
                part = self.upstream.part(after, max, wanted) => match part {
                    Ok(part) => return Ok(part),
                    Err(why) => why,
                },
                () = self.ended.cancelled() => return Err(LogError::Failed("it was closed".to_owned())),
            };
            tracing::warn!(why, "no member tells of its log; it is tried again");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn ask(&self, question: Forwarded) -> Result<u64, AppendError> {
        self.upstream.ask(question).await.and_then(Answered::into_result)
    }
}

#[async_trait]
impl Log for FollowedLog {
    fn path(&self) -> String {
        "the log of a member".to_owned()
    }

    async fn append(&self, records: Vec<Bytes>) -> Result<(), AppendError> {
        self.ask(Forwarded::Relayed(Box::new(Forwarded::Append(records)))).await.map(drop)
    }

    async fn read(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        match self.part(after, max, false).await? {
            Part::Records(records) => Ok(records),
            Part::Snapshot(_) | Part::Cut(_) => Err(LogError::Failed(format!("the record {} was cut", after + 1))),
        }
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        match self.part(0, 1, true).await? {
            Part::Records(_) | Part::Cut(_) => Ok(None),
            Part::Snapshot(snapshot) => Ok(Some(snapshot)),
        }
    }

    /// The members' business.
    async fn save_snapshot(&self, _snapshot: Snapshot) -> Result<(), AppendError> {
        Err(AppendError::NotDone("a worker writes no snapshots".to_owned()))
    }

    /// The members' business.
    async fn cut(&self, _upto: u64) -> Result<(), AppendError> {
        Err(AppendError::NotDone("a worker cuts nothing".to_owned()))
    }

    /// There is nothing here that could be lost.
    fn mark(&self, _seq: u64, _chain: [u8; 32]) -> Result<(), LogError> {
        Ok(())
    }

    fn last_mark(&self) -> Option<(u64, [u8; 32])> {
        None
    }

    async fn leader_clock(&self) -> Result<Option<u64>, AppendError> {
        self.ask(Forwarded::Relayed(Box::new(Forwarded::Clock))).await.map(Some)
    }

    async fn newest(&self) -> Result<u64, AppendError> {
        self.ask(Forwarded::Relayed(Box::new(Forwarded::Newest))).await
    }

    fn health(&self) -> Health {
        let quorum = self.upstream.is_there();
        Health { role: Role::Worker, term: 0, leader: None, quorum, voters: 0, lag: 0, dead: None }
    }

    fn alone(&self) -> bool {
        false
    }

    async fn close(&self) {
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(text: &str) -> Result<Part, String> {
        let mut gathering = Gathering::default();
        for line in text.lines() {
            gathering.take(line.parse()?)?;
        }
        gathering.part()
    }

    #[test]
    fn only_what_is_whole_is_taken() {
        let whole = "snapshot 9 1/3 YQ\nsnapshot 9 2/3 Yg\nsnapshot 9 3/3 Yw\n";
        assert_eq!(gathered(whole).unwrap(), Part::Snapshot(Snapshot { seq: 9, bytes: "abc".into() }));
        let cut: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
        let missing: String = whole.lines().skip(1).map(|line| format!("{line}\n")).collect();
        let mixed = whole.replace("9 2/3", "8 2/3");
        for wrong in [cut.as_str(), &missing, &mixed, "1", "x YQ", "1 *", "snapshot 1 1 YQ"] {
            assert!(gathered(wrong).is_err(), "{wrong}");
        }
    }
}
