//! A log in memory: for tests and for the simulator. It forgets everything when its last handle is dropped.
//!
//! Handles are clones of one log, so that a test can open it again as a process would after a crash.

use super::committed::{self, Committed, Publisher, WAITING_MAX};
use super::{AppendError, Health, Log, LogError, Record, Role, Snapshot};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What happens to the next append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing is written.
    Refuse(AppendError),
    /// It is written, and the answer is lost.
    LoseAnswer,
    /// The answer is "unknown", and nothing is written.
    LoseRequest,
}

#[derive(Debug, Default)]
struct Store {
    /// Records after `cut`, in order.
    records: VecDeque<Record>,
    cut: u64,
    snapshots: Vec<Snapshot>,
    mark: Option<(u64, [u8; 32])>,
    faults: VecDeque<Fault>,
    appends: u64,
}

impl Store {
    fn newest(&self) -> u64 {
        self.cut + self.records.len() as u64
    }
}

/// The log in memory.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    store: Arc<Mutex<Store>>,
    publisher: Publisher,
    mark_at_open: Option<(u64, [u8; 32])>,
}

impl MemoryLog {
    /// An empty log.
    pub fn open() -> (MemoryLog, Committed) {
        Self::over(Arc::default(), WAITING_MAX)
    }

    /// The same log as after a restart of the process: what was committed is there, what was on its way is not.
    pub fn reopen(&self) -> (MemoryLog, Committed) {
        Self::over(self.store.clone(), WAITING_MAX)
    }

    /// As [`MemoryLog::reopen`], with room for so few committed records that some will be dropped.
    pub fn reopen_with_room_for(&self, waiting_max: usize) -> (MemoryLog, Committed) {
        Self::over(self.store.clone(), waiting_max)
    }

    fn over(store: Arc<Mutex<Store>>, waiting_max: usize) -> (MemoryLog, Committed) {
        let (publisher, committed) = committed::channel(waiting_max);
        let mark_at_open = store.lock().unwrap_or_else(PoisonError::into_inner).mark;
        (MemoryLog { store, publisher, mark_at_open }, committed)
    }

    /// What is to happen to the coming appends, one each, in order.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.store().faults.extend(faults);
    }

    /// Forgets the newest records, as a damaged disk would.
    pub fn lose_tail(&self, count: usize) {
        let mut store = self.store();
        let keep = store.records.len().saturating_sub(count);
        store.records.truncate(keep);
    }

    /// How many appends were tried.
    pub fn appends(&self) -> u64 {
        self.store().appends
    }

    /// No code between lock and unlock can panic half-way through a change, so a poisoned lock is still whole.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Log for MemoryLog {
    fn path(&self) -> String {
        "memory".to_owned()
    }

    async fn append(&self, records: Vec<Bytes>) -> Result<(), AppendError> {
        let mut store = self.store();
        store.appends += 1;
        let fault = store.faults.pop_front();
        match fault {
            Some(Fault::Refuse(error)) => return Err(error),
            Some(Fault::LoseRequest) => return Err(AppendError::Unknown("the request was lost".into())),
            Some(Fault::LoseAnswer) | None => {}
        }
        for bytes in records {
            let record = Record { seq: store.newest() + 1, bytes };
            store.records.push_back(record.clone());
            self.publisher.publish(record);
        }
        match fault {
            Some(_) => Err(AppendError::Unknown("the answer was lost".into())),
            None => Ok(()),
        }
    }

    async fn read(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        let store = self.store();
        if after < store.cut {
            let cut = store.cut;
            return Err(LogError::Failed(format!("records up to {cut} have been cut; {after} is before that")));
        }
        let skip = usize::try_from(after - store.cut).unwrap_or(usize::MAX);
        Ok(store.records.iter().skip(skip).take(max).cloned().collect())
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        Ok(self.store().snapshots.last().cloned())
    }

    async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), AppendError> {
        let mut store = self.store();
        store.snapshots.push(snapshot);
        if store.snapshots.len() > 2 {
            store.snapshots.remove(0);
        }
        Ok(())
    }

    async fn cut(&self, upto: u64) -> Result<(), AppendError> {
        let mut store = self.store();
        let newest_snapshot = store.snapshots.last().map_or(0, |snapshot| snapshot.seq);
        if upto > newest_snapshot {
            return Err(AppendError::NotDone(format!("there is no snapshot at or after {upto}")));
        }
        while store.cut < upto && store.records.pop_front().is_some() {
            store.cut += 1;
        }
        Ok(())
    }

    fn mark(&self, seq: u64, chain: [u8; 32]) -> Result<(), LogError> {
        self.store().mark = Some((seq, chain));
        Ok(())
    }

    fn last_mark(&self) -> Option<(u64, [u8; 32])> {
        self.mark_at_open
    }

    async fn newest(&self) -> Result<u64, AppendError> {
        Ok(self.store().newest())
    }

    fn health(&self) -> Health {
        Health { role: Role::Leader, term: 1, leader: Some(1), quorum: true, voters: 1, lag: 0, dead: None }
    }

    fn alone(&self) -> bool {
        true
    }

    async fn close(&self) {}
}
