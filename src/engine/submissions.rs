//! Entries on their way into the log, and those who wait for their outcome.
//!
//! An entry gets its number, its stamp and its place in the queue in one step, so that the three orders are the same.
//! From then on it is the appender's: a submitter who goes away changes nothing.

use super::log::{BATCH_RECORDS_MAX, RECORD_BYTES_MAX};
use super::state::{By, Command, Entry, EntryId, NodeId, Outcome};
use crate::clock::HybridClock;
use crate::text::{Code, Refusal};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How many entries may wait for the appender: two appends' worth. Later submitters wait for a place within their
/// deadline. With the largest entries this holds 128 MiB.
const QUEUE_MAX: usize = 2 * BATCH_RECORDS_MAX;

/// An entry with its number, ready to be appended.
#[derive(Debug)]
pub(super) struct Pending {
    /// See [`EntryId::n`].
    pub(super) n: u64,
    pub(super) bytes: Bytes,
}

/// What became of an entry, and where in the log it is (0: nowhere).
pub(super) type Applied = (u64, Outcome);

/// Those who wait, by the number of their entry. At most one a queued or appended entry, so as bounded as the queue.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<BTreeMap<u64, oneshot::Sender<Applied>>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Applied>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, n: u64) -> oneshot::Receiver<Applied> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(n, sender);
        receiver
    }

    /// Answers those who wait for these entries, if somebody still does.
    pub(super) fn complete(&self, outcomes: impl IntoIterator<Item = (u64, Applied)>) {
        let mut waiters = self.lock();
        for (n, applied) in outcomes {
            if let Some(waiter) = waiters.remove(&n) {
                let _gone = waiter.send(applied);
            }
        }
    }
}

/// The submitters' end of the queue.
#[derive(Debug)]
pub(super) struct Submissions {
    queue: mpsc::Sender<Pending>,
    waiters: Arc<Waiters>,
    clock: Arc<HybridClock>,
    node: NodeId,
    boot: u64,
    /// The number of the newest entry. Held over numbering, stamping and queueing, and over nothing that waits.
    newest: Mutex<u64>,
}

impl Submissions {
    /// The queue's two ends.
    pub(super) fn new(
        waiters: Arc<Waiters>,
        clock: Arc<HybridClock>,
        node: NodeId,
        boot: u64,
    ) -> (Submissions, mpsc::Receiver<Pending>) {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        (Submissions { queue, waiters, clock, node, boot, newest: Mutex::new(0) }, receiver)
    }

    /// Submits an entry and waits until it has been applied, or until the deadline.
    pub(super) async fn submit(&self, by: By, commands: Vec<Command>, patience: Duration) -> Result<Applied, Refusal> {
        let deadline = Instant::now() + patience;
        let place = match tokio::time::timeout_at(deadline, self.queue.reserve()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_closed)) => return Err(Refusal::again("busy: the node is going down; nothing was done")),
            Err(_elapsed) => {
                return Err(Refusal::again("busy: too many commands are waiting to be written; nothing was done"));
            }
        };
        let (id, answer) = self.enqueue(place, by, commands)?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(_engine_ended)) => Err(unknown(id, "the node went down before the answer came")),
            Err(_elapsed) => Err(unknown(id, &format!("no answer within {} s", patience.as_secs_f32()))),
        }
    }

    /// Numbers, stamps and queues an entry: one step for all who come together.
    fn enqueue(
        &self,
        place: mpsc::Permit<'_, Pending>,
        by: By,
        commands: Vec<Command>,
    ) -> Result<(EntryId, oneshot::Receiver<Applied>), Refusal> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let id = EntryId { node: self.node, boot: self.boot, n: *newest + 1 };
        let at = self.clock.now().map_err(|error| Refusal::again(format!("{error}; nothing was done")))?;
        let entry = Entry { id, at, by, commands };
        let bytes = encode(&entry)?;
        let answer = self.waiters.add(id.n);
        place.send(Pending { n: id.n, bytes });
        *newest = id.n;
        Ok((id, answer))
    }
}

/// An entry's bytes, if it is within the limits.
fn encode(entry: &Entry) -> Result<Bytes, Refusal> {
    let count = entry.commands.len();
    if count == 0 {
        return Err(Refusal::invalid("invalid: a transaction needs at least one command"));
    }
    if count > Entry::COMMANDS_MAX {
        let max = Entry::COMMANDS_MAX;
        return Err(Refusal::new(
            Code::TooLong,
            format!("invalid: {count} commands in one transaction; at most {max} fit"),
        ));
    }
    let bytes = entry.encode();
    if bytes.len() > RECORD_BYTES_MAX {
        let size = bytes.len();
        return Err(Refusal::new(
            Code::TooLong,
            format!("invalid: a transaction of {size} bytes; at most {RECORD_BYTES_MAX} fit: write it in parts"),
        ));
    }
    Ok(bytes.into())
}

fn unknown(id: EntryId, why: &str) -> Refusal {
    Refusal::timed_out(format!(
        "interrupted: {why}; whether the command took effect is not known: look for id {id} in /log"
    ))
}
