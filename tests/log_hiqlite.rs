//! The log in hiqlite by itself: what it promises to the engine.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use blixard::engine::log::{Committed, HiqliteLog, Log, OpenOptions, Record};
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;

async fn open(folder: &Path) -> (HiqliteLog, Committed) {
    HiqliteLog::open(folder, 1, OpenOptions::default()).await.expect("the log opens")
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
