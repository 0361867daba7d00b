//! The way of committed records from the log to whoever applies them: bounded, never blocking the log.
//!
//! Invariant: a record that did not fit is never forgotten. Its number is noted before the attempt, so that whoever has
//! emptied the channel sees that there is more and reads it from the log.

use super::Record;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// How many records may wait to be applied. More than the largest number in flight (one append of
/// [`super::BATCH_RECORDS_MAX`]), so that in ordinary use nothing is dropped; with entries of the largest size it is a
/// bound of 256 MiB.
pub const WAITING_MAX: usize = 1024;

/// The log's end.
#[derive(Debug, Clone)]
pub struct Publisher {
    records: mpsc::Sender<Record>,
    newest: Arc<AtomicU64>,
}

/// The applier's end.
#[derive(Debug)]
pub struct Committed {
    records: mpsc::Receiver<Record>,
    newest: Arc<AtomicU64>,
}

/// A new way with room for `capacity` records (at least 1).
pub fn channel(capacity: usize) -> (Publisher, Committed) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    let newest = Arc::new(AtomicU64::new(0));
    (Publisher { records: sender, newest: newest.clone() }, Committed { records: receiver, newest })
}

impl Publisher {
    /// Passes a record on, or drops it if there is no room. Never blocks, never fails.
    pub fn publish(&self, record: Record) {
        // The number first: when the receiver has taken what made the channel full, it must find that there is more.
        self.newest.fetch_max(record.seq, Ordering::SeqCst);
        let _dropped_when_full = self.records.try_send(record);
    }
}

impl Committed {
    /// Waits for records and moves at most `max` of them to the end of `into`; 0 when the log has ended.
    pub async fn receive(&mut self, into: &mut Vec<Record>, max: usize) -> usize {
        self.records.recv_many(into, max).await
    }

    /// The newest number that was published, if nothing waits any more: what lies between the last received one and
    /// this must be read from the log.
    pub fn newest_when_empty(&self) -> Option<u64> {
        self.records.is_empty().then(|| self.newest.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn record(seq: u64) -> Record {
        Record { seq, bytes: Bytes::from_static(b"x") }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_but_its_number_is_known() {
        let (publisher, mut committed) = channel(2);
        for seq in 1..=5 {
            publisher.publish(record(seq));
        }
        let mut got = Vec::new();
        assert_eq!(committed.newest_when_empty(), None);
        assert_eq!(committed.receive(&mut got, 10).await, 2);
        assert_eq!(got, vec![record(1), record(2)]);
        assert_eq!(committed.newest_when_empty(), Some(5));
        drop(publisher);
        assert_eq!(committed.receive(&mut got, 10).await, 0);
    }
}
