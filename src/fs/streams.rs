//! Open files that wait or never end: `wait`, `events`, `log`, `sync`, the console. They ignore offsets: one cursor an open.
//!
//! Every wait is for a change of the state or for the machine, and ends when its future is dropped.

use super::handles::{Open, not_for, slice};
use super::table::Asked;
use super::tree::{Answer, Handle, OpenMode};
use crate::engine::hypervisor::Console;
use crate::engine::state::{Event, Subject, VmId};
use crate::engine::{Engine, Events};
use crate::text::{Refusal, attrs};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Events or lines that are made into text at once.
const BATCH_MAX: usize = 256;

/// What was made and not yet read.
#[derive(Default)]
struct Pending(Mutex<(Bytes, bool)>);

impl Pending {
    /// Up to `count` bytes; None: there is nothing, and more may come.
    fn take(&self, count: usize) -> Option<Bytes> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.0.is_empty() {
            return pending.1.then(Bytes::new);
        }
        let length = count.min(pending.0.len());
        Some(pending.0.split_to(length))
    }

    /// Adds text; `last`: the end comes after it.
    fn put(&self, text: impl Into<Bytes>, last: bool) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text.into();
        pending.0 = if pending.0.is_empty() {
            text
        } else {
            let mut all = BytesMut::from(pending.0.as_ref());
            all.extend_from_slice(&text);
            all.freeze()
        };
        pending.1 = last;
    }
}

type Source = Arc<dyn Fn() -> BoxFuture<'static, Result<(Bytes, bool), Refusal>> + Send + Sync>;

/// A stream that is read: its source is asked whenever what it gave has been read.
pub(super) struct Reading {
    pending: Arc<Pending>,
    source: Source,
}

impl Reading {
    fn new<F, R>(source: F) -> Reading
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(Bytes, bool), Refusal>> + Send + 'static,
    {
        Reading { pending: Arc::default(), source: Arc::new(move || Box::pin(source())) }
    }

    fn read(&self, count: usize) -> Answer<Bytes> {
        if let Some(part) = self.pending.take(count) {
            return Answer::Now(Ok(part));
        }
        let (pending, source) = (self.pending.clone(), self.source.clone());
        Answer::Later(Box::pin(async move {
            loop {
                let (text, last) = source().await?;
                pending.put(text, last);
                if let Some(part) = pending.take(count) {
                    return Ok(part);
                }
            }
        }))
    }

    /// Forgets what was not read: a write has changed the question.
    fn reset(&self) {
        self.pending.put(Bytes::new(), false);
        let mut pending = self.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = (Bytes::new(), false);
    }
}

impl Handle for Reading {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        Reading::read(self, count)
    }

    fn write(&self, _offset: u64, _data: Bytes) -> Answer<usize> {
        Answer::Now(Err(not_for("writing")))
    }
}

fn open_of(asked: &Asked<'_>) -> Open {
    Open { server: asked.server.clone(), who: asked.who.clone(), object: asked.object }
}

/// `vms/ID/wait`: one line, when the VM has settled or is gone.
pub(super) fn wait(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let (engine, id) = (asked.server.engine().clone(), VmId(asked.object));
    Ok(Arc::new(Reading::new(move || {
        let engine = engine.clone();
        async move {
            let mut changes = engine.changes();
            loop {
                changes.borrow_and_update();
                match engine.state().vm(id) {
                    None => return Ok((Bytes::from_static(b"deleted\n"), true)),
                    Some(vm) if vm.settled() => return Ok((Bytes::from(format!("{}\n", vm.actual)), true)),
                    Some(_) if how.nonblock => return Ok((Bytes::new(), true)),
                    Some(_) => changes.changed().await.map_err(|_| going_down())?,
                }
            }
        }
    })))
}

fn going_down() -> Refusal {
    Refusal::again("interrupted: the node is going down")
}

/// `sync`: the number up to which this tree is now current.
pub(super) fn sync(asked: &Asked<'_>, _how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    Ok(Arc::new(Reading::new(move || {
        let engine = engine.clone();
        async move { Ok((Bytes::from(format!("{}\n", engine.barrier().await?)), true)) }
    })))
}

/// A stream that can be told where to go on, by writing `from=SEQ`.
struct Resumable {
    open: Open,
    reading: Reading,
    after: Arc<Mutex<u64>>,
}

