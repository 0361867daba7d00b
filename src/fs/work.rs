//! `/nodes/NAME/work`: the log as it goes on, for a worker, which has none of its own. A record a line, in order, from wherever `from=SEQ`
//! says; where the records before have been cut, the snapshot first. For nodes and admins: there is nothing in it that is not in the tree, but
//! everything at once.

use super::streams::{Piece, Range, Stream};
use super::table::Asked;
use super::tree::{Handle, OpenMode};
use crate::engine::log::followed::Part;
use crate::text::Refusal;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Records that are made into text at once.
const RECORDS_MAX: usize = 256;

/// Opens it.
pub(super) fn open(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let engine = engine.clone();
        Box::pin(async move {
            let applied = engine.state().seq();
            if applied <= range.after {
                return Ok(Piece { text: Default::default(), upto: range.after, end: false });
            }
            let part = engine.log_after(range.after, RECORDS_MAX).await?;
            let upto = match &part {
                Part::Records(records) => records.last().map_or(range.after, |last| last.seq),
                Part::Snapshot(snapshot) => snapshot.seq,
            };
            Ok(Piece { text: part.print().into(), upto, end: false })
        })
    });
    Ok(Arc::new(Stream::new(asked, how, asked.state.seq(), source).resumable()))
}
