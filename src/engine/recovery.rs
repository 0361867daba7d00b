//! At the start: the newest snapshot, and the log after it, checked against the mark that the last run left.

use super::applier::APPLY_BATCH_MAX;
use super::audit::Recorder;
use super::log::{Log, LogError};
use super::replica::Replica;
use super::view::View;
use std::sync::Arc;

/// What to do about a log that has lost or changed what was acknowledged.
const ADVICE: &str =
    "put back a backup of the data folder, or start once with --accept-loss to go on with what is left";

/// The state as the log has it, and the view of it. What the audit trail lacks is added to it.
pub(super) async fn recover(
    log: &dyn Log,
    audit: &Recorder,
    entry_format: u8,
) -> Result<(Replica, Arc<View>), LogError> {
    let damaged = |what: String| LogError::Damaged { path: log.path(), what, advice: ADVICE.to_owned() };
    let mut replica = match log.snapshot().await? {
        Some(snapshot) => Replica::from_snapshot(&snapshot)
            .map_err(|error| damaged(format!("the snapshot of record {} can't be read: {error}", snapshot.seq)))?,
        None => Replica::new(),
    };
    let view = Arc::new(View::new(replica.state.clone(), replica.digest, replica.seq));
    let mark = log.last_mark();
    loop {
        let records = log.read(replica.seq, APPLY_BATCH_MAX).await?;
        if records.is_empty() {
            break;
        }
        let mut events = Vec::new();
        for record in &records {
            let mut step = replica.take(record, entry_format).map_err(&damaged)?;
            events.append(&mut step.events);
            audit.record(step).await.map_err(LogError::Failed)?;
            if mark.is_some_and(|(seq, chain)| seq == replica.seq && chain != replica.chain) {
                return Err(damaged(format!("the records up to {} are not those that were acknowledged", replica.seq)));
            }
        }
        view.publish(replica.state.clone(), replica.digest, events);
    }
    match mark {
        // In a cluster the others have it, and it comes.
        Some((seq, _)) if seq > replica.seq && log.alone() => {
            Err(damaged(format!("it ends at record {}, but records up to {seq} were acknowledged", replica.seq)))
        }
        _ => {
            view.announce(replica.seq);
            Ok((replica, view))
        }
    }
}