impl Handle for Resumable {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        self.reading.read(count)
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let from = || -> Result<u64, Refusal> {
            let lines = attrs::parse_lines(&data)?;
            let words: Vec<_> = lines.into_iter().flat_map(|l| l.attrs).collect();
            let wrong =
                || Refusal::invalid("invalid text: only from=SEQ can be written here, and the stream goes on there");
            let attributes = super::verbs::Attributes::new(&words, &["from"], "a stream")?;
            attributes.number("from")?.ok_or_else(wrong)
        };
        Answer::Now(self.open.noted(from()).map(|from| {
            *self.after.lock().unwrap_or_else(PoisonError::into_inner) = from.saturating_sub(1);
            self.reading.reset();
            data.len()
        }))
    }
}

/// Which events a stream shows.
#[derive(Clone, Copy)]
enum Filter {
    All,
    Vms,
    Vm(VmId),
    Node(u64),
}

impl Filter {
    fn shows(self, event: &Event) -> bool {
        match (self, &event.subject) {
            (Filter::All, _) | (Filter::Vms, Subject::Vm(_)) => true,
            (Filter::Vm(id), Subject::Vm(vm)) => id == *vm,
            (Filter::Node(id), Subject::Node(node)) => id == node.0,
            _ => false,
        }
    }
}

/// `/events`.
pub(super) fn all_events(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    events(asked, how, Filter::All, asked.state.seq(), String::new())
}

/// `/vms/events`.
pub(super) fn vms_events(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    events(asked, how, Filter::Vms, asked.state.seq(), String::new())
}

/// `/nodes/NAME/events`.
pub(super) fn node_events(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    events(asked, how, Filter::Node(asked.object), asked.state.seq(), String::new())
}

/// `/vms/ID/events`: the VM's history, then live.
pub(super) fn vm_events(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let id = VmId(asked.object);
    let mut past = String::new();
    if let Some(vm) = asked.state.vm(id) {
        past.extend(vm.events().map(|event| format!("{event}\n")));
    }
    events(asked, how, Filter::Vm(id), asked.state.seq(), past)
}

fn events(
    asked: &Asked<'_>,
    how: OpenMode,
    filter: Filter,
    after: u64,
    past: String,
) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    let after = Arc::new(Mutex::new(after));
    let cursor = after.clone();
    let reading = Reading::new(move || next_events(engine.clone(), cursor.clone(), filter, how.nonblock));
    if !past.is_empty() {
        reading.pending.put(past, false);
    }
    Ok(Arc::new(Resumable { open: open_of(asked), reading, after }))
}

/// The next events that the filter shows; waits for one.
async fn next_events(
    engine: Engine,
    cursor: Arc<Mutex<u64>>,
    filter: Filter,
    nonblock: bool,
) -> Result<(Bytes, bool), Refusal> {
    let mut changes = engine.changes();
    loop {
        changes.borrow_and_update();
        let after = *cursor.lock().unwrap_or_else(PoisonError::into_inner);
        match engine.events_after(after, BATCH_MAX) {
            Events::Lost { oldest } => {
                let text = format!(
                    "# lost: events up to {oldest} are gone here; go on with from={}, or see /log\n",
                    oldest + 1
                );
                return Ok((Bytes::from(text), true));
            }
            Events::Some(events) => {
                if let Some(last) = events.last() {
                    *cursor.lock().unwrap_or_else(PoisonError::into_inner) = last.seq;
                }
                let text: String = events.iter().filter(|e| filter.shows(e)).map(|e| format!("{e}\n")).collect();
                if !text.is_empty() {
                    return Ok((Bytes::from(text), false));
                }
                if events.is_empty() {
                    if nonblock {
                        return Ok((Bytes::new(), true));
                    }
                    changes.changed().await.map_err(|_| going_down())?;
                }
            }
        }
    }
}

/// `/log`: the audit trail, up to now; `from=SEQ` goes on there.
pub(super) fn audit(asked: &Asked<'_>, _how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    let after = Arc::new(Mutex::new(0));
    let cursor = after.clone();
    let upto = asked.state.seq();
    let reading = Reading::new(move || next_lines(engine.clone(), cursor.clone(), upto));
    Ok(Arc::new(Resumable { open: open_of(asked), reading, after }))
}

