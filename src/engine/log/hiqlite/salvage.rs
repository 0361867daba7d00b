//! A second source: the database as the last run left it.
//!
//! hiqlite builds its database anew at each start, from its own snapshot and the Raft log, and heals a damaged Raft log by forgetting
//! what comes after the damage. The database of the last run still has those records. So it is put by before each start, and
//! when the store comes up short of the mark, a new store is made from it. What it holds is checked row by row here and,
//! as a whole, by the engine, against the chain in the mark.
//!
//! Only for a node that is alone: in a cluster, the others are the second source.

use super::{rows, snapshots};
use crate::engine::log::{AppendError, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, LogError, Record};
use hiqlite::Client;
use hiqlite::rusqlite::{self, Connection};
use std::path::{Path, PathBuf};

/// A snapshot as it is stored, known to be whole.
pub(super) struct Packed {
    pub(super) seq: i64,
    pub(super) size: i64,
    pub(super) bytes: Vec<u8>,
}

/// What the old database has: a whole snapshot, if there is one, and the records that follow it without a gap.
pub(super) struct Salvage {
    snapshot: Option<Packed>,
    records: Vec<Record>,
}

fn kept(folder: &Path) -> PathBuf {
    folder.join("state_machine").join("db.before")
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> LogError {
    move |error| LogError::Failed(format!("{}: {error}", path.display()))
}

/// Puts the last run's database by, before the start removes it. One that is there already is from a run that was
/// verified, which what came after was not.
pub(super) fn put_by(folder: &Path) -> Result<(), LogError> {
    let (database, kept) = (folder.join("state_machine").join("db"), kept(folder));
    if kept.exists() || !database.exists() {
        return Ok(());
    }
    std::fs::rename(&database, &kept).map_err(io(&database))
}

/// The new database has been verified: the old one is not needed any more.
pub(super) fn discard(folder: &Path) {
    let kept = kept(folder);
    if let Err(error) = std::fs::remove_dir_all(&kept)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %kept.display(), %error, "the last run's database can't be removed");
    }
}

/// What a store is made of.
const PARTS: [&str; 2] = ["logs", "state_machine"];
/// In a folder of a store set aside: the new one is not finished yet.
const UNFINISHED: &str = "unfinished";

/// Moves the whole store aside, so that a new one can be made; says where to.
pub(super) fn set_aside(folder: &Path) -> Result<PathBuf, LogError> {
    let aside = (1..=u32::MAX).map(|n| folder.join(format!("damaged-{n}"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_else(|| folder.join("damaged"));
    std::fs::create_dir(&aside).map_err(io(&aside))?;
    std::fs::write(aside.join(UNFINISHED), "").map_err(io(&aside))?;
    for part in PARTS {
        let from = folder.join(part);
        if from.exists() {
            std::fs::rename(&from, aside.join(part)).map_err(io(&from))?;
        }
    }
    Ok(aside)
}

/// The new store has everything.
pub(super) fn finish(aside: &Path) -> Result<(), LogError> {
    std::fs::remove_file(aside.join(UNFINISHED)).map_err(io(aside))
}

/// Puts a store back whose replacement was not finished: it is the only one that has everything.
pub(super) fn resume(folder: &Path) -> Result<(), LogError> {
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let aside = entry.map_err(io(folder))?.path();
        if !aside.join(UNFINISHED).exists() {
            continue;
        }
        for part in PARTS {
            let (old, new) = (aside.join(part), folder.join(part));
            if old.exists() {
                if new.exists() {
                    std::fs::remove_dir_all(&new).map_err(io(&new))?;
                }
                std::fs::rename(&old, &new).map_err(io(&old))?;
            }
        }
        std::fs::remove_dir_all(&aside).map_err(io(&aside))?;
    }
    Ok(())
}

/// Reads what is whole. Blocks.
pub(super) fn read(folder: &Path) -> Option<Salvage> {
    let path = kept(folder).join("hiqlite.db");
    if !path.exists() {
        return None;
    }
    let salvaged = Connection::open(&path).and_then(|database| {
        let snapshot = newest_snapshot(&database)?;
        let records = records(&database, snapshot.as_ref().map_or(0, |snapshot| snapshot.seq));
        Ok(Salvage { snapshot, records })
    });
    salvaged
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "the last run's database can't be read"))
        .ok()
}

fn newest_snapshot(database: &Connection) -> rusqlite::Result<Option<Packed>> {
    let mut statement = database.prepare("SELECT seq, size, sha256 FROM snapshot ORDER BY seq DESC")?;
    let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for row in rows {
        let (seq, size, sha256): (i64, i64, Vec<u8>) = row?;
        let mut parts = database.prepare("SELECT bytes FROM snapshot_part WHERE seq = ?1 ORDER BY part")?;
        let parts: rusqlite::Result<Vec<Vec<u8>>> = parts.query_map([seq], |row| row.get(0))?.collect();
        let bytes = parts.map(|parts| parts.concat()).unwrap_or_default();
        if snapshots::hash(seq, size, &bytes).as_slice() == sha256 {
            return Ok(Some(Packed { seq, size, bytes }));
        }
    }
    Ok(None)
}

/// The records after `after`, up to the first that is missing, altered, or can't be read.
fn records(database: &Connection, after: i64) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = database.prepare("SELECT seq, bytes, checksum FROM log WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = statement.query([after])?;
        let mut due = u64::try_from(after).unwrap_or_default() + 1;
        while let Some(row) = rows.next()? {
            let (seq, bytes, checksum): (i64, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if u64::try_from(seq) != Ok(due) || checksum != rows::checksum(&bytes) {
                break;
            }
            records.push(Record { seq: due, bytes: bytes.into() });
            due += 1;
        }
        Ok(())
    };
    if let Err(error) = read() {
        tracing::warn!(%error, "the last run's database is damaged as well");
    }
    records
}

impl Salvage {
    /// The number of the last record that it can give back.
    pub(super) fn reach(&self) -> u64 {
        let snapshot = self.snapshot.as_ref().and_then(|snapshot| u64::try_from(snapshot.seq).ok());
        self.records.last().map(|record| record.seq).or(snapshot).unwrap_or(0)
    }

    /// Writes it into a new, empty store.
    pub(super) async fn write(self, client: &Client) -> Result<(), LogError> {
        self.write_parts(client).await.map_err(|error| LogError::Failed(format!("the log can't be made anew: {error}")))
    }

    async fn write_parts(self, client: &Client) -> Result<(), AppendError> {
        if let Some(snapshot) = self.snapshot {
            // The numbers go on after it even if no record does.
            rows::write_all(client, rows::number_from(snapshot.seq)).await?;
            snapshots::store(client, snapshot).await?;
        }
        let mut rest = self.records.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.bytes.len();
                bytes <= BATCH_BYTES_MAX
            };
            let count = rest.iter().take(BATCH_RECORDS_MAX).take_while(fits).count().max(1);
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let inserts = now.iter().map(rows::insert_at).collect::<Result<Vec<_>, _>>();
            let inserts = inserts.map_err(|error| AppendError::NotDone(error.to_string()))?;
            rows::write_all(client, inserts).await?;
            rest = later;
        }
        Ok(())
    }
}
