//! What is written: clone files, verbs, transactions, conditions, rights.

use crate::harness::{Cluster, next, read_all, write};
use blixard::engine::state::{Command, Role};
use blixard::fs::tree::{OpenMode, Tree};
use blixard::text::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_file_gives_the_numbers_back_on_the_same_open() {
    let cluster = Cluster::new().await;
    let handle = cluster.both("vms/new");
    write(&*handle, "image=tiny memory=64M name=a\n# two\nimage=tiny memory=64M name=b").await.unwrap();
    assert_eq!(next(&*handle).await, "1\n2\n");
    assert_eq!(next(&*handle).await, "", "and then the end");
    write(&*handle, "image=tiny memory=64M\n").await.unwrap();
    assert_eq!(next(&*handle).await, "3\n", "a write begins anew");
    // Another open of the same file has its own answer; opened for writing alone it makes just the same.
    assert!(cluster.read("vms/new").await.starts_with("# "));
    cluster.write("vms/new", "image=tiny memory=64M name=c").await.unwrap();
    assert_eq!(cluster.read("vms/c/state").await, "defined\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refused_write_there_is_no_number_to_be_read() {
    let cluster = Cluster::new().await;
    let handle = cluster.both("vms/new");
    write(&*handle, "image=none-such").await.unwrap_err();
    assert_eq!(next(&*handle).await, "");
    write(&*handle, "image=tiny").await.unwrap();
    write(&*handle, "image=tiny cpus=0").await.unwrap_err();
    assert_eq!(next(&*handle).await, "", "not that of the one before");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_machines_in_one_write() {
    let cluster = Cluster::new().await;
    let handle = cluster.both("vms/new");
    write(&*handle, "image=tiny memory=64M\n".repeat(2_000)).await.unwrap();
    let numbers = String::from_utf8(read_all(&*handle).await.unwrap()).unwrap();
    let numbers: Vec<u64> = numbers.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=2_000).collect::<Vec<u64>>());
    assert_eq!(cluster.read("vms/list").await.lines().count(), 2_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_a_repeated_write_harmless() {
    let cluster = Cluster::new().await;
    assert_eq!(cluster.vm("image=tiny memory=64M id=mine").await, 1);
    assert_eq!(cluster.vm("image=tiny memory=64M id=mine").await, 1);
    assert_eq!(cluster.vm("image=tiny memory=64M id=other").await, 2);
    let refusal = cluster.write("vms/new", "image=tiny memory=96M id=mine").await.unwrap_err();
    assert_eq!(refusal.code, Code::Exists, "{refusal}");
    cluster.write("vms/1/ctl", "start id=k").await.unwrap();
    cluster.write("vms/1/ctl", "kill").await.unwrap();
    cluster.write("vms/1/ctl", "start id=k").await.unwrap();
    assert!(cluster.read("vms/1/status").await.contains("desired stopped\n"), "done before, so not done again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_makes_a_verb_conditional() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let version = || async {
        let status = cluster.read("vms/1/status").await;
        status.lines().find_map(|l| l.strip_prefix("version ")).unwrap().parse::<u64>().unwrap()
    };
    let seen = version().await;
    cluster.write("vms/1/ctl", &format!("set cpus=2 version={seen}")).await.unwrap();
    let refusal = cluster.write("vms/1/ctl", &format!("set cpus=3 version={seen}")).await.unwrap_err();
    assert_eq!(refusal.code, Code::Stale, "{refusal}");
    assert!(refusal.sentence.contains(&format!("version {}", version().await)), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_before_a_write_means_nothing() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let root = cluster.root();
    let place = cluster.find("vms/1/ctl").unwrap();
    let how = OpenMode { write: true, truncate: true, ..OpenMode::default() };
    let handle = cluster.server.open(&root, place, how).unwrap().handle;
    cluster.server.truncate(&root, place, 0).unwrap();
    write(&*handle, "set cpus=2").await.unwrap();
    assert!(cluster.read("vms/1/spec").await.contains("cpus=2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_follow_the_role_even_on_files_that_are_open() {
    let cluster = Cluster::new().await;
    let ann = cluster.caller(1001);
    let how = OpenMode { write: true, ..OpenMode::default() };
    cluster.write_as(&ann, "vms/new", "image=tiny memory=64M").await.unwrap();
    let new = cluster.open(&ann, "vms/new", how).unwrap().handle;
    let ctl = cluster.open(&ann, "vms/1/ctl", how).unwrap().handle;
    cluster.submit(Command::UserSet { name: "ann".into(), role: Role::Viewer, uid: Some(1001) }).await;
    for (handle, text) in [(&new, "image=tiny"), (&ctl, "start")] {
        let refusal = write(&**handle, text).await.unwrap_err();
        assert_eq!(refusal.code, Code::Denied, "{refusal}");
    }
    assert_eq!(cluster.server.stat(&ann, cluster.find("vms/1/ctl").unwrap()).unwrap().mode, 0o444);
    // What only this node does is asked anew as well.
    cluster.write("users/new", "name=bob role=admin uid=1003").await.unwrap();
    let bob = cluster.caller(1003);
    let ctl = cluster.open(&bob, "nodes/alpha/ctl", how).unwrap().handle;
    write(&*ctl, "trace level=debug").await.unwrap();
    cluster.write("users/bob/ctl", "set role=operator").await.unwrap();
    assert_eq!(write(&*ctl, "trace level=trace").await.unwrap_err().code, Code::Denied);
    assert_eq!(*cluster.host.trace_levels.lock().unwrap(), ["debug"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_verb_is_part_of_its_transaction() {
    let cluster = Cluster::new().await;
    for text in ["trace level=debug\nfly", "trace level=debug\ntrace level=inof", "trace level=debug\ntrace"] {
        cluster.write("nodes/alpha/ctl", text).await.unwrap_err();
    }
    assert!(cluster.host.trace_levels.lock().unwrap().is_empty(), "nothing was done");
    cluster.write("nodes/alpha/ctl", "trace level=debug\ntrace level=info").await.unwrap();
    assert_eq!(*cluster.host.trace_levels.lock().unwrap(), ["debug", "info"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rmdir_deletes_what_does_not_run() {
    let cluster = Cluster::new().await;
    let root = cluster.root();
    cluster.vm("image=tiny memory=64M name=web").await;
    let vms = cluster.find("vms").unwrap();
    let rmdir = |name: &'static str| crate::harness::answer(cluster.server.remove(&root, vms, name, true));
    cluster.write("vms/1/ctl", "start").await.unwrap();
    let refusal = rmdir("1").await.unwrap_err();
    assert_eq!(refusal.code, Code::Busy, "{refusal}");
    cluster.vm("image=tiny memory=64M").await;
    rmdir("2").await.unwrap();
    assert_eq!(rmdir("2").await.unwrap_err().code, Code::NotFound);
    cluster.write("ipam/new", "name=lab network=10.50.0.0/24").await.unwrap();
    let ipam = cluster.find("ipam").unwrap();
    let as_ann = cluster.server.remove(&cluster.caller(1001), ipam, "lab", true);
    assert_eq!(crate::harness::answer(as_ann).await.unwrap_err().code, Code::Denied);
    crate::harness::answer(cluster.server.remove(&root, ipam, "lab", true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_made_once_and_changed_by_their_ctl() {
    let cluster = Cluster::new().await;
    let refusal = cluster.write("users/new", "name=root role=viewer").await.unwrap_err();
    assert_eq!(refusal.code, Code::Exists, "{refusal}");
    cluster.write("users/vic/ctl", "set role=operator").await.unwrap();
    let status = cluster.read("users/vic/status").await;
    assert!(status.contains("role operator\nuid 1002\n"), "{status}");
}
