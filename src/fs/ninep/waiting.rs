//! The requests of one session that wait for their answers: each a future under its tag, dropped to cancel it.

use super::limits::{WAITING_REQUESTS_MAX, WAITING_WRITE_BYTES_MAX};
use crate::text::{Code, Refusal};
use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What a request that waited comes to.
pub(super) enum Finished {
    /// A read's bytes.
    Read(Bytes),
    /// How much a write took.
    Wrote(usize),
    /// Something was removed.
    Removed,
}

/// The work behind a request that waits.
pub(super) type Work = BoxFuture<'static, Result<Finished, Refusal>>;

/// Which request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Tread, for so many bytes at most.
    Read {
        /// The most bytes.
        count: usize,
    },
    /// Twrite, of so many bytes.
    Write {
        /// The bytes.
        count: usize,
    },
    /// Tremove.
    Remove,
    /// Tunlinkat.
    Unlinkat,
}

/// A request that has ended: answered, or cancelled.
pub(super) struct Ended {
    pub tag: u16,
    pub what: What,
    /// The fid that it ran on, unless that was clunked meanwhile.
    pub fid: Option<u32>,
    pub result: Result<Result<Finished, Refusal>, Aborted>,
    /// The tags of the Tflushes that cancelled it, in order; if there are any, they are all that is answered.
    pub flushes: Vec<u16>,
}

struct Request {
    what: What,
    fid: Option<u32>,
    cancel: AbortHandle,
    flushes: Vec<u16>,
}

struct Task {
    tag: u16,
    work: Abortable<Work>,
}

impl Future for Task {
    type Output = (u16, Result<Result<Finished, Refusal>, Aborted>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.work).poll(context));
        Poll::Ready((self.tag, result))
    }
}

/// All that waits.
#[derive(Default)]
pub(super) struct Waiting {
    tasks: FuturesUnordered<Task>,
    requests: HashMap<u16, Request>,
    /// The Tflushes that are not answered yet, each with the request that it cancels.
    flushes: HashMap<u16, u16>,
    /// The data of all writes among them.
    write_bytes: usize,
}

impl Waiting {
    /// Is there a request under this tag, or a Tflush that is not answered yet?
    pub fn has(&self, tag: u16) -> bool {
        self.requests.contains_key(&tag) || self.flushes.contains_key(&tag)
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// May another request wait?
    ///
    /// # Errors
    /// EAGAIN: there are too many, or they hold too much.
    pub fn check_room(&self, what: What) -> Result<(), Refusal> {
        if self.requests.len() >= WAITING_REQUESTS_MAX {
            let most =
                format!("busy: {WAITING_REQUESTS_MAX} requests of this connection wait already, which is the most");
            return Err(Refusal::new(Code::Again, most));
        }
        match what {
            What::Write { count } if self.write_bytes + count > WAITING_WRITE_BYTES_MAX => {
                Err(Refusal::new(Code::Again, "busy: earlier writes of this connection wait; write again after them"))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a request until it ends. The tag is free.
    pub fn add(&mut self, tag: u16, what: What, fid: Option<u32>, work: Work) {
        let (cancel, registration) = AbortHandle::new_pair();
        self.tasks.push(Task { tag, work: Abortable::new(work, registration) });
        self.requests.insert(tag, Request { what, fid, cancel, flushes: Vec::new() });
        if let What::Write { count } = what {
            self.write_bytes += count;
        }
    }

    /// Cancels the request `old`, if there is one; then it ends with `flush` among its flushes. A flush of a flush is
    /// answered behind it.
    pub fn flush(&mut self, old: u16, flush: u16) -> bool {
        let target = self.flushes.get(&old).copied().unwrap_or(old);
        let Some(request) = self.requests.get_mut(&target) else { return false };
        request.cancel.abort();
        request.flushes.push(flush);
        self.flushes.insert(flush, target);
        true
    }

    /// The fid is gone: its reads end, its writes go on.
    pub fn clunked(&mut self, fid: u32) {
        for request in self.requests.values_mut().filter(|r| r.fid == Some(fid)) {
            request.fid = None;
            if matches!(request.what, What::Read { .. }) {
                request.cancel.abort();
            }
        }
    }

    /// The next request that has ended; pending while none has, or none waits.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        while let Some((tag, result)) = ready!(self.tasks.poll_next_unpin(context)) {
            let Some(Request { what, fid, flushes, .. }) = self.requests.remove(&tag) else { continue };
            for flush in &flushes {
                self.flushes.remove(flush);
            }
            if let What::Write { count } = what {
                self.write_bytes = self.write_bytes.saturating_sub(count);
            }
            return Poll::Ready(Ended { tag, what, fid, result, flushes });
        }
        Poll::Pending
    }
}
