//! `/backup`: what is in it, for whom it is, and that nothing else passes for one.

use crate::harness::{Cluster, answer, read_all};
use blixard::engine::backup::{self, BackupError};
use blixard::engine::state::{By, Command, Role};
use blixard::fs::tree::{Handle, OpenMode, Tree};
use blixard::text::Code;
use sha2::{Digest, Sha256};
use std::sync::Arc;

const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, append: false, nonblock: false };

async fn furnished() -> Cluster {
    let cluster = Cluster::new().await;
    cluster.vm("name=web image=tiny memory=64M").await;
    cluster.write("ipam/new", "name=lab network=10.50.0.0/24").await.unwrap();
    cluster
}

fn open(cluster: &Cluster) -> Arc<dyn Handle> {
    cluster.open(&cluster.root(), "backup", READ).unwrap().handle
}

fn read_back(bytes: &[u8]) -> Result<blixard::engine::state::State, BackupError> {
    backup::read(bytes).map(|(_, state)| state)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_state_at_its_first_read() {
    let cluster = furnished().await;
    let handle = open(&cluster);
    let state = cluster.engine.state();
    let first = answer(handle.read(0, 10)).await.unwrap();
    cluster.vm("name=later image=tiny").await;
    // Offsets mean nothing, and what is written meanwhile is not in it.
    let rest = read_all(&*handle).await.unwrap();
    let bytes = [&first[..], &rest].concat();
    assert_eq!(read_back(&bytes).unwrap(), *state);
    let (head, _) = backup::read(&bytes[..]).unwrap();
    assert_eq!((head.cluster.as_str(), head.seq), ("test", state.seq()));
    assert!(answer(handle.read(0, 10)).await.unwrap().is_empty(), "it has ended");
    let mut whole = Vec::new();
    backup::write(&state, &mut whole).unwrap();
    assert_eq!(whole, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_for_admins() {
    let cluster = furnished().await;
    let place = cluster.find("backup").unwrap();
    assert_eq!(cluster.stat("backup").mode, 0o444);
    for uid in [1001, 1002, 4_000_000_000] {
        let who = cluster.caller(uid);
        assert_eq!(cluster.server.stat(&who, place).unwrap().mode, 0, "{uid}");
        let refusal = cluster.server.open(&who, place, READ).err().unwrap();
        assert_eq!(refusal.code, Code::Denied, "{refusal}");
    }
    // Who is none any more reads no further.
    let set = |role| Command::UserSet { name: "ann".into(), role, uid: Some(1001) };
    cluster.submit(set(Role::Admin)).await;
    let handle = cluster.server.open(&cluster.caller(1001), place, READ).unwrap().handle;
    answer(handle.read(0, 10)).await.unwrap();
    cluster.engine.submit(By::User("root".into()), vec![set(Role::Viewer)]).await.unwrap();
    assert_eq!(answer(handle.read(0, 10)).await.unwrap_err().code, Code::Denied);
}

/// So many VMs with names that can't be compressed to less than half, that a backup does not fit into what waits for its reader.
async fn fill(cluster: &Cluster) {
    let name =
        |n: u32| -> String { Sha256::digest(n.to_be_bytes()).iter().map(|byte| format!("{byte:02x}")).collect() };
    for from in (0..12_500).step_by(2_500) {
        let new =
            |n| Command::VmNew { name: Some(format!("v{}", &name(n)[..60])), spec: Default::default(), key: None };
        cluster.engine.submit(By::User("root".into()), (from..from + 2_500).map(new).collect()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn few_are_read_at_a_time() {
    let cluster = furnished().await;
    fill(&cluster).await;
    let mut open_ones: Vec<_> = (0..4).map(|_| open(&cluster)).collect();
    for handle in &open_ones {
        answer(handle.read(0, 10)).await.unwrap();
    }
    let fifth = open(&cluster);
    assert_eq!(answer(fifth.read(0, 10)).await.unwrap_err().code, Code::Busy);
    // One is read to its end, the others are closed.
    let first = open_ones.swap_remove(0);
    assert!(read_all(&*first).await.unwrap().len() > 5 * 64 * 1024);
    open_ones.clear();
    for left in (0..1_000).rev() {
        match answer(fifth.read(0, 10)).await {
            Ok(bytes) => return assert_eq!(bytes.len(), 10),
            // Their threads have not noticed yet.
            Err(refusal) => assert!(refusal.code == Code::Busy && left > 0, "{refusal}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_passes_for_one() {
    let cluster = furnished().await;
    let mut bytes = Vec::new();
    backup::write(&cluster.engine.state(), &mut bytes).unwrap();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80] {
            let mut altered = bytes.clone();
            altered[at] ^= flip;
            assert!(read_back(&altered).is_err(), "byte {at}");
        }
        assert!(read_back(&bytes[..at]).is_err(), "cut at {at}");
    }
    let longer = [&bytes[..], b"\n"].concat();
    assert!(matches!(read_back(&longer), Err(BackupError::Damaged(_))));
    for foreign in [&b""[..], b"hello", b"blxsnap2", &[0; 4096]] {
        assert!(matches!(read_back(foreign), Err(BackupError::Foreign)), "{foreign:?}");
    }
    // From another version: whole, and not taken.
    let body = bytes.len() - 32;
    let mut other = bytes[..body].to_vec();
    other[10] ^= 0x40;
    let hash = Sha256::digest(&other);
    other.extend_from_slice(&hash);
    let refused = read_back(&other).unwrap_err();
    assert!(matches!(refused, BackupError::Format(_)), "{refused}");
    assert!(refused.to_string().contains("cluster 'test'"), "{refused}");
}
