//! The lower half of the client: requests and answers by tag over one stream, cancelled with Tflush when nobody waits for
//! them any more.
//!
//! Who asks puts the request into the output under a short lock and wakes the driver, a task that owns the stream; the
//! answer comes back over a channel of its own. A tag stays taken until its answer, or the Rflush, is here.

use super::ClientError;
use crate::ninep::frame::{Input, Output};
use crate::ninep::{Dialect, Malformed, Reply, Request};
use bytes::Bytes;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};

/// Requests at a time. Whoever comes later waits for a tag.
const REQUESTS_MAX: u16 = 1024;
/// The Tflush of the request with tag T has the tag T + this.
const FLUSH_TAG: u16 = 0x4000;
/// The Tversion of the beginning.
const VERSION_TAG: u16 = crate::ninep::NOTAG;

/// A reply that has arrived.
pub(super) struct Answered {
    kind: u8,
    body: Bytes,
}

impl Answered {
    /// The reply.
    pub fn reply(&self) -> Result<Reply<'_>, ClientError> {
        match Reply::decode(Dialect::L, self.kind, &self.body) {
            // A server that speaks no .L answers a Tversion which it refuses as 9P2000 has it.
            Err(Malformed::UnknownType { .. }) => Ok(Reply::decode(Dialect::Plain, self.kind, &self.body)?),
            decoded => Ok(decoded?),
        }
    }

    /// The part of the body that `data`, which was decoded from it, stands for.
    pub fn part(&self, data: &[u8]) -> Bytes {
        self.body.slice_ref(data)
    }
}

/// One request's place.
enum Slot {
    /// Somebody waits.
    Asked(oneshot::Sender<Answered>),
    /// Nobody does any more: a Tflush was sent.
    Flushed,
    /// A Tclunk that nobody waits for.
    Clunk,
}

#[derive(Default)]
struct State {
    output: Output,
    slots: HashMap<u16, Slot>,
    free: Vec<u16>,
    /// Fids that nobody uses any more, and for whose Tclunk there was no tag.
    to_clunk: Vec<u32>,
    driver: Option<Waker>,
    /// No requests any more: the client was dropped, or the stream has ended for this reason.
    closed: Option<String>,
    msize: u32,
    next_fid: u32,
}

/// The shared half of a connection.
pub(super) struct Connection {
    state: Mutex<State>,
    /// One permit for each free tag.
    tags: Semaphore,
}

