//! What hiqlite's errors mean for an append. Its errors lie: a write that "failed" may have been applied, so everything is
//! [`AppendError::Unknown`] that isn't known to be otherwise.

use crate::engine::log::{AppendError, LogError};
use hiqlite::Error;

/// The honest meaning of an error of a write.
pub(super) fn of_write(error: &Error) -> AppendError {
    let sentence = error.to_string();
    match error {
        // Raft refused it before it was appended, or has deleted it: a conflicting entry is in its place for ever.
        _ if error.is_forward_to_leader().is_some() => AppendError::NotDone(sentence),
        Error::RateLimit(_) | Error::Config(_) | Error::BadRequest(_) => AppendError::NotDone(sentence),
        Error::ClientWriteError(raft) if raft.fatal().is_some() => AppendError::Fatal(sentence),
        Error::RaftError(raft) if raft.fatal().is_some() => AppendError::Fatal(sentence),
        Error::RaftErrorFatal(_) | Error::WAL(_) => AppendError::Fatal(sentence),
        // Raft has committed it and the database of this node would not take it: this node's copy is wrong from here on.
        // A restart builds it anew from the Raft log.
        Error::Sqlite(_)
        | Error::Transaction(_)
        | Error::PrepareStatement(_)
        | Error::QueryParams(_)
        | Error::ConstraintViolation(_) => {
            AppendError::Fatal(format!("the database refused what was committed: {sentence}"))
        }
        _ => AppendError::Unknown(sentence),
    }
}

/// An error of a read. Our statements are right, so when SQLite can't do one, its file is not.
pub(super) fn of_read(error: &Error) -> LogError {
    match error {
        Error::Sqlite(sentence) => LogError::Damaged {
            path: "the database".to_owned(),
            what: sentence.to_string(),
            advice: super::ADVICE.to_owned(),
        },
        _ => LogError::Failed(error.to_string()),
    }
}
