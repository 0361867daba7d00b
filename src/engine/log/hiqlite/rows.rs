//! Rows in and out of hiqlite, each call with a deadline of ours: some of hiqlite's have none, others two minutes.

use super::errors;
use crate::engine::log::{AppendError, LogError, Record};
use bytes::Bytes;
use hiqlite::{Client, Error, Param, Row};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::future::Future;
use std::time::Duration;

/// How long a write may take before its outcome counts as unknown. Longer than an election.
pub(super) const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long a read of the local database may take: hiqlite waits up to 30 s for its own snapshot to be restored.
const READ_WITHIN: Duration = Duration::from_secs(40);

/// The log's table. `AUTOINCREMENT`: a number is never used again, not even after a cut. The trigger wakes the applier.
pub(super) fn schema() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY AUTOINCREMENT, bytes BLOB NOT NULL, \
            checksum INTEGER NOT NULL) STRICT; \
         CREATE TRIGGER IF NOT EXISTS log_committed AFTER INSERT ON log BEGIN \
            SELECT {}(new.seq, new.bytes); END; ",
        super::hook::FUNCTION
    )
}

/// One write of one statement.
pub(super) async fn write(client: &Client, sql: &'static str, values: Vec<Param>) -> Result<(), AppendError> {
    within(client.execute(sql, values)).await.map(drop)
}

/// Several statements as one transaction.
pub(super) async fn write_all(client: &Client, statements: Vec<(&'static str, Vec<Param>)>) -> Result<(), AppendError> {
    within(client.txn(statements)).await.map(drop)
}

/// Several statements without values, each by itself.
pub(super) async fn batch(client: &Client, sql: String) -> Result<(), AppendError> {
    let results = within(client.batch(sql)).await?;
    results.into_iter().try_for_each(|result| result.map(drop).map_err(|error| errors::of_write(&error)))
}

async fn within<T>(write: impl Future<Output = Result<T, Error>>) -> Result<T, AppendError> {
    match tokio::time::timeout(WRITE_WITHIN, write).await {
        Ok(result) => result.map_err(|error| errors::of_write(&error)),
        Err(_elapsed) => Err(AppendError::Unknown(format!("no answer within {} s", WRITE_WITHIN.as_secs()))),
    }
}

async fn query<'a>(
    client: &'a Client,
    sql: impl Into<Cow<'static, str>>,
    values: Vec<Param>,
) -> Result<Vec<Row<'a>>, LogError> {
    match tokio::time::timeout(READ_WITHIN, client.query_raw(sql.into(), values)).await {
        Ok(result) => result.map_err(|error| errors::of_read(&error)),
        Err(_elapsed) => {
            Err(LogError::Failed(format!("the database did not answer within {} s", READ_WITHIN.as_secs())))
        }
    }
}

/// The statement that appends a record, and its values.
pub(super) fn insert(bytes: &Bytes) -> (&'static str, Vec<Param>) {
    let values = vec![Param::Blob(bytes.to_vec()), Param::Integer(checksum(bytes))];
    ("INSERT INTO log (bytes, checksum) VALUES ($1, $2)", values)
}

/// The same with a number given: into a new store.
pub(super) fn insert_at(record: &Record) -> Result<(&'static str, Vec<Param>), LogError> {
    let number = Param::Integer(integer(record.seq)?);
    let values = vec![number, Param::Blob(record.bytes.to_vec()), Param::Integer(checksum(&record.bytes))];
    Ok(("INSERT INTO log (seq, bytes, checksum) VALUES ($1, $2, $3)", values))
}

/// Statements after which an empty log counts on from `seq`.
pub(super) fn number_from(seq: i64) -> Vec<(&'static str, Vec<Param>)> {
    vec![
        ("INSERT INTO log (seq, bytes, checksum) VALUES ($1, x'', 0)", vec![Param::Integer(seq)]),
        ("DELETE FROM log", vec![]),
    ]
}

/// What goes with a record in its row. Its number is the store's; the order is held by the chain that the mark has.
pub(super) fn checksum(bytes: &[u8]) -> i64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | i64::from(*byte))
}

/// Up to `max` records after `after`. What is wrong with them is a sentence.
pub(super) async fn records(client: &Client, after: u64, max: usize) -> Result<Result<Vec<Record>, String>, LogError> {
    let sql = "SELECT seq, bytes, checksum FROM log WHERE seq > $1 ORDER BY seq LIMIT $2";
    let values = vec![Param::Integer(integer(after)?), Param::Integer(integer(max as u64)?)];
    let rows = query(client, sql, values).await?;
    Ok(rows.into_iter().zip(after + 1..).map(|(row, seq)| record(row, seq)).collect())
}

