//! `vms/ID/console`: the serial console, both ways at once through one open.

use super::forward;
use super::handles::{Open, slice};
use super::table::Asked;
use super::tree::{Answer, Handle, OpenMode};
use crate::engine::hypervisor::Console;
use crate::engine::state::VmId;
use crate::text::Refusal;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OnceCell, broadcast, mpsc};

/// Opens it; the machine is asked for it at the first use.
pub(super) fn open(asked: &Asked<'_>, how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
    if let Some(elsewhere) = forward::of_vm(asked, "console", how, None)? {
        return Ok(elsewhere);
    }
    Ok(Arc::new(ConsoleHandle { shared: Arc::new(Shared::new(Open::of(asked), how.nonblock)) }))
}

/// The line to the machine.
struct Line {
    input: mpsc::Sender<Bytes>,
    /// None while somebody reads.
    output: Mutex<Option<Output>>,
}

/// What the machine prints.
struct Output {
    pieces: broadcast::Receiver<Bytes>,
    /// Of the last piece, not read yet.
    rest: Bytes,
}

struct Shared {
    open: Open,
    nonblock: bool,
    line: OnceCell<Line>,
}

struct ConsoleHandle {
    shared: Arc<Shared>,
}

impl Shared {
    fn new(open: Open, nonblock: bool) -> Shared {
        Shared { open, nonblock, line: OnceCell::new() }
    }

    async fn line(&self) -> Result<&Line, Refusal> {
        let connect = || async {
            let Console { output: pieces, input } = self.open.server.host().console(VmId(self.open.object)).await?;
            Ok(Line { input, output: Mutex::new(Some(Output { pieces, rest: Bytes::new() })) })
        };
        self.line.get_or_try_init(connect).await
    }

    async fn read(&self, count: usize) -> Result<Bytes, Refusal> {
        let line = self.line().await?;
        let Some(mut lent) = Lent::of(line) else {
            return Err(Refusal::busy("busy: another read of this open console is waiting already"));
        };
        lent.read(count, self.nonblock).await
    }

    async fn write(&self, data: Bytes) -> Result<usize, Refusal> {
        let (line, length) = (self.line().await?, data.len());
        let gone = |_closed| Refusal::busy("busy with nothing: the machine is not running any more");
        line.input.send(data).await.map_err(gone)?;
        Ok(length)
    }
}

impl Handle for ConsoleHandle {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        if count == 0 {
            return Answer::Now(Ok(Bytes::new()));
        }
        let shared = self.shared.clone();
        Answer::Later(Box::pin(async move { shared.read(count).await }))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let shared = self.shared.clone();
        Answer::Later(Box::pin(async move {
            let written = shared.write(data).await;
            shared.open.noted(written)
        }))
    }
}

/// The output in the hands of the one reader who waits; given back even when the wait is dropped.
struct Lent<'l> {
    line: &'l Line,
    output: Option<Output>,
}

impl Lent<'_> {
    fn of(line: &Line) -> Option<Lent<'_>> {
        let output = line.output.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Lent { line, output: Some(output) })
    }

    /// Up to `count` bytes of the next piece; none at the machine's end.
    async fn read(&mut self, count: usize, nonblock: bool) -> Result<Bytes, Refusal> {
        let Some(output) = &mut self.output else { return Ok(Bytes::new()) };
        if output.rest.is_empty() {
            output.rest = output.next(nonblock).await;
        }
        let part = slice(&output.rest, 0, count);
        output.rest = output.rest.slice(part.len()..);
        Ok(part)
    }
}

impl Output {
    async fn next(&mut self, nonblock: bool) -> Bytes {
        let lost = |n: u64| Bytes::from(format!("\n# lost: {n} pieces of output; vms/ID/log has them\n"));
        if nonblock {
            return match self.pieces.try_recv() {
                Ok(piece) => piece,
                Err(TryRecvError::Lagged(n)) => lost(n),
                Err(TryRecvError::Empty | TryRecvError::Closed) => Bytes::new(),
            };
        }
        match self.pieces.recv().await {
            Ok(piece) => piece,
            Err(RecvError::Lagged(n)) => lost(n),
            Err(RecvError::Closed) => Bytes::new(),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.line.output.lock().unwrap_or_else(PoisonError::into_inner) = self.output.take();
    }
}