async fn next_lines(engine: Engine, cursor: Arc<Mutex<u64>>, upto: u64) -> Result<(Bytes, bool), Refusal> {
    let after = *cursor.lock().unwrap_or_else(PoisonError::into_inner);
    let found = engine.audit_after(after, BATCH_MAX).await?;
    let seq = |line: &String| line.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let last = found.lines.last().and_then(seq);
    let mut text = String::new();
    if after == 0 && found.begins > 1 {
        text.push_str(&format!("# the trail begins at {}\n", found.begins));
    }
    for line in found.lines.iter().filter(|l| seq(l).is_none_or(|n| n <= upto)) {
        text.push_str(line);
        text.push('\n');
    }
    if let Some(last) = last {
        *cursor.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }
    Ok((Bytes::from(text), last.is_none_or(|last| last >= upto)))
}

/// `vms/ID/console`: the serial console, both ways at once.
pub(super) fn console(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    Ok(Arc::new(ConsoleHandle {
        open: open_of(asked),
        line: Arc::new(tokio::sync::OnceCell::new()),
        pending: Arc::default(),
        nonblock: how.nonblock,
    }))
}

/// Readers share the line's end: what one has got the other has not.
struct Line {
    output: Mutex<Option<tokio::sync::broadcast::Receiver<Bytes>>>,
    input: tokio::sync::mpsc::Sender<Bytes>,
}

struct ConsoleHandle {
    open: Open,
    /// Opened at the first use, since that takes time.
    line: Arc<tokio::sync::OnceCell<Line>>,
    pending: Arc<Pending>,
    nonblock: bool,
}

async fn line_of(open: &Open, cell: &tokio::sync::OnceCell<Line>) -> Result<(), Refusal> {
    let connect = || async {
        let Console { output, input } = open.server.host().console(VmId(open.object)).await?;
        Ok(Line { output: Mutex::new(Some(output)), input })
    };
    cell.get_or_try_init(connect).await.map(drop)
}

impl Handle for ConsoleHandle {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        if let Some(part) = self.pending.take(count) {
            return Answer::Now(Ok(part));
        }
        let (open, cell, pending, nonblock) =
            (self.open.clone(), self.line.clone(), self.pending.clone(), self.nonblock);
        Answer::Later(Box::pin(async move {
            line_of(&open, &cell).await?;
            let Some(line) = cell.get() else { return Ok(Bytes::new()) };
            let output = line.output.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(output) = output else {
                return Err(Refusal::busy("busy: another read of this open console is waiting already"));
            };
            let mut output = Lent { line, output: Some(output) };
            output.read(nonblock).await.map(|piece| {
                let part = slice(&piece, 0, count);
                pending.put(piece.slice(part.len()..), false);
                part
            })
        }))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let (open, cell) = (self.open.clone(), self.line.clone());
        Answer::Later(Box::pin(async move {
            open.noted(line_of(&open, &cell).await)?;
            let Some(line) = cell.get() else { return Ok(0) };
            let length = data.len();
            let gone = |_| Refusal::busy("busy with nothing: the machine is not running any more");
            open.noted(line.input.send(data).await.map_err(gone))?;
            Ok(length)
        }))
    }
}

/// The receiving end, given back even when the wait is dropped.
struct Lent<'l> {
    line: &'l Line,
    output: Option<tokio::sync::broadcast::Receiver<Bytes>>,
}

impl Lent<'_> {
    /// The next piece; empty at the machine's end.
    async fn read(&mut self, nonblock: bool) -> Result<Bytes, Refusal> {
        let Some(output) = &mut self.output else { return Ok(Bytes::new()) };
        let lost = |n: u64| Ok(Bytes::from(format!("\n# lost: {n} pieces of output; vms/ID/log has them\n")));
        if nonblock {
            return match output.try_recv() {
                Ok(piece) => Ok(piece),
                Err(TryRecvError::Lagged(n)) => lost(n),
                Err(TryRecvError::Empty | TryRecvError::Closed) => Ok(Bytes::new()),
            };
        }
        match output.recv().await {
            Ok(piece) => Ok(piece),
            Err(RecvError::Lagged(n)) => lost(n),
            Err(RecvError::Closed) => Ok(Bytes::new()),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.line.output.lock().unwrap_or_else(PoisonError::into_inner) = self.output.take();
    }
}
