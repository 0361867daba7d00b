//! What has happened: `events` of everything, of a kind, of an object; and `/log`, the audit trail.

use super::streams::{Piece, Range, Stream};
use super::table::Asked;
use super::tree::{Handle, OpenMode};
use crate::engine::state::{Event, NodeId, Subject, VmId, What};
use crate::engine::{Engine, Events};
use crate::text::Refusal;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Events or lines that are made into text at once.
const BATCH_MAX: usize = 256;

/// Which events a stream shows.
#[derive(Clone, Copy)]
enum Filter {
    All,
    Vms,
    Vm(VmId),
    Node(NodeId),
}

impl Filter {
    fn shows(self, event: &Event) -> bool {
        match (self, &event.subject) {
            (Filter::All, _) | (Filter::Vms, Subject::Vm(_)) => true,
            (Filter::Vm(id), Subject::Vm(vm)) => id == *vm,
            (Filter::Node(id), Subject::Node(node, _)) => id == *node,
            _ => false,
        }
    }

    /// Nothing more can happen to what is gone for ever.
    fn ends_with(self, event: &Event) -> bool {
        matches!(self, Filter::Vm(_)) && self.shows(event) && event.what == What::Removed
    }
}

/// `/events`.
pub(super) fn of_all(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    Ok(Arc::new(events(asked, how, Filter::All)))
}

/// `/vms/events`.
pub(super) fn of_vms(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    Ok(Arc::new(events(asked, how, Filter::Vms)))
}

/// `/vms/ID/events`: the VM's history, then live, until it is gone.
pub(super) fn of_vm(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let id = VmId(asked.object);
    let past: String = asked.state.vm(id).into_iter().flat_map(|vm| vm.events()).map(|e| format!("{e}\n")).collect();
    Ok(Arc::new(events(asked, how, Filter::Vm(id)).beginning_with(past)))
}

/// `/nodes/NAME/events`: the node's history, then live.
pub(super) fn of_node(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let id = NodeId(asked.object);
    let past: String = asked.state.node(id).into_iter().flat_map(|n| n.events()).map(|e| format!("{e}\n")).collect();
    Ok(Arc::new(events(asked, how, Filter::Node(id)).beginning_with(past)))
}

fn events(asked: &Asked<'_>, how: OpenMode, filter: Filter) -> Stream {
    let engine = asked.server.engine().clone();
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        Box::pin(std::future::ready(Ok(events_after(&engine, range, filter))))
    });
    Stream::new(asked, how, asked.state.seq(), source).resumable()
}

fn events_after(engine: &Engine, range: Range, filter: Filter) -> Piece {
    match engine.events_after(range.after, BATCH_MAX) {
        Events::Lost { oldest } => {
            let (from, lost) = (oldest + 1, range.after + 1);
            let text = format!(
                "# lost: the events from {lost} to {oldest} are gone here; go on with from={from}, or see /log\n"
            );
            Piece { text: text.into(), upto: range.after, part: 0, end: true }
        }
        Events::Some(events) => {
            let upto = events.last().map_or(range.after, |last| last.seq);
            let text: String = events.iter().filter(|e| filter.shows(e)).map(|e| format!("{e}\n")).collect();
            Piece { text: text.into(), upto, part: 0, end: events.iter().any(|e| filter.ends_with(e)) }
        }
    }
}

/// `/log`: the audit trail, up to what was there when it was opened, or when it was told where to go on.
pub(super) fn log(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let engine = engine.clone();
        Box::pin(async move { lines_after(&engine, range).await })
    });
    Ok(Arc::new(Stream::new(asked, how, 0, source).resumable()))
}

async fn lines_after(engine: &Engine, range: Range) -> Result<Piece, Refusal> {
    let found = engine.audit_after(range.after, BATCH_MAX).await?;
    let seq = |line: &String| line.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let upto = found.lines.last().and_then(seq).unwrap_or(range.after);
    let mut text = String::new();
    if range.after + 1 < found.begins {
        text.push_str(&format!("# the trail begins at {}\n", found.begins));
    }
    for line in found.lines.iter().filter(|line| seq(line).is_none_or(|seq| seq <= range.newest)) {
        text.push_str(line);
        text.push('\n');
    }
    Ok(Piece { text: text.into(), upto, part: 0, end: upto <= range.after || upto >= range.newest })
}
