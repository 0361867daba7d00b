//! The lower half of the client: requests and answers by tag over one stream, cancelled with Tflush when nobody waits for
//! them any more.
//!
//! Who asks puts the request into the output under a short lock and sends as much as the stream takes at once; the driver, a
//! task, sends the rest and receives. An answer comes back over a channel of its own. A tag stays taken until its answer, or
//! the Rflush, is here.

use super::ClientError;
use crate::ninep::frame::{Input, Output};
use crate::ninep::tls::end_of;
use crate::ninep::{Dialect, Header, Malformed, Reply, Request, print};
use bytes::Bytes;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Requests at a time. Whoever comes later waits for a tag.
const REQUESTS_MAX: u16 = 1024;
/// The Tflush of the request with tag T has the tag T + this.
const FLUSH_TAG: u16 = 0x4000;
/// The Tversion of the beginning.
const VERSION_TAG: u16 = crate::ninep::NOTAG;
/// The most fids for whose Tclunk there is no tag: a server that leaves so many requests without an answer is given up.
const CLUNKS_MAX: usize = 16 * 1024;

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
    /// Somebody waits, until then at most; the answer is None if it did not come in time.
    Asked(oneshot::Sender<Option<Answered>>, Option<Instant>),
    /// Nobody does any more: a Tflush was sent.
    Flushed,
    /// A Tclunk that nobody waits for.
    Clunk,
}

/// Where requests go.
type Sink = Box<dyn AsyncWrite + Send + Unpin>;

struct State {
    sink: Sink,
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
    /// When the driver looks for requests whose time is over: not after the first deadline. One timer for all of them, which stays
    /// when its request is answered, so that a request costs none.
    looks_at: Option<Instant>,
}

/// The shared half of a connection.
pub(super) struct Connection {
    state: Mutex<State>,
    /// One permit for each free tag.
    tags: Semaphore,
    ended: CancellationToken,
    /// Every message is printed to the standard error.
    prints: bool,
}

