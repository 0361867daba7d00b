//! What a member that does not lead asks of the one that does, and how it gets there: whoever opens the log knows a way.

use super::AppendError;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The longest question in bytes: an append of the largest size, and what its encoding adds.
pub const FORWARDED_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// What is asked of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarded {
    /// Append these records as one commit.
    Append(#[serde(with = "records")] Vec<Bytes>),
    /// The number of the newest committed record, once the leader has made sure that it leads.
    Newest,
    /// Of a machine that is not part of Raft: ask this of the node that leads, whoever that is.
    Relayed(Box<Forwarded>),
    /// What the leader's clock shows.
    Clock,
}

impl Forwarded {
    /// Does it change nothing, so that an answer that is lost has done no harm?
    pub fn is_read(&self) -> bool {
        match self {
            Forwarded::Newest | Forwarded::Clock => true,
            Forwarded::Append(_) => false,
            Forwarded::Relayed(question) => question.is_read(),
        }
    }
}

/// Records as sequences of bytes: without a copy on the way out.
mod records {
    use super::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(records: &[Bytes], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(records.iter().map(|record| &record[..]))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes>, D::Error> {
        Ok(Vec::<Vec<u8>>::deserialize(deserializer)?.into_iter().map(Bytes::from).collect())
    }
}

/// What the leader answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answered {
    /// They are committed.
    Appended,
    /// The number.
    Newest(u64),
    /// See [`AppendError::NotDone`]; also of a node that does not lead.
    NotDone(String),
    /// See [`AppendError::Full`].
    Full(String),
    /// See [`AppendError::Unknown`].
    Unknown(String),
    /// Milliseconds since the Unix epoch.
    Clock(u64),
}

impl Answered {
    /// The answer as the asker's own log would have given it.
    ///
    /// # Errors
    /// What the leader has answered.
    pub(super) fn into_result(self) -> Result<u64, AppendError> {
        match self {
            Answered::Appended => Ok(0),
            Answered::Newest(number) | Answered::Clock(number) => Ok(number),
            Answered::NotDone(why) => Err(AppendError::NotDone(why)),
            Answered::Full(why) => Err(AppendError::Full(why)),
            Answered::Unknown(why) => Err(AppendError::Unknown(why)),
        }
    }
}

impl From<AppendError> for Answered {
    fn from(error: AppendError) -> Answered {
        match error {
            AppendError::NotDone(why) => Answered::NotDone(why),
            AppendError::Full(why) => Answered::Full(why),
            // That the leader's log can't go on is its own end, and not the asker's.
            AppendError::Unknown(why) | AppendError::Fatal(why) => Answered::Unknown(why),
        }
    }
}

/// Whose a question is: this node's own never waits behind those that it carries for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This node's; also a read that it shares with others.
    Own,
    /// Of a machine that is not part of Raft.
    Relayed,
}

/// The way to the member that leads.
#[async_trait]
pub trait Forward: Send + Sync + 'static {
    /// Asks the member with this identity in Raft. An answer that did not come is [`AppendError::Unknown`]; a question that was not
    /// sent is [`AppendError::NotDone`].
    async fn forward(&self, leader: u64, question: &Forwarded, whose: Whose) -> Result<Answered, AppendError>;
}
