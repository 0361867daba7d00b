//! `/backup`: the whole state at one sequence number, for admins. A stream: it is made as it is read.

use super::handles::{Open, not_for};
use super::table::Asked;
use super::tree::{Answer, Handle, OpenMode};
use crate::engine::BackupReader;
use crate::engine::state::{About, Operation};
use crate::text::Refusal;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Mutex;

struct Backup {
    open: Open,
    /// None until the first read: whoever only opens it costs nothing.
    reader: Arc<Mutex<Option<BackupReader>>>,
}

/// Opens it.
pub(super) fn open(asked: &Asked<'_>, _how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    Ok(Arc::new(Backup { open: Open::of(asked), reader: Arc::default() }))
}

impl Handle for Backup {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        let (open, reader) = (self.open.clone(), self.reader.clone());
        // The role may have been another at the open.
        if !open.server.state().may(&open.who.user, About::Cluster, Operation::Administer) {
            let sentence = format!("no permission to read 'backup': user '{}' is no admin any more", open.who.user);
            return Answer::Now(open.noted(Err(Refusal::denied(sentence))));
        }
        Answer::Later(Box::pin(async move {
            let mut reader = reader.lock().await;
            let reading = match &mut *reader {
                Some(reading) => reading,
                none => none.insert(open.noted(open.server.engine().backup())?),
            };
            let read = reading.read(count).await;
            open.noted(read.map_err(Refusal::again))
        }))
    }

    fn write(&self, _offset: u64, _data: Bytes) -> Answer<usize> {
        Answer::Now(Err(not_for("writing")))
    }
}
