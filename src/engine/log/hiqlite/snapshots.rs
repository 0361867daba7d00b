//! Snapshots in the store: compressed, in parts, and valid only as a whole.
//!
//! The parts come first, then one transaction with the row that makes them a snapshot and the removal of all but the newest two. So a
//! snapshot that was interrupted is never taken for one, and one that was altered is found out by its hash.

use super::rows::{self, SnapshotRow};
use super::salvage::Packed;
use crate::engine::log::{AppendError, LogError, Snapshot};
use bytes::Bytes;
use hiqlite::{Client, Param};
use sha2::{Digest, Sha256};

/// The format of what is stored: 1 is zstd.
const FORMAT: i64 = 1;
/// The most bytes of a part: each part is one Raft entry, and others' entries go between them.
const PART_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes of an unpacked snapshot: 2 KiB for each of 500,000 VMs. Bounds what a damaged header could make us allocate.
const SNAPSHOT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// zstd's own default: more gains little on this data.
const COMPRESSION_LEVEL: i32 = 3;

/// The tables. A part belongs to the snapshot with the same `seq`.
pub(super) const SCHEMA: &str = "\
    CREATE TABLE IF NOT EXISTS snapshot_part (seq INTEGER NOT NULL, part INTEGER NOT NULL, bytes BLOB NOT NULL, \
        PRIMARY KEY (seq, part)) STRICT; \
    CREATE TABLE IF NOT EXISTS snapshot (seq INTEGER PRIMARY KEY, format INTEGER NOT NULL, parts INTEGER NOT NULL, \
        size INTEGER NOT NULL, sha256 BLOB NOT NULL) STRICT; ";

/// Stores a snapshot.
pub(super) async fn save(client: &Client, snapshot: Snapshot) -> Result<(), AppendError> {
    let seq = rows::integer(snapshot.seq).map_err(|error| AppendError::NotDone(error.to_string()))?;
    if snapshot.bytes.len() as u64 > SNAPSHOT_BYTES_MAX {
        // Nobody would unpack it, and the log must not be cut behind it.
        let size = snapshot.bytes.len();
        return Err(AppendError::NotDone(format!("the state has {size} bytes, and {SNAPSHOT_BYTES_MAX} are the most")));
    }
    let size = rows::integer(snapshot.bytes.len() as u64).map_err(|error| AppendError::NotDone(error.to_string()))?;
    let packed = tokio::task::spawn_blocking(move || zstd::encode_all(&*snapshot.bytes, COMPRESSION_LEVEL))
        .await
        .map_err(|error| AppendError::NotDone(error.to_string()))?
        .map_err(|error| AppendError::NotDone(error.to_string()))?;
    store(client, Packed { seq, size, bytes: packed }).await
}

/// Stores a snapshot that is packed already.
pub(super) async fn store(client: &Client, packed: Packed) -> Result<(), AppendError> {
    let Packed { seq, size, bytes } = packed;
    let mut parts = 0;
    for part in bytes.chunks(PART_BYTES_MAX) {
        let sql = "INSERT OR REPLACE INTO snapshot_part (seq, part, bytes) VALUES ($1, $2, $3)";
        let values = vec![Param::Integer(seq), Param::Integer(parts), Param::Blob(part.to_vec())];
        rows::write(client, sql, values).await?;
        parts += 1;
    }
    let head = vec![
        Param::Integer(seq),
        Param::Integer(FORMAT),
        Param::Integer(parts),
        Param::Integer(size),
        Param::Blob(hash(seq, size, &bytes).to_vec()),
    ];
    rows::write_all(
        client,
        vec![
            ("INSERT OR REPLACE INTO snapshot (seq, format, parts, size, sha256) VALUES ($1, $2, $3, $4, $5)", head),
            ("DELETE FROM snapshot WHERE seq NOT IN (SELECT seq FROM snapshot ORDER BY seq DESC LIMIT 2)", vec![]),
            ("DELETE FROM snapshot_part WHERE seq NOT IN (SELECT seq FROM snapshot)", vec![]),
        ],
    )
    .await
}

/// The newest snapshot that is whole.
pub(super) async fn newest(client: &Client) -> Result<Option<Snapshot>, LogError> {
    for row in rows::snapshots(client).await? {
        match load(client, &row).await? {
            Ok(snapshot) => return Ok(Some(snapshot)),
            Err(what) => tracing::warn!(seq = row.seq, what, "a damaged snapshot is passed over"),
        }
    }
    Ok(None)
}

/// One snapshot, or what is wrong with it.
async fn load(client: &Client, row: &SnapshotRow) -> Result<Result<Snapshot, String>, LogError> {
    if row.format != FORMAT {
        return Ok(Err(format!("its format {} is not known", row.format)));
    }
    let packed = rows::snapshot_parts(client, row.seq, row.parts).await?;
    if row.sha256.as_slice() != hash(row.seq, row.size, &packed) {
        return Ok(Err("its hash is wrong".to_owned()));
    }
    let (Ok(seq), Ok(size)) = (u64::try_from(row.seq), u64::try_from(row.size)) else {
        return Ok(Err("its numbers are negative".to_owned()));
    };
    let unpacked = tokio::task::spawn_blocking(move || unpack(&packed, size)).await;
    Ok(unpacked.map_err(|error| error.to_string()).flatten().map(|bytes| Snapshot { seq, bytes }))
}

fn unpack(packed: &[u8], size: u64) -> Result<Bytes, String> {
    let capacity = usize::try_from(size.min(SNAPSHOT_BYTES_MAX)).map_err(|error| error.to_string())?;
    let bytes = zstd::bulk::decompress(packed, capacity).map_err(|error| error.to_string())?;
    if bytes.len() as u64 != size {
        return Err("its size is wrong".to_owned());
    }
    Ok(bytes.into())
}

/// Over everything that matters: numbers too, so that no other row's parts pass for it.
pub(super) fn hash(seq: i64, size: i64, packed: &[u8]) -> [u8; 32] {
    let head = Sha256::new().chain_update(FORMAT.to_le_bytes()).chain_update(seq.to_le_bytes());
    head.chain_update(size.to_le_bytes()).chain_update(packed).finalize().into()
}