impl Connection {
    /// A connection over this stream, whose driver runs until [`Connection::close`].
    pub fn start(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, msize: u32) -> Arc<Connection> {
        let state = State { free: (0..REQUESTS_MAX).rev().collect(), msize, next_fid: 1, ..State::default() };
        let tags = Semaphore::new(REQUESTS_MAX.into());
        let connection = Arc::new(Connection { state: Mutex::new(state), tags });
        tokio::spawn(connection.clone().drive(stream));
        connection
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What Rversion said.
    pub fn agree(&self, msize: u32) {
        self.state().msize = msize;
    }

    /// The most data in one message.
    pub fn data_max(&self) -> u32 {
        self.state().msize.saturating_sub(crate::ninep::IO_HEADER_BYTES)
    }

    /// A number that no fid has had.
    pub fn new_fid(&self) -> u32 {
        let mut state = self.state();
        let number = state.next_fid;
        state.next_fid = number.wrapping_add(1);
        number
    }

    /// Asks, and waits for the answer. Dropping the future cancels the request.
    pub async fn ask(self: &Arc<Self>, request: &Request<'_>) -> Result<Answered, ClientError> {
        // The permit comes back with the tag.
        self.tags.acquire().await.map_err(|_| self.closed())?.forget();
        let (sender, receiver) = oneshot::channel();
        let asked = self.send(request, Slot::Asked(sender))?;
        let answered = receiver.await.map_err(|_| self.closed())?;
        asked.done();
        match answered.reply()? {
            Reply::Lerror { ecode } => Err(ClientError::Refused { errno: i32::try_from(ecode).unwrap_or(i32::MAX) }),
            Reply::Error { ename, .. } => Err(ClientError::Protocol(format!("the server said: {ename}"))),
            _ => Ok(answered),
        }
    }

    fn closed(&self) -> ClientError {
        ClientError::Closed(self.state().closed.clone().unwrap_or_default())
    }

    fn send(self: &Arc<Self>, request: &Request<'_>, slot: Slot) -> Result<Asked, ClientError> {
        let mut state = self.state();
        if let Some(why) = &state.closed {
            return Err(ClientError::Closed(why.clone()));
        }
        let tag = match request {
            Request::Version { .. } => VERSION_TAG,
            _ => state.free.pop().ok_or_else(|| ClientError::Protocol("no tag is free".into()))?,
        };
        if let Err(malformed) = state.output.request(Dialect::L, tag, request) {
            self.free(&mut state, tag);
            return Err(malformed.into());
        }
        state.slots.insert(tag, slot);
        state.wake();
        Ok(Asked { connection: self.clone(), tag: Some(tag) })
    }

    fn free(&self, state: &mut State, tag: u16) {
        if tag < REQUESTS_MAX {
            state.free.push(tag);
        }
        self.tags.add_permits(1);
        while let Some(fid) = state.to_clunk.pop() {
            if !self.try_clunk(state, fid) {
                state.to_clunk.push(fid);
                break;
            }
        }
    }

    /// Forgets a fid, without waiting for the answer.
    pub fn clunk_later(&self, fid: u32) {
        let mut state = self.state();
        if state.closed.is_none() && !self.try_clunk(&mut state, fid) {
            state.to_clunk.push(fid);
        }
        state.wake();
    }

    fn try_clunk(&self, state: &mut State, fid: u32) -> bool {
        let (Ok(permit), Some(tag)) = (self.tags.try_acquire(), state.free.last().copied()) else { return false };
        if state.output.request(Dialect::L, tag, &Request::Clunk { fid }).is_ok() {
            permit.forget();
            state.free.pop();
            state.slots.insert(tag, Slot::Clunk);
        }
        true
    }

    /// Nobody waits for this request any more.
    fn cancel(&self, tag: u16) {
        let mut state = self.state();
        // It may have been answered a moment ago, and its tag may be another's by now, who does wait.
        if !matches!(state.slots.get(&tag), Some(Slot::Asked(sender)) if sender.is_closed()) || tag == VERSION_TAG {
            return;
        }
        state.slots.insert(tag, Slot::Flushed);
        // A Tflush is too short to fail.
        let _ = state.output.request(Dialect::L, tag + FLUSH_TAG, &Request::Flush { oldtag: tag });
        state.wake();
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.end("it was closed here");
    }

    fn end(&self, why: &str) {
        let mut state = self.state();
        state.closed.get_or_insert_with(|| why.to_owned());
        // Dropping the senders tells everybody who waits.
        state.slots.clear();
        state.wake();
        self.tags.close();
    }

    async fn drive(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut input = Input::default();
        let why = poll_fn(|context| self.poll_drive(&mut stream, &mut input, context)).await;
        self.end(&why);
    }

    /// Sends and receives until the stream ends; says why it did.
    fn poll_drive(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        input: &mut Input,
        context: &mut Context<'_>,
    ) -> Poll<String> {
        loop {
            if let Poll::Ready(why) = self.poll_send(stream, context) {
                return Poll::Ready(why);
            }
            match input.poll_fill(stream, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready("the server closed it".into()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
            }
            if let Err(malformed) = self.take_answers(input) {
                return Poll::Ready(malformed.to_string());
            }
        }
    }

    fn poll_send(&self, stream: &mut (impl AsyncWrite + Unpin), context: &mut Context<'_>) -> Poll<String> {
        let mut state = self.state();
        if let Some(why) = &state.closed {
            return Poll::Ready(why.clone());
        }
        state.driver = Some(context.waker().clone());
        match state.output.poll_send_all(stream, context) {
            Poll::Ready(Err(error)) => Poll::Ready(error.to_string()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    fn take_answers(&self, input: &mut Input) -> Result<(), Malformed> {
        let mut state = self.state();
        while let Some((header, body)) = input.message(state.msize)? {
            // The answer to a Tflush frees the tag of what it cancelled.
            let flushed = header.tag.checked_sub(FLUSH_TAG).filter(|tag| *tag < REQUESTS_MAX);
            let tag = flushed.unwrap_or(header.tag);
            let was_flush = flushed.is_some();
            match state.slots.remove(&tag) {
                Some(Slot::Flushed) if !was_flush => {
                    state.slots.insert(tag, Slot::Flushed);
                }
                Some(Slot::Asked(sender)) => {
                    // Nobody receives it if its request was dropped a moment ago; `cancel` then finds no slot.
                    let _ = sender.send(Answered { kind: header.kind, body: Bytes::copy_from_slice(body) });
                    self.free(&mut state, tag);
                }
                Some(Slot::Flushed | Slot::Clunk) => self.free(&mut state, tag),
                None => {}
            }
            input.consume(header);
        }
        Ok(())
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}

/// A request that somebody waits for; dropped before it is done, it is cancelled.
struct Asked {
    connection: Arc<Connection>,
    tag: Option<u16>,
}

impl Asked {
    fn done(mut self) {
        self.tag = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(tag) = self.tag.take() {
            self.connection.cancel(tag);
        }
    }
}
