//! The log in hiqlite by itself: what it promises to the engine.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use blixard::engine::log::{
    Addresses, AppendError, Committed, HiqliteLog, Log, LogError, Member, OpenOptions, Record, Snapshot,
};
use blixard::peers::Loopback;
use bytes::Bytes;
use hiqlite::rusqlite::Connection;
use std::path::Path;
use std::time::Duration;

/// The only member of a cluster, at an address of its own.
fn member() -> Member {
    let (raft, api) = Loopback::random().unwrap().addresses(1).unwrap();
    Member { raft: 1, own: Addresses { raft, api }, others: Vec::new(), forward: None }
}

async fn open(folder: &Path) -> (HiqliteLog, Committed) {
    HiqliteLog::open(folder, &member(), OpenOptions::default()).await.expect("the log opens")
}

fn bytes(number: u64) -> Bytes {
    Bytes::from(format!("record {number}"))
}

async fn receive(committed: &mut Committed, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        let received = tokio::time::timeout(Duration::from_secs(20), committed.receive(&mut records, count)).await;
        assert_ne!(received.expect("records come in time"), 0);
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_comes_in_order_and_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (log, mut committed) = open(folder.path()).await;
    for number in 1..=100 {
        log.append(vec![bytes(number)]).await.unwrap();
    }
    log.append((101..=300).map(bytes).collect()).await.unwrap();
    let wanted: Vec<Record> = (1..=300).map(|seq| Record { seq, bytes: bytes(seq) }).collect();
    assert_eq!(receive(&mut committed, 300).await, wanted);
    assert_eq!(log.read(0, 1000).await.unwrap(), wanted);
    assert_eq!(log.read(290, 5).await.unwrap(), wanted[290..295]);
    log.close().await;
    drop(log);
    let (log, _committed) = open(folder.path()).await;
    assert_eq!(log.read(0, 1000).await.unwrap(), wanted);
    log.append(vec![bytes(301)]).await.unwrap();
    assert_eq!(log.read(300, 10).await.unwrap(), vec![Record { seq: 301, bytes: bytes(301) }]);
    log.close().await;
}

fn database(folder: &Path) -> Connection {
    let path = folder.join("state_machine").join("db").join("hiqlite.db");
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
}

