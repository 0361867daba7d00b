//! One node's copy of the replicated table: the records and the snapshots, as far as it has applied what Raft has committed.

use blixard::engine::log::{Record, Snapshot};
use bytes::Bytes;
use std::collections::VecDeque;

/// What Raft orders.
#[derive(Debug)]
pub enum Op {
    Records(Vec<Bytes>),
    Save(Snapshot),
    Cut(u64),
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub records: VecDeque<Record>,
    pub cut: u64,
    pub snapshots: Vec<Snapshot>,
    /// How many of Raft's operations are in it.
    pub applied: usize,
}

impl Store {
    pub fn newest(&self) -> u64 {
        self.cut + self.records.len() as u64
    }

    /// The next operation; the records that came by it.
    pub fn apply(&mut self, op: &Op) -> Vec<Record> {
        self.applied += 1;
        match op {
            Op::Records(all) => {
                let mut added = Vec::with_capacity(all.len());
                for bytes in all {
                    let record = Record { seq: self.newest() + 1, bytes: bytes.clone() };
                    self.records.push_back(record.clone());
                    added.push(record);
                }
                added
            }
            Op::Save(snapshot) => {
                self.snapshots.push(snapshot.clone());
                self.snapshots.sort_by_key(|snapshot| snapshot.seq);
                if self.snapshots.len() > 2 {
                    self.snapshots.remove(0);
                }
                Vec::new()
            }
            Op::Cut(upto) => {
                // As the real one: whatever is said, nothing goes that is not in a snapshot.
                let upto = (*upto).min(self.snapshots.last().map_or(0, |snapshot| snapshot.seq));
                while self.cut < upto && self.records.pop_front().is_some() {
                    self.cut += 1;
                }
                Vec::new()
            }
        }
    }
}