impl Connection {
    /// A connection over this stream, whose driver runs until [`Connection::close`].
    pub fn start(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        msize: u32,
        prints: bool,
    ) -> Arc<Connection> {
        let (source, sink) = tokio::io::split(stream);
        let state = State {
            sink: Box::new(sink),
            output: Output::default(),
            slots: HashMap::new(),
            free: (0..REQUESTS_MAX).rev().collect(),
            to_clunk: Vec::new(),
            driver: None,
            closed: None,
            msize,
            next_fid: 1,
            looks_at: None,
        };
        let tags = Semaphore::new(REQUESTS_MAX.into());
        let connection =
            Arc::new(Connection { state: Mutex::new(state), tags, ended: CancellationToken::new(), prints });
        tokio::spawn(connection.clone().drive(source));
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

    /// Asks, and waits for the answer, as long as `limit` says if it is given. Dropping the future cancels the request.
    pub async fn ask(
        self: &Arc<Self>,
        limit: Option<Duration>,
        request: &Request<'_>,
    ) -> Result<Answered, ClientError> {
        let [answered] = self.ask_all(limit, [request]).await?;
        answered
    }

    /// Asks for several things at once, which the server does in this order, and waits for all answers.
    pub async fn ask_all<const N: usize>(
        self: &Arc<Self>,
        limit: Option<Duration>,
        requests: [&Request<'_>; N],
    ) -> Result<[Result<Answered, ClientError>; N], ClientError> {
        let count = u32::try_from(N).unwrap_or(u32::MAX);
        // The permits come back with the tags.
        match (self.tags.try_acquire_many(count), limit) {
            (Ok(permits), _) => permits.forget(),
            (Err(_), None) => self.tags.acquire_many(count).await.map_err(|_| self.closed())?.forget(),
            (Err(_), Some(limit)) => timeout(limit, self.tags.acquire_many(count))
                .await
                .map_err(|_elapsed| ClientError::TimedOut(limit))?
                .map_err(|_| self.closed())?
                .forget(),
        }
        let asked = self.send(limit, requests)?;
        let mut answers = asked.map(Err);
        for answer in &mut answers {
            if let Err(asked) = answer {
                let answered = asked.answer(limit).await;
                *answer = Ok(answered);
            }
        }
        Ok(answers.map(|answer| answer.unwrap_or_else(|_| Err(self.closed()))))
    }

    /// Resolves when the connection has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Why it has ended.
    fn why(&self) -> String {
        self.state().closed.clone().unwrap_or_default()
    }

    fn closed(&self) -> ClientError {
        ClientError::Closed(self.why())
    }

    fn send<const N: usize>(
        self: &Arc<Self>,
        limit: Option<Duration>,
        requests: [&Request<'_>; N],
    ) -> Result<[Asked; N], ClientError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.state();
        if let Some(why) = &state.closed {
            return Err(ClientError::Closed(why.clone()));
        }
        let asked = requests.map(|request| {
            let (sender, receiver) = oneshot::channel();
            let put = self.put(&mut state, request, Slot::Asked(sender, deadline));
            Asked { connection: self.clone(), put, answered: false, receiver }
        });
        state.send();
        state.look_at(deadline);
        Ok(asked)
    }

    /// Puts a request into the output, under a tag for which there is a permit.
    fn put(&self, state: &mut State, request: &Request<'_>, slot: Slot) -> Result<u16, Malformed> {
        let tag = match request {
            Request::Version { .. } => VERSION_TAG,
            // There are as many permits as free tags.
            _ => state.free.pop().ok_or(Malformed::TooLong(REQUESTS_MAX.into()))?,
        };
        if let Err(malformed) = state.output.request(Dialect::L, tag, request) {
            self.free(state, tag);
            return Err(malformed);
        }
        self.print(&print::request(Dialect::L, tag, request));
        state.slots.insert(tag, slot);
        Ok(tag)
    }

    fn print(&self, line: &dyn std::fmt::Display) {
        if self.prints {
            // If that can't be written, there is nobody who reads it.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
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
        if state.to_clunk.len() > CLUNKS_MAX {
            self.finish(state, "the server answers nothing any more");
        } else {
            state.send();
        }
    }

    fn try_clunk(&self, state: &mut State, fid: u32) -> bool {
        let Ok(permit) = self.tags.try_acquire() else { return false };
        permit.forget();
        // A Tclunk is too short to fail.
        self.put(state, &Request::Clunk { fid }, Slot::Clunk).is_ok()
    }

    /// Nobody waits for this request any more.
    fn cancel(&self, tag: u16) {
        let mut state = self.state();
        // It may have been answered a moment ago, and its tag may be another's by now, who does wait.
        if !matches!(state.slots.get(&tag), Some(Slot::Asked(sender, _)) if sender.is_closed()) || tag == VERSION_TAG {
            return;
        }
        self.flush(&mut state, tag);
        state.send();
    }

    fn flush(&self, state: &mut State, tag: u16) {
        state.slots.insert(tag, Slot::Flushed);
        let (tag, flush) = (tag + FLUSH_TAG, Request::Flush { oldtag: tag });
        // A Tflush is too short to fail.
        let _ = state.output.request(Dialect::L, tag, &flush);
        self.print(&print::request(Dialect::L, tag, &flush));
    }

    /// Ends what has waited for too long.
    fn end_overdue(&self, now: Instant) {
        let mut state = self.state();
        let (mut overdue, mut next) = (Vec::new(), None);
        for (tag, slot) in &state.slots {
            match slot {
                Slot::Asked(_, Some(deadline)) if *deadline <= now => overdue.push(*tag),
                Slot::Asked(_, Some(deadline)) => {
                    next = Some(next.map_or(*deadline, |next: Instant| next.min(*deadline)))
                }
                _ => {}
            }
        }
        for tag in overdue {
            if let Some(Slot::Asked(sender, _)) = state.slots.remove(&tag) {
                // Nobody receives it if its request was dropped a moment ago.
                let _ = sender.send(None);
                self.flush(&mut state, tag);
            }
        }
        state.looks_at = next;
        state.send();
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.end("it was closed here");
    }

    fn end(&self, why: &str) {
        self.finish(self.state(), why);
    }

    fn finish(&self, mut state: MutexGuard<'_, State>, why: &str) {
        state.closed.get_or_insert_with(|| why.to_owned());
        state.to_clunk = Vec::new();
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
        // Dropping the senders tells everybody who waits, outside the lock.
        let slots = std::mem::take(&mut state.slots);
        // Files that are still open keep their half of it, but not the socket.
        state.sink = Box::new(tokio::io::sink());
        drop(state);
        drop(slots);
        self.tags.close();
        self.ended.cancel();
    }

    async fn drive(self: Arc<Self>, mut source: impl AsyncRead + Unpin) {
        let mut input = Input::default();
        let mut alarm = pin!(sleep_until(Instant::now()));
        let driven = poll_fn(|context| {
            while let Some(at) = self.looks_at() {
                if alarm.deadline() != at {
                    alarm.as_mut().reset(at);
                }
                match alarm.as_mut().poll(context) {
                    Poll::Ready(()) => self.end_overdue(Instant::now()),
                    Poll::Pending => break,
                }
            }
            self.poll_drive(&mut source, &mut input, context)
        });
        let why = driven.await;
        self.end(&why);
    }

    fn looks_at(&self) -> Option<Instant> {
        self.state().looks_at
    }

    /// Sends and receives until the stream ends; says why it did.
    fn poll_drive(
        &self,
        source: &mut (impl AsyncRead + Unpin),
        input: &mut Input,
        context: &mut Context<'_>,
    ) -> Poll<String> {
        if let Poll::Ready(why) = self.state().poll_send_all(context) {
            return Poll::Ready(why);
        }
        loop {
            match input.poll_fill(source, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready("the server closed it".into()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(end_of(&error)),
            }
            if let Err(why) = self.take_answers(input) {
                return Poll::Ready(why.to_string());
            }
        }
    }

    fn take_answers(&self, input: &mut Input) -> Result<(), Wrong> {
        let mut state = self.state();
        while let Some((header, body)) = input.message(state.msize)? {
            if self.prints {
                self.print_reply(header, body);
            }
            // The answer to a Tflush frees the tag of what it cancelled.
            let flushed = header.tag.checked_sub(FLUSH_TAG).filter(|tag| *tag < REQUESTS_MAX);
            let tag = flushed.unwrap_or(header.tag);
            let was_flush = flushed.is_some();
            match state.slots.remove(&tag) {
                // It was answered before the Tflush came to the server.
                Some(Slot::Flushed) if !was_flush => {
                    state.slots.insert(tag, Slot::Flushed);
                }
                Some(Slot::Flushed) => self.free(&mut state, tag),
                Some(_) | None if was_flush => return Err(Wrong::Tag(header.tag)),
                Some(Slot::Asked(sender, _)) => {
                    // Nobody receives it if its request was dropped a moment ago; `cancel` then finds no slot.
                    let _ = sender.send(Some(Answered { kind: header.kind, body: Bytes::copy_from_slice(body) }));
                    self.free(&mut state, tag);
                }
                Some(Slot::Clunk) => self.free(&mut state, tag),
                None => return Err(Wrong::Tag(header.tag)),
            }
            input.consume(header);
        }
        state.send();
        Ok(())
    }

    fn print_reply(&self, header: Header, body: &[u8]) {
        match Reply::decode(Dialect::L, header.kind, body) {
            Ok(reply) => self.print(&print::reply(Dialect::L, header.tag, &reply)),
            Err(malformed) => self.print(&format_args!("type {} tag {}: {malformed}", header.kind, header.tag)),
        }
    }
}

/// What the server must not send.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("the server does not keep to the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("the server does not keep to the protocol: it answers what nobody has asked, with the tag {0}")]
    Tag(u16),
}

impl State {
    /// Sends what the stream takes at once. The driver hears when it takes more.
    fn send(&mut self) {
        // Before its first turn there is nobody to be told.
        let Some(driver) = self.driver.clone() else { return };
        if self.poll_send_all(&mut Context::from_waker(&driver)).is_ready() {
            // The driver meets the same, and ends.
            driver.wake();
        }
    }

    /// The driver is to look for what is overdue by then.
    fn look_at(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.looks_at.is_none_or(|at| deadline < at) {
            self.looks_at = Some(deadline);
            if let Some(driver) = &self.driver {
                driver.wake_by_ref();
            }
        }
    }

    /// Sends until nothing is left; ready with the reason if that can't be done any more.
    fn poll_send_all(&mut self, context: &mut Context<'_>) -> Poll<String> {
        if let Some(why) = &self.closed {
            return Poll::Ready(why.clone());
        }
        if self.driver.as_ref().is_none_or(|driver| !driver.will_wake(context.waker())) {
            self.driver = Some(context.waker().clone());
        }
        match self.output.poll_send_all(&mut self.sink, context) {
            Poll::Ready(Err(error)) => Poll::Ready(error.to_string()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

/// A request that somebody waits for; dropped before it is answered, it is cancelled.
struct Asked {
    connection: Arc<Connection>,
    /// Its tag, if it could be sent.
    put: Result<u16, Malformed>,
    answered: bool,
    receiver: oneshot::Receiver<Option<Answered>>,
}

impl Asked {
    async fn answer(&mut self, limit: Option<Duration>) -> Result<Answered, ClientError> {
        if let Err(malformed) = &self.put {
            return Err(ClientError::TooLong(malformed.to_string()));
        }
        let answered = (&mut self.receiver).await;
        self.answered = true;
        let answered = answered.map_err(|_| ClientError::Lost(self.connection.why()))?;
        let answered = answered.ok_or_else(|| ClientError::TimedOut(limit.unwrap_or_default()))?;
        match answered.reply()? {
            Reply::Lerror { ecode } => Err(ClientError::Refused { errno: i32::try_from(ecode).unwrap_or(i32::MAX) }),
            Reply::Error { ename, .. } => Err(ClientError::Protocol(format!("the server said: {ename}"))),
            _ => Ok(answered),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let (Ok(tag), false) = (&self.put, self.answered) {
            let tag = *tag;
            self.receiver.close();
            self.connection.cancel(tag);
        }
    }
}
