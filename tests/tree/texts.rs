//! What is read: texts that do not change under their reader, and say what the state says.

use crate::harness::{Cluster, answer, read_all, write};
use blixard::engine::state::{Command, VmId, VmReport};
use blixard::fs::tree::{OpenMode, Tree};

fn report(report: VmReport) -> Command {
    Command::VmReport { vm: VmId(1), generation: 1, report }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_stays_until_it_is_read_from_the_start_again() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M name=web").await;
    let how = OpenMode { read: true, ..OpenMode::default() };
    let handle = cluster.open(&cluster.root(), "vms/1/state", how).unwrap().handle;
    let at = |offset| answer(handle.read(offset, 4));
    cluster.write("vms/1/ctl", "start").await.unwrap();
    assert_eq!(at(0).await.unwrap(), "defi", "as it was at the open");
    cluster.report(report(VmReport::Started { pid: 7 })).await;
    assert_eq!(at(4).await.unwrap(), "ned\n", "the rest of the same");
    assert_eq!(at(0).await.unwrap(), "runn", "and anew from the start");
    cluster.write("vms/1/ctl", "kill").await.unwrap();
    assert_eq!(at(4).await.unwrap(), "ing\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_what_is_gone_is_read_to_its_end() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M name=web").await;
    let how = OpenMode { read: true, ..OpenMode::default() };
    let handle = cluster.open(&cluster.root(), "vms/1/status", how).unwrap().handle;
    let place = cluster.find("vms/1/status").unwrap();
    cluster.write("vms/1/ctl", "delete").await.unwrap();
    let text = read_all(&*handle).await.unwrap();
    assert!(text.starts_with(b"id 1\nname web\n"));
    assert!(answer(handle.read(0, 10)).await.is_err(), "there is nothing to make it of any more");
    assert!(cluster.server.stat(&cluster.root(), place).is_err());
    assert!(cluster.server.open(&cluster.root(), place, how).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_makes_a_twin() {
    let cluster = Cluster::new().await;
    cluster.vm("name=web image=tiny cpus=2 memory=96M disk=1G restart=always grace=1m30s").await;
    let spec = cluster.read("vms/1/spec").await;
    let whole = "image=tiny cpus=2 memory=96M disk=1G restart=always grace=1m30s ha=stay place=spread priority=5\n";
    assert_eq!(spec, whole);
    let twin = cluster.vm(&spec).await;
    assert_eq!(cluster.read(&format!("vms/{twin}/spec")).await, spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_was_set_what_is_known_of_it_and_how_busy_it_is() {
    let cluster = Cluster::new().await;
    assert_eq!(cluster.read("nodes/alpha/spec").await, "labels='' memory-ratio=100% disk-ratio=100%\n");
    cluster.write("nodes/alpha/ctl", "set labels=rack:3,ssd memory-ratio=150% cpu-ratio=400%").await.unwrap();
    let spec = cluster.read("nodes/alpha/spec").await;
    assert_eq!(spec, "labels=rack:3,ssd memory-ratio=150% cpu-ratio=400% disk-ratio=100%\n");
    let json = || async { serde_json::from_str::<serde_json::Value>(&cluster.read("nodes/alpha/json").await).unwrap() };
    let set = json().await;
    assert_eq!((&set["name"], &set["state"], &set["schedule"]), (&"alpha".into(), &"up".into(), &"open".into()));
    assert_eq!(
        set["spec"],
        serde_json::json!({
            "labels": ["rack:3", "ssd"], "memory_ratio": 150, "cpu_ratio": 400, "disk_ratio": 100,
        })
    );
    // What it says is what is to be written to have it so.
    cluster.write("nodes/alpha/ctl", "set labels= memory-ratio=100% disk-ratio=300%").await.unwrap();
    assert_eq!(json().await["spec"]["labels"], serde_json::json!([]));
    cluster.write("nodes/alpha/ctl", &format!("set {spec}")).await.unwrap();
    assert_eq!(cluster.read("nodes/alpha/spec").await, spec);
    assert_eq!(cluster.read("nodes/alpha/stats").await, "load 0.10 0.20 0.30\n");
    let vm = cluster.vm("image=tiny memory=64M").await;
    assert_eq!(cluster.read(&format!("vms/{vm}/stats")).await, format!("running yes\npid {vm}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_key_value_lines_and_json_says_the_same() {
    let cluster = Cluster::new().await;
    cluster.vm("name=web image=tiny cpus=2 memory=96M").await;
    cluster.write("vms/1/ctl", "start").await.unwrap();
    cluster.report(report(VmReport::Started { pid: 4711 })).await;
    cluster.report(report(VmReport::Trouble { sentence: "the disk\nis slow".into() })).await;
    let status = cluster.read("vms/web/status").await;
    let value = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).map(str::to_owned);
    for (key, expected) in [
        ("id", "1"),
        ("name", "web"),
        ("state", "running"),
        ("desired", "running"),
        ("node", "alpha"),
        ("pid", "4711"),
        ("image", "tiny"),
        ("cpus", "2"),
        ("memory", "96M"),
        ("owner", "root"),
        ("generation", "1"),
        ("error", "the disk is slow"),
    ] {
        assert_eq!(value(key).as_deref(), Some(expected), "{key} in {status}");
    }
    assert!(status.lines().all(|line| line.contains(' ')), "{status}");
    let json: serde_json::Value = serde_json::from_str(&cluster.read("vms/1/json").await).unwrap();
    assert_eq!(json["memory"], serde_json::Value::Null, "what was asked for is in its spec");
    assert_eq!((json["spec"]["memory"].as_u64(), json["pid"].as_u64()), (Some(96 << 20), Some(4711)));
    let all: serde_json::Value = serde_json::from_str(&cluster.read("vms/json").await).unwrap();
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    assert_eq!(all[0], json);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_has_their_own_errors() {
    let cluster = Cluster::new().await;
    cluster.write("vms/new", "image=none-such").await.unwrap_err();
    let (ann, nobody) = (cluster.caller(1001), cluster.caller(4_000));
    cluster.write_as(&ann, "ipam/new", "name=x").await.unwrap_err();
    cluster.write_as(&nobody, "vms/new", "image=tiny").await.unwrap_err();
    let how = OpenMode { read: true, ..OpenMode::default() };
    for (who, says) in [(cluster.root(), "none-such"), (ann, "'ann'"), (nobody, "'none'")] {
        let err = cluster.open(&who, "err", how).unwrap().handle;
        let text = String::from_utf8(read_all(&*err).await.unwrap()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(says), "{text}");
    }
    assert!(!cluster.read("vms/list").await.contains("tiny"));
}

#[tokio::test(flavor = "multi_thread")]
async fn me_says_who_the_server_takes_you_for() {
    let cluster = Cluster::new().await;
    let how = OpenMode { read: true, ..OpenMode::default() };
    for (uid, says) in [
        (0, "user root\nrole admin\nuid 0\n"),
        (1001, "user ann\nrole operator\n"),
        (9, "user none\nrole none\nuid 9\n"),
    ] {
        let handle = cluster.open(&cluster.caller(uid), "me", how).unwrap().handle;
        let text = String::from_utf8(read_all(&*handle).await.unwrap()).unwrap();
        assert!(text.starts_with(says) && text.ends_with("authenticated-by test\ndialect direct\n"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ctl_shows_its_verbs_and_what_they_really_take() {
    let cluster = Cluster::new().await;
    cluster.vm("image=tiny memory=64M").await;
    let usage = cluster.read("vms/1/ctl").await;
    for line in usage.lines().filter(|l| !l.starts_with('#') && !l.starts_with(' ')) {
        assert!(!line.contains("wait="), "{line}: no write waits");
    }
    let handle = cluster.both("vms/1/ctl");
    write(&*handle, "stop\n").await.unwrap();
    assert_eq!(read_all(&*handle).await.unwrap(), usage.as_bytes());
}
