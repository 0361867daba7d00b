//! Open files that wait or never end. They ignore offsets: one cursor an open, which a write sets back.
//!
//! A stream asks its source for the next piece whenever what it gave has been read. Readers of one open share the cursor:
//! each piece goes to one of them, in order, none twice. Every wait is for a change of the state, and ends when its
//! future is dropped.

use super::handles::Open;
use super::table::Asked;
use super::tree::{Answer, Handle, OpenMode};
use super::verbs::Attributes;
use crate::engine::Engine;
use crate::engine::state::VmId;
use crate::text::{Attr, Refusal, attrs};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What a source has after a place.
pub(super) struct Piece {
    /// Text; empty: none that is shown.
    pub(super) text: Bytes,
    /// Up to where it goes. If that is where it was asked to begin and there is no text, there is nothing yet.
    pub(super) upto: u64,
    /// Of something large that comes in parts: which part is next; 0: another thing begins.
    pub(super) part: usize,
    /// The stream ends with it.
    pub(super) end: bool,
}

/// Where a source is to begin, and the newest entry when the stream was opened or set back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) after: u64,
    pub(super) newest: u64,
    /// See [`Piece::part`].
    pub(super) part: usize,
}

/// What a stream is read from.
pub(super) type Source = Box<dyn Fn(Range) -> BoxFuture<'static, Result<Piece, Refusal>> + Send + Sync>;

/// How far an open has been read.
struct Cursor {
    /// Counts the pieces and the setting back: who has waited sees whether it is still where it was.
    turn: u64,
    range: Range,
    /// Given by the source, not read yet.
    pending: Bytes,
    ended: bool,
}

struct Shared {
    open: Open,
    source: Source,
    cursor: Mutex<Cursor>,
    /// Wakes readers when a write has set the cursor back.
    set_back: watch::Sender<()>,
    nonblock: bool,
    resumable: bool,
}

/// An open stream.
pub(super) struct Stream(Arc<Shared>);

impl Stream {
    /// One that begins after the entry `after`.
    pub(super) fn new(asked: &Asked<'_>, how: OpenMode, after: u64, source: Source) -> Stream {
        let range = Range { after, newest: asked.state.seq(), part: 0 };
        let cursor = Mutex::new(Cursor { turn: 0, range, pending: Bytes::new(), ended: false });
        let (open, set_back) = (Open::of(asked), watch::Sender::new(()));
        Stream(Arc::new(Shared { open, source, cursor, set_back, nonblock: how.nonblock, resumable: false }))
    }

    /// With a text that comes before all else.
    pub(super) fn beginning_with(self, text: String) -> Stream {
        self.0.cursor().pending = Bytes::from(text);
        self
    }

    /// That takes `from=SEQ`, and goes on there.
    pub(super) fn resumable(self) -> Stream {
        match Arc::try_unwrap(self.0) {
            Ok(shared) => Stream(Arc::new(Shared { resumable: true, ..shared })),
            Err(shared) => Stream(shared),
        }
    }
}

impl Shared {
    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> &Engine {
        self.open.server.engine()
    }

    /// Up to `count` bytes of what is there; None: the source is to be asked.
    fn take(&self, count: usize) -> Option<Bytes> {
        let mut cursor = self.cursor();
        match cursor.pending.len() {
            0 => cursor.ended.then(Bytes::new),
            length => Some(cursor.pending.split_to(count.min(length))),
        }
    }

    /// Keeps what the source gave, unless another reader or a write was faster. True: there is nothing yet.
    fn put(&self, turn: u64, piece: Piece) -> bool {
        let mut cursor = self.cursor();
        if cursor.turn != turn {
            return false;
        }
        let nothing = piece.text.is_empty() && piece.upto == cursor.range.after && !piece.end;
        if !nothing {
            cursor.turn += 1;
            cursor.range.part = piece.part;
            (cursor.range.after, cursor.pending, cursor.ended) = (piece.upto, piece.text, piece.end);
        }
        nothing
    }

    async fn read(&self, count: usize) -> Result<Bytes, Refusal> {
        let (mut changes, mut set_back) = (self.engine().changes(), self.set_back.subscribe());
        loop {
            changes.borrow_and_update();
            set_back.borrow_and_update();
            if let Some(part) = self.take(count) {
                return Ok(part);
            }
            let (turn, range) = {
                let cursor = self.cursor();
                (cursor.turn, cursor.range)
            };
            let piece = (self.source)(range).await?;
            if !self.put(turn, piece) {
                continue;
            }
            if self.nonblock {
                return Ok(Bytes::new());
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_closed| going_down())?,
                _again = set_back.changed() => {}
            }
        }
    }

    fn go_on(&self, from: u64) {
        let newest = self.engine().state().seq();
        {
            let mut cursor = self.cursor();
            let range = Range { after: from.saturating_sub(1), newest, part: 0 };
            *cursor = Cursor { turn: cursor.turn + 1, range, pending: Bytes::new(), ended: false };
        }
        self.set_back.send_replace(());
    }
}

fn going_down() -> Refusal {
    Refusal::again("interrupted: the node is going down")
}

/// The number of `from=SEQ`, the only thing that can be written to a stream.
fn from_of(data: &[u8]) -> Result<u64, Refusal> {
    let lines = attrs::parse_lines(data)?;
    let words: &[Attr] = match lines.as_slice() {
        [] => &[],
        [line] => &line.attrs,
        [_, second, ..] => {
            let number = second.number;
            return Err(Refusal::invalid(format!("line {number}: invalid text: a stream goes on at one place")));
        }
    };
    let missing = || Refusal::invalid("invalid text: only from=SEQ can be written here, and the stream goes on there");
    Attributes::new(words, &["from"], "a stream")?.number("from")?.ok_or_else(missing)
}

impl Handle for Stream {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        if count == 0 {
            return Answer::Now(Ok(Bytes::new()));
        }
        if let Some(part) = self.0.take(count) {
            return Answer::Now(Ok(part));
        }
        let shared = self.0.clone();
        Answer::Later(Box::pin(async move { shared.read(count).await }))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        if !self.0.resumable {
            return Answer::Now(Err(super::handles::not_for("writing")));
        }
        Answer::Now(self.0.open.noted(from_of(&data)).map(|from| {
            self.0.go_on(from);
            data.len()
        }))
    }
}

/// `vms/ID/wait`: one line, when the VM has settled or is gone.
pub(super) fn wait(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let (engine, id) = (asked.server.engine().clone(), VmId(asked.object));
    let look = move |range: Range| {
        let text = match engine.state().vm(id) {
            None => Some("deleted\n".to_owned()),
            Some(vm) => vm.settled().then(|| format!("{}\n", vm.actual)),
        };
        Piece { end: text.is_some(), text: text.unwrap_or_default().into(), upto: range.after, part: 0 }
    };
    let source = Box::new(move |range| -> BoxFuture<'static, _> { Box::pin(std::future::ready(Ok(look(range)))) });
    Ok(Arc::new(Stream::new(asked, how, 0, source)))
}

/// `sync`: the number up to which this tree is now current.
pub(super) fn sync(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    let engine = asked.server.engine().clone();
    let source = Box::new(move |range: Range| -> BoxFuture<'static, _> {
        let engine = engine.clone();
        Box::pin(async move {
            let text = format!("{}\n", engine.sync().await?);
            Ok(Piece { text: text.into(), upto: range.after, part: 0, end: true })
        })
    });
    Ok(Arc::new(Stream::new(asked, how, 0, source)))
}
