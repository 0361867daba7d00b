//! `vms/ID/stats` and `nodes/NAME/stats`: what moves by itself, made when it is read, asked of the node that knows.

use super::forward;
use super::streams::{Piece, Range, Stream};
use super::table::Asked;
use super::tree::{Handle, OpenMode};
use crate::engine::state::VmId;
use crate::text::{Refusal, kv::KeyValues};
use futures::future::BoxFuture;
use std::sync::Arc;

fn print(lines: Vec<(&'static str, String)>, range: Range) -> Piece {
    let text = lines.into_iter().fold(KeyValues::new(), |text, (key, value)| text.line(key, value));
    Piece { text: text.print().into(), upto: range.after, part: 0, end: true }
}

/// Of a VM.
pub(super) fn of_vm(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    if let Some(elsewhere) = forward::of_vm(asked, "stats", how, forward::ANSWERS_WITHIN)? {
        return Ok(elsewhere);
    }
    let (server, vm) = (asked.server.clone(), VmId(asked.object));
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let stats = server.host().vm_stats(vm);
        Box::pin(async move { Ok(print(stats.await?, range)) })
    });
    Ok(Arc::new(Stream::new(asked, how, 0, source)))
}

/// Of a node.
pub(super) fn of_node(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    if let Some(elsewhere) = forward::of_node(asked, "stats", how)? {
        return Ok(elsewhere);
    }
    let server = asked.server.clone();
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let stats = server.host().node_stats();
        Box::pin(std::future::ready(stats.map(|lines| print(lines, range))))
    });
    Ok(Arc::new(Stream::new(asked, how, 0, source)))
}
