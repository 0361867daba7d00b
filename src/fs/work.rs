//! `/nodes/NAME/work`: the log as it goes on, for a worker, which has none of its own. A record a line, in order, from wherever `from=SEQ`
//! says; where the records before have been cut, the snapshot first. For nodes and admins: there is nothing in it that is not in the tree, but
//! everything at once.

use super::streams::{Piece, Range, Stream};
use super::table::Asked;
use super::tree::{Handle, OpenMode};
use crate::engine::Engine;
use crate::engine::log::told::{SnapshotReader, Told, print};
use crate::text::Refusal;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Records that are made into text at once.
const RECORDS_MAX: usize = 256;

/// Opens it.
pub(super) fn open(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let work = Arc::new(Work { engine: asked.server.engine().clone(), snapshot: Mutex::default() });
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let work = work.clone();
        Box::pin(async move { work.after(range).await })
    });
    Ok(Arc::new(Stream::new(asked, how, asked.state.seq(), source).resumable()))
}

struct Work {
    engine: Engine,
    /// The one that is being told.
    snapshot: Mutex<Option<Arc<SnapshotReader>>>,
}

impl Work {
    fn snapshot(&self) -> MutexGuard<'_, Option<Arc<SnapshotReader>>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn after(&self, range: Range) -> Result<Piece, Refusal> {
        if range.part > 0 {
            // None: the stream was set back meanwhile, and nobody reads this any more.
            let reader = self.snapshot().clone().ok_or_else(|| Refusal::again("interrupted: it goes on elsewhere"))?;
            return self.part(&reader, range).await;
        }
        self.snapshot().take();
        if self.engine.state().seq() <= range.after {
            return Ok(Piece { text: Default::default(), upto: range.after, part: 0, end: false });
        }
        match self.engine.log_after(range.after, RECORDS_MAX).await? {
            Told::Records(records) => {
                let upto = records.last().map_or(range.after, |last| last.seq);
                Ok(Piece { text: print(&records).into(), upto, part: 0, end: false })
            }
            Told::Snapshot(reader) => {
                let reader = Arc::new(reader);
                *self.snapshot() = Some(reader.clone());
                self.part(&reader, range).await
            }
        }
    }

    async fn part(&self, reader: &SnapshotReader, range: Range) -> Result<Piece, Refusal> {
        let (text, next) = reader.text(range.part).await?;
        let (upto, part) = match next {
            Some(next) => (range.after, next),
            None => (reader.seq(), 0),
        };
        Ok(Piece { text: text.into(), upto, part, end: false })
    }
}
