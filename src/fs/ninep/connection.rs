//! One connection: moves bytes between a socket and a session, in one task, so that a message costs no hand-over.
//!
//! Backpressure: while much is unsent, nothing more is read, handled, or fetched from what has become ready.

use super::limits::{DRAIN_WITHIN, FIRST_MESSAGE_WITHIN, UNSENT_BYTES_MAX};
use super::session::{Broken, Session};
use crate::ninep::Malformed;
use crate::ninep::frame::{Input, Output};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client closed it.
    #[error("the client closed it")]
    Closed,
    /// The client did not keep to the protocol.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// No version was agreed on in time.
    #[error("no version was agreed on within {} s", FIRST_MESSAGE_WITHIN.as_secs())]
    Silent,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> Self {
        End::Broken(malformed.into())
    }
}

/// A connection.
pub(super) struct Connection<S> {
    stream: S,
    input: Input,
    output: Output,
    session: Session,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection over this stream.
    pub fn new(stream: S, session: Session) -> Self {
        Connection { stream, input: Input::default(), output: Output::default(), session }
    }

    /// Serves it until it ends.
    pub async fn run(mut self) -> End {
        let begun = timeout(FIRST_MESSAGE_WITHIN, self.serve_while(|session| !session.has_begun())).await;
        let end = match begun {
            Err(_elapsed) => End::Silent,
            Ok(Err(end)) => end,
            Ok(Ok(())) => match self.serve_while(|_| true).await {
                Ok(()) => End::Closed,
                Err(end) => end,
            },
        };
        if matches!(end, End::Closed) {
            // The client has said its last; it may still read the answers.
            let _ = timeout(DRAIN_WITHIN, poll_fn(|context| self.poll_drain(context))).await;
        }
        end
    }

    async fn serve_while(&mut self, goes_on: fn(&Session) -> bool) -> Result<(), End> {
        while goes_on(&self.session) {
            if !self.handle_next()? {
                poll_fn(|context| self.poll_move(context)).await?;
            }
        }
        Ok(())
    }

    fn may_take_more(&self) -> bool {
        self.output.len() < UNSENT_BYTES_MAX
    }

    /// Handles the next message if it is whole and there is room for its answer.
    fn handle_next(&mut self) -> Result<bool, End> {
        if !self.may_take_more() {
            return Ok(false);
        }
        let Some((header, body)) = self.input.message(self.session.size_max())? else { return Ok(false) };
        self.session.handle(header, body, &mut self.output)?;
        self.session.count();
        self.input.consume(header);
        Ok(true)
    }

    /// Sends, answers what has become ready, receives: whatever can be done; pending if nothing can.
    fn poll_move(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        let held_back = !self.may_take_more();
        // What can't be sent now wakes us when it can; there may be other things to do until then.
        let _all_sent = self.output.poll_send_all(&mut self.stream, context)?.is_ready();
        if !self.may_take_more() {
            return Poll::Pending;
        }
        if self.session.poll_waiting(&mut self.output, context)?.is_ready() || held_back {
            return Poll::Ready(Ok(()));
        }
        match self.input.poll_fill(&mut self.stream, context)? {
            Poll::Ready(0) => Poll::Ready(Err(End::Closed)),
            Poll::Ready(_) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_send_all(&mut self.stream, context)
    }
}