fn snapshot(seq: u64, size: usize) -> Snapshot {
    // Bytes that don't compress, so that there are several parts.
    let mut state = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    });
    Snapshot { seq, bytes: random.take(size).collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_whole_snapshot_counts_and_the_log_is_cut_no_further_than_it() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _committed) = open(folder.path()).await;
    assert_eq!(log.snapshot().await.unwrap(), None);
    for chunk in 0..60 {
        log.append((chunk * 200 + 1..=(chunk + 1) * 200).map(bytes).collect()).await.unwrap();
    }
    for seq in [3_000, 6_000, 9_000] {
        log.save_snapshot(snapshot(seq, 3 << 20)).await.unwrap();
        assert_eq!(log.snapshot().await.unwrap(), Some(snapshot(seq, 3 << 20)));
    }
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        database(folder.path()).query_row(&sql, (), |row| row.get(0)).unwrap()
    };
    assert_eq!(count("snapshot"), 2, "two are kept");
    // No further than the newest snapshot, in slices.
    log.cut(20_000).await.unwrap();
    assert_eq!(count("log"), 3_000);
    assert!(log.read(8_999, 1).await.is_err(), "what was cut is not silently left out");
    assert_eq!(log.read(9_000, 1).await.unwrap(), vec![Record { seq: 9_001, bytes: bytes(9_001) }]);
    // Torn: a part is missing, then one is altered, then nothing is left.
    database(folder.path()).execute("DELETE FROM snapshot_part WHERE seq = 9000 AND part = 1", ()).unwrap();
    assert_eq!(log.snapshot().await.unwrap().map(|snapshot| snapshot.seq), Some(6_000));
    database(folder.path())
        .execute("UPDATE snapshot_part SET bytes = zeroblob(length(bytes)) WHERE seq = 6000 AND part = 0", ())
        .unwrap();
    assert_eq!(log.snapshot().await.unwrap(), None);
    // A restart builds the database anew from the Raft log: both are whole again.
    log.close().await;
    drop(log);
    let (log, _committed) = open(folder.path()).await;
    assert_eq!(log.snapshot().await.unwrap(), Some(snapshot(9_000, 3 << 20)));
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_record_is_an_error_and_not_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _committed) = open(folder.path()).await;
    log.append((1..=10).map(bytes).collect()).await.unwrap();
    database(folder.path()).execute("UPDATE log SET bytes = x'00' WHERE seq = 5", ()).unwrap();
    assert_eq!(log.read(0, 4).await.unwrap().len(), 4);
    let error = log.read(0, 10).await.unwrap_err();
    assert!(matches!(&error, LogError::Damaged { what, .. } if what.contains("record 5")), "{error}");
    database(folder.path()).execute("DELETE FROM log WHERE seq = 8", ()).unwrap();
    let error = log.read(5, 10).await.unwrap_err();
    assert!(matches!(&error, LogError::Damaged { what, .. } if what.contains("record 8")), "{error}");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_never_used_again_even_when_everything_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _committed) = open(folder.path()).await;
    log.append((1..=10).map(bytes).collect()).await.unwrap();
    log.save_snapshot(snapshot(10, 100)).await.unwrap();
    log.cut(10).await.unwrap();
    log.append(vec![bytes(11)]).await.unwrap();
    assert_eq!(log.read(10, 5).await.unwrap(), vec![Record { seq: 11, bytes: bytes(11) }]);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_is_there_after_a_restart_and_a_broken_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _committed) = open(folder.path()).await;
    assert_eq!(log.last_mark(), None);
    log.mark(7, [7; 32]).unwrap();
    log.mark(8, [8; 32]).unwrap();
    log.close().await;
    drop(log);
    let (log, _committed) = open(folder.path()).await;
    assert_eq!(log.last_mark(), Some((8, [8; 32])));
    log.close().await;
    drop(log);

    let path = folder.path().join("mark");
    let mut mark = std::fs::read(&path).unwrap();
    mark[20] ^= 1;
    std::fs::write(&path, &mark).unwrap();
    let error = HiqliteLog::open(folder.path(), &member(), OpenOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("mark") && error.contains("--accept-loss"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = HiqliteLog::open(folder.path(), &member(), OpenOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");

    let accept = OpenOptions { accept_loss: true, ..OpenOptions::default() };
    let (log, _committed) = HiqliteLog::open(folder.path(), &member(), accept).await.unwrap();
    assert_eq!(log.last_mark(), None);
    log.close().await;
}

/// A first start that was killed between making its mark and writing it, or a power cut that took what it had written.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_mark_that_was_never_whole_is_none() {
    for torn in [&b""[..], &b"blxmark1\0\0"[..], &[0; 56][..]] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mark"), torn).unwrap();
        let (log, _committed) = open(folder.path()).await;
        assert_eq!(log.last_mark(), None);
        log.mark(1, [1; 32]).unwrap();
        log.close().await;
        drop(log);
        // Beside a log it is damage.
        std::fs::write(folder.path().join("mark"), torn).unwrap();
        let error = HiqliteLog::open(folder.path(), &member(), OpenOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }
    // A whole record that is wrong was written once: the log that it belonged to is gone.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mark"), [7; 56]).unwrap();
    let error = HiqliteLog::open(folder.path(), &member(), OpenOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

/// A small file system of its own, for root only.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status()
            .unwrap();
        if !mounted.success() {
            eprintln!("skipped: this machine does not let root mount a tmpfs");
            return None;
        }
        Some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _status = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_they_go_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new("96m") else { return };
    let folder = disk.0.path().join("log");
    let options = OpenOptions { disk_reserve_bytes: 32 << 20, ..OpenOptions::default() };
    let (log, _committed) = HiqliteLog::open(&folder, &member(), options.clone()).await.unwrap();
    log.append(vec![bytes(1)]).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1_u8; 64 << 20]).ok();
    let error = log.append(vec![bytes(2)]).await.unwrap_err();
    assert!(matches!(&error, AppendError::Full(why) if why.contains("no space")), "{error:?}");
    std::fs::remove_file(&ballast).unwrap();
    log.append(vec![bytes(2)]).await.unwrap();
    assert_eq!(log.read(0, 5).await.unwrap().len(), 2);
    log.close().await;
    drop(log);
    // And it does not even start while the disk is full: its files are mapped, and a full disk would be its sudden end.
    std::fs::write(&ballast, vec![1_u8; 80 << 20]).ok();
    let error = HiqliteLog::open(&folder, &member(), options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("no space"), "{error}");
    std::fs::remove_file(&ballast).unwrap();
    let (log, _committed) = HiqliteLog::open(&folder, &member(), options).await.unwrap();
    assert_eq!(log.read(0, 5).await.unwrap().len(), 2);
    log.close().await;
}