fn record(mut row: Row<'_>, due: u64) -> Result<Record, String> {
    let found: i64 = row.try_get("seq").map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = row.try_get("bytes").map_err(|error| error.to_string())?;
    let sum: i64 = row.try_get("checksum").map_err(|error| error.to_string())?;
    if u64::try_from(found) != Ok(due) {
        return Err(format!("record {due} is missing; the next one is {found}"));
    }
    if sum != checksum(&bytes) {
        return Err(format!("record {due} has been altered: its checksum is wrong"));
    }
    Ok(Record { seq: due, bytes: bytes.into() })
}

/// The number of the oldest record, if there is any.
pub(super) async fn oldest(client: &Client) -> Result<Option<i64>, LogError> {
    let mut rows = query(client, "SELECT min(seq) AS oldest FROM log", vec![]).await?;
    match rows.first_mut() {
        Some(row) => row.try_get("oldest").map_err(|error| errors::of_read(&error)),
        None => Ok(None),
    }
}

/// The number of the newest record that was ever appended, as the leader has it once it has made sure that it leads.
pub(super) async fn newest(client: &Client) -> Result<u64, AppendError> {
    // What AUTOINCREMENT has given last: records may have been cut.
    let sql = "SELECT coalesce(max(seq), 0) AS newest FROM sqlite_sequence WHERE name = 'log'";
    let asked = tokio::time::timeout(WRITE_WITHIN, client.query_consistent(sql, vec![]));
    let mut rows = match asked.await {
        Ok(rows) => rows.map_err(|error| errors::of_write(&error))?,
        Err(_elapsed) => return Err(AppendError::NotDone("no majority of the cluster has answered".to_owned())),
    };
    let newest: i64 = match rows.first_mut() {
        Some(row) => row.try_get("newest").map_err(|error| AppendError::NotDone(error.to_string()))?,
        None => 0,
    };
    u64::try_from(newest).map_err(|error| AppendError::NotDone(error.to_string()))
}

/// The same by a write that changes nothing: whoever commits it leads, and has everything before it.
pub(super) async fn newest_by_write(client: &Client) -> Result<u64, AppendError> {
    write(client, "DELETE FROM log WHERE seq < $1", vec![Param::Integer(0)]).await?;
    let sql = "SELECT coalesce(max(seq), 0) AS newest FROM sqlite_sequence WHERE name = 'log'";
    let not_done = |why: String| AppendError::NotDone(why);
    let mut rows = query(client, sql, vec![]).await.map_err(|error| not_done(error.to_string()))?;
    let newest: i64 = match rows.first_mut() {
        Some(row) => row.try_get("newest").map_err(|error| not_done(error.to_string()))?,
        None => 0,
    };
    u64::try_from(newest).map_err(|error| not_done(error.to_string()))
}

/// Is the log's table there already?
pub(super) async fn is_prepared(client: &Client) -> Result<bool, LogError> {
    let sql = "SELECT count(*) AS tables FROM sqlite_master WHERE name IN ('log', 'snapshot', 'snapshot_part')";
    let mut rows = query(client, sql, vec![]).await?;
    let tables: i64 = match rows.first_mut() {
        Some(row) => row.try_get("tables").map_err(|error| errors::of_read(&error))?,
        None => 0,
    };
    Ok(tables == 3)
}

/// A snapshot's row.
pub(super) struct SnapshotRow {
    pub(super) seq: i64,
    pub(super) format: i64,
    pub(super) parts: i64,
    pub(super) size: i64,
    pub(super) sha256: Vec<u8>,
}

/// All snapshots, newest first; there are two at most.
pub(super) async fn snapshots(client: &Client) -> Result<Vec<SnapshotRow>, LogError> {
    let rows = query(client, "SELECT * FROM snapshot ORDER BY seq DESC", vec![]).await?;
    let parsed: Result<Vec<SnapshotRow>, Error> = rows.into_iter().map(snapshot_row).collect();
    parsed.map_err(|error| errors::of_read(&error))
}

fn snapshot_row(mut row: Row<'_>) -> Result<SnapshotRow, Error> {
    Ok(SnapshotRow {
        seq: row.try_get("seq")?,
        format: row.try_get("format")?,
        parts: row.try_get("parts")?,
        size: row.try_get("size")?,
        sha256: row.try_get("sha256")?,
    })
}

/// A snapshot's parts, joined; what is missing is left out, and the hash will tell.
pub(super) async fn snapshot_parts(client: &Client, seq: i64, parts: i64) -> Result<Vec<u8>, LogError> {
    let mut joined = Vec::new();
    for part in 0..parts {
        let sql = "SELECT bytes FROM snapshot_part WHERE seq = $1 AND part = $2";
        let rows = query(client, sql, vec![Param::Integer(seq), Param::Integer(part)]).await?;
        for mut row in rows {
            let bytes: Vec<u8> = row.try_get("bytes").map_err(|error| errors::of_read(&error))?;
            joined.extend(bytes);
        }
    }
    Ok(joined)
}

/// As SQLite has numbers.
pub(super) fn integer(number: u64) -> Result<i64, LogError> {
    i64::try_from(number).map_err(|_| LogError::Failed(format!("{number} is larger than a number of the log can be")))
}
