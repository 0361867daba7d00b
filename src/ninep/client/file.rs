//! An open file.

use super::connection::Answered;
use super::fid::{Fid, Seen};
use super::{ANSWER_WITHIN, CHANGE_WITHIN, ClientError, TEXT_BYTES_MAX, unexpected};
use crate::ninep::{Data, Reply, Request};
use bytes::Bytes;
use std::time::Duration;

/// An open file. Dropped, it is closed.
pub struct File {
    pub(super) fid: Fid,
}

/// What was fetched together with an open.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// What the server told of the file.
    pub seen: Seen,
    /// Its first bytes.
    pub data: Bytes,
}

/// The data of an Rread, of at most so many bytes.
pub(super) fn data(answered: Result<Answered, ClientError>, count: u32) -> Result<Bytes, ClientError> {
    let answered = answered?;
    match answered.reply()? {
        Reply::Read { data: Data(data) } if data.len() <= count as usize => Ok(answered.part(data)),
        other => Err(unexpected(&other)),
    }
}

impl File {
    /// Some bytes from `offset`, `count` at most; none at the end. Without a limit it may wait for as long as the file has
    /// nothing to say: dropping the future cancels it.
    ///
    /// # Errors
    /// As for every request.
    pub async fn read_some(&self, offset: u64, count: u32, limit: Option<Duration>) -> Result<Bytes, ClientError> {
        let count = count.min(self.fid.connection.data_max());
        data(self.fid.connection.ask(limit, &Request::Read { fid: self.fid.number, offset, count }).await, count)
    }

    /// The same, as many as a message holds, and however long it takes.
    ///
    /// # Errors
    /// As for every request.
    pub async fn read(&self, offset: u64) -> Result<Bytes, ClientError> {
        self.read_some(offset, u32::MAX, None).await
    }

    /// All that there is to read, of a file that has an end.
    ///
    /// # Errors
    /// As for every request; more than [`TEXT_BYTES_MAX`] bytes.
    pub async fn read_all(&self) -> Result<Vec<u8>, ClientError> {
        let mut text = Vec::new();
        loop {
            let part = self.read_some(text.len() as u64, u32::MAX, Some(ANSWER_WITHIN)).await?;
            if part.is_empty() {
                return Ok(text);
            }
            if text.len() + part.len() > TEXT_BYTES_MAX {
                return Err(ClientError::TooLong(format!("the file has more than {TEXT_BYTES_MAX} bytes")));
            }
            text.extend_from_slice(&part);
        }
    }

    /// The most bytes that one write takes.
    pub fn write_max(&self) -> usize {
        self.fid.connection.data_max() as usize
    }

    /// Writes all of `data` in one message, so that the server takes it as one transaction, or refuses.
    ///
    /// # Errors
    /// As for every request; more data than a message holds; fewer bytes taken than given.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let most = self.write_max();
        if data.len() > most {
            let sentence = format!("{} bytes are too long for one write; {most} is the most", data.len());
            return Err(ClientError::TooLong(sentence));
        }
        let request = Request::Write { fid: self.fid.number, offset, data: Data(data) };
        let answered = self.fid.connection.ask(Some(CHANGE_WITHIN), &request).await?;
        match answered.reply()? {
            Reply::Write { count } if count as usize == data.len() => Ok(()),
            Reply::Write { count } => Err(ClientError::Protocol(format!("it took {count} bytes of {}", data.len()))),
            other => Err(unexpected(&other)),
        }
    }

    /// The entries of a directory: see [`Fid::list`].
    ///
    /// # Errors
    /// As for every request.
    pub async fn list(&self, offset: u64, count: u32) -> Result<Vec<super::Entry>, ClientError> {
        self.fid.list(offset, count).await
    }
}
