//! The appender: takes what has gathered in the queue and appends it to the log as one commit, one append at a time.
//!
//! Invariant: an append of unknown outcome is sent again, with the same entries, before anything newer. The state machine
//! takes an entry only once, so sending again is harmless; going on without knowing would lose order.

use super::failure::Failure;
use super::log::{AppendError, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Log};
use super::submissions::{Pending, Waiters};
use crate::mutants::{Mutant, planted};
use crate::text::Refusal;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The pause before an append of unknown outcome is sent again, at first.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause; they double up to it. Short against the time that an election takes.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

const APPLIER_ENDED: &str = "the applier has ended";

/// See the module.
pub(super) struct Appender {
    pub(super) queue: mpsc::Receiver<Pending>,
    pub(super) log: Arc<dyn Log>,
    pub(super) waiters: Arc<Waiters>,
    /// The highest `n` of this node and boot that has been applied.
    pub(super) applied: watch::Receiver<u64>,
}

impl Appender {
    /// Runs until the queue is closed and empty (Ok) or the log can't go on (what it said).
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let mut taken = Vec::with_capacity(BATCH_RECORDS_MAX);
        let mut newest = 0;
        while self.queue.recv_many(&mut taken, BATCH_RECORDS_MAX).await > 0 {
            let mut waiting: VecDeque<Pending> = taken.drain(..).collect();
            while !waiting.is_empty() {
                newest = self.append(cut_batch(&mut waiting)).await?.unwrap_or(newest);
            }
        }
        // Closing: whoever waits for what was just appended is to get an answer.
        let answered = self.applied.wait_for(|n| *n >= newest).await;
        answered.map(drop).map_err(|_ended| Failure::Other(APPLIER_ENDED.to_owned()))
    }

    /// Appends one batch, as often as it takes to know what became of it: the number of its last entry, or None if it was
    /// refused.
    async fn append(&mut self, batch: Vec<Pending>) -> Result<Option<u64>, Failure> {
        let Some(last) = batch.last().map(|pending| pending.n) else { return Ok(None) };
        let mut pause = RETRY_PAUSE_MIN;
        let mut in_doubt = false;
        loop {
            if planted(Mutant::EarlyAnswer) {
                self.waiters.complete(batch.iter().map(|pending| (pending.n, (0, Ok(Vec::new())))));
            }
            let records: Vec<Bytes> = batch.iter().map(|pending| pending.bytes.clone()).collect();
            match self.log.append(records).await {
                Ok(()) => return Ok(Some(last)),
                Err(AppendError::Fatal(why)) => return Err(Failure::LogEnded(why)),
                Err(AppendError::NotDone(why)) if !in_doubt => {
                    self.refuse(&batch, &Refusal::again(format!("busy: {why}; nothing was done")));
                    return Ok(None);
                }
                Err(AppendError::Full(why)) if !in_doubt => {
                    self.refuse(&batch, &Refusal::no_space(format!("{why}; nothing was done")));
                    return Ok(None);
                }
                Err(error) if planted(Mutant::UnknownIsRefused) => {
                    self.refuse(&batch, &Refusal::again(format!("busy: {error}")));
                    return Ok(None);
                }
                Err(error) => {
                    tracing::warn!(%error, "an append will be sent again");
                    in_doubt = true;
                }
            }
            // It may come through late; then there is nothing to send again.
            let seen = self.applied.wait_for(|n| *n >= last);
            if let Ok(applier_lives) = tokio::time::timeout(pause, seen).await {
                let ended = |_| Failure::Other(APPLIER_ENDED.to_owned());
                return applier_lives.map(|_seen| Some(last)).map_err(ended);
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    fn refuse(&self, batch: &[Pending], refusal: &Refusal) {
        self.waiters.complete(batch.iter().map(|pending| (pending.n, (0, Err(refusal.clone())))));
    }
}

/// Takes from the front what fits into one append; at least one.
fn cut_batch(waiting: &mut VecDeque<Pending>) -> Vec<Pending> {
    let mut batch = Vec::with_capacity(waiting.len());
    let mut size = 0;
    while let Some(next) = waiting.pop_front() {
        if size + next.bytes.len() > BATCH_BYTES_MAX && !batch.is_empty() {
            waiting.push_front(next);
            break;
        }
        size += next.bytes.len();
        batch.push(next);
    }
    batch
}
