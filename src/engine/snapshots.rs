//! When a snapshot is due, and the task that writes it and cuts the log behind the one before.

use super::audit::Recorder;
use super::blocking;
use super::log::{AppendError, Log, Record, Role};
use super::replica::Replica;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Decides, on the applier's side, when a snapshot is due, and hands a version of the state to the task.
pub(super) struct SnapshotKeeper {
    /// A snapshot is due after so many records or bytes, whichever comes first.
    every_records: u64,
    every_bytes: u64,
    /// Records and bytes since the last one.
    records: u64,
    bytes: u64,
    /// Somebody wants one now.
    wanted: Arc<AtomicBool>,
    task: mpsc::Sender<Replica>,
}

impl SnapshotKeeper {
    /// And where [`write_snapshots`] hears of it: with room for one, since while one is being written none is due.
    pub(super) fn new(
        every_records: u64,
        every_bytes: u64,
        wanted: Arc<AtomicBool>,
    ) -> (SnapshotKeeper, mpsc::Receiver<Replica>) {
        let (task, asked) = mpsc::channel(1);
        (SnapshotKeeper { every_records, every_bytes, records: 0, bytes: 0, wanted, task }, asked)
    }

    /// Counts records just applied, and asks for a snapshot if one is due. Never waits.
    pub(super) fn consider(&mut self, replica: &Replica, records: &[Record]) {
        self.records += records.len() as u64;
        self.bytes += records.iter().map(|record| record.bytes.len() as u64).sum::<u64>();
        let wanted = self.wanted.load(Ordering::Relaxed);
        if self.records < self.every_records && self.bytes < self.every_bytes && !wanted {
            return;
        }
        // A version of the state costs a few reference counts. If the task is still at work, it is asked again later.
        if self.task.try_send(replica.clone()).is_ok() {
            (self.records, self.bytes) = (0, 0);
            self.wanted.store(false, Ordering::Relaxed);
        }
    }
}

/// Writes snapshots until nobody can ask for one any more; ends early when the log can't go on.
pub(super) async fn write_snapshots(
    mut asked: mpsc::Receiver<Replica>,
    log: Arc<dyn Log>,
    audit: Recorder,
) -> Result<(), String> {
    let mut previous = log.snapshot().await.map_err(|error| error.to_string())?.map(|snapshot| snapshot.seq);
    while let Some(replica) = asked.recv().await {
        let seq = replica.seq;
        // They are in the log, which all nodes have: one node writes them.
        if log.health().role != Role::Leader {
            continue;
        }
        // A start replays from the snapshot on: what is before it must be in the trail, whatever happens.
        audit.sync().await?;
        // Encoding a large state takes long enough to be in the way of others on this thread.
        let snapshot = blocking::run(move || replica.snapshot()).await?;
        match save(&*log, snapshot, previous).await {
            Ok(()) => {
                tracing::info!(seq, "snapshot written");
                previous = Some(seq);
            }
            Err(AppendError::Fatal(why)) => return Err(why),
            Err(error) => tracing::warn!(seq, %error, "no snapshot this time; the next one is tried as it falls due"),
        }
    }
    Ok(())
}

/// Saves a snapshot; then what is older than the one before is not needed any more: if the newest is damaged one day, the
/// one before and the records after it still give the state.
async fn save(log: &dyn Log, snapshot: super::log::Snapshot, previous: Option<u64>) -> Result<(), AppendError> {
    log.save_snapshot(snapshot).await?;
    match previous {
        Some(previous) => log.cut(previous).await,
        None => Ok(()),
    }
}
