//! Room on the disk of a member: what comes from the others is written whether this node wants it or not, and through a memory map, so that a
//! disk that is full is the end of the process. It ends before, and begins again when there is room; the others have a majority meanwhile, or
//! wait for it.

use super::members::Verdict;
use crate::engine::Engine;
use crate::engine::log::{DISK_RESERVE_BYTES, HiqliteLog, Log, Room, check_room};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a node that waits for room looks for it: a file system tells nobody.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Before anything is written: returns when there is room for the log in this data folder.
pub(super) async fn await_room(data: &Path) {
    let mut is_told = false;
    while let Err(why) = check_room(data, DISK_RESERVE_BYTES) {
        if !std::mem::replace(&mut is_told, true) {
            tracing::error!(why, "this node waits for room on its disk before it takes part again");
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// Looks at each change of the log how much room is left, until `stop`.
///
/// # Errors
/// So little that the process has to end: a sentence.
pub(super) async fn watch(
    engine: Engine,
    store: Arc<HiqliteLog>,
    verdict: Arc<OnceLock<Verdict>>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut changes = engine.changes();
    let mut was_little = false;
    loop {
        let is_little = match store.room() {
            Room::None(why) if !store.alone() => {
                let _first = verdict.set(Verdict::NoRoom);
                return Err(why);
            }
            Room::None(why) | Room::Little(why) => {
                if !was_little {
                    tracing::error!(why, "nothing can be written through this node");
                }
                true
            }
            Room::Enough => {
                if was_little {
                    tracing::info!("there is room on the disk again");
                }
                false
            }
        };
        was_little = is_little;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
        }
    }
}
