//! A backup out of a real node, and the cluster that begins from it.

use crate::support::{Node, simulated};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn restore(file: &Path, data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    command.arg("restore").arg(file).args(["--data", data.to_str().unwrap()]).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn seq(node: &Node) -> u64 {
    node.value("status", "seq").unwrap().parse().unwrap()
}

/// A node with something of everything, and a backup of it.
fn backed_up() -> (Node, Vec<u8>) {
    let node = simulated();
    let runs = node.new_vm("name=runs image=tiny memory=64M disk=64M").unwrap();
    node.write(&format!("vms/{runs}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(runs), "running");
    let stopped = node.new_vm("name=stopped image=tiny memory=64M").unwrap();
    node.write(&format!("vms/{stopped}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(stopped), "running");
    node.write(&format!("vms/{stopped}/ctl"), "kill\n").unwrap();
    assert_eq!(node.wait(stopped), "stopped");
    node.new_vm("name=never image=tiny").unwrap();
    node.write("users/new", "name=ann role=operator uid=1001\n").unwrap();
    node.write("ipam/new", "name=lab network=10.50.0.0/24\n").unwrap();
    let backup = node.shell("sh", "cat backup");
    assert!(backup.status.success(), "{}", said(&backup));
    (node, backup.stdout)
}

#[test]
fn a_cluster_begins_again_from_a_backup() {
    let (mut old, backup) = backed_up();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    std::fs::write(&file, backup).unwrap();
    let checked = restore(&file, &folder.path().join("nothing"), &["--check"]);
    assert!(checked.status.success() && said(&checked).contains("3 VMs, 1 nodes, 2 users"), "{}", said(&checked));
    let (seq_then, ip) = (seq(&old), old.value("vms/runs/status", "ip").unwrap());
    old.stop();
    let limits = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/small.toml");
    let (limits, images) = (limits.to_str().unwrap(), crate::support::images());
    let mut new =
        Node::unstarted(&["--hypervisor", "simulated", "--images", images.to_str().unwrap(), "--config", limits]);
    let done = restore(&file, &new.data(), &["--node", "omega", "--advertise", "localhost!5699"]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("begins again") && said(&done).contains("uid 0"), "{}", said(&done));
    assert_eq!(std::fs::metadata(new.data()).unwrap().permissions().mode() & 0o777, 0o700);
    new.start();
    assert!(seq(&new) > seq_then, "sequence numbers go on");
    let nodes = new.read("nodes/list");
    assert!(nodes.lines().count() == 2 && nodes.contains("omega"), "{nodes}");
    assert_eq!(new.value("vms/runs/status", "state").unwrap(), "failed");
    assert!(
        new.value("vms/runs/status", "error").unwrap().contains("as is its disk"),
        "{}",
        new.read("vms/runs/status")
    );
    assert_eq!(new.value("vms/runs/status", "ip").unwrap(), ip);
    assert_eq!(new.value("vms/stopped/status", "state").unwrap(), "stopped");
    assert_eq!(new.value("vms/never/status", "state").unwrap(), "defined");
    assert!(new.read("users/list").contains("ann") && new.read("ipam/list").contains("lab"));
    assert_eq!(new.new_vm("image=tiny").unwrap(), 4, "numbers are never used again");
    new.write("vms/runs/ctl", "start\n").unwrap();
    assert_eq!(new.wait(1), "running");
    // It is a cluster like any other: it is found again, and can be backed up.
    new.stop();
    new.start();
    assert_eq!(new.value("vms/4/status", "state").unwrap(), "defined");
    let again = new.shell("sh", "cat backup > /dev/null; blixard cluster invite");
    assert!(again.status.success() && said(&again).starts_with("blixard1."), "{}", said(&again));
    new.stop();
}

#[test]
fn what_can_not_be_restored_leaves_nothing() {
    let (mut node, backup) = backed_up();
    let folder = tempfile::tempdir().unwrap();
    let (file, data) = (folder.path().join("backup"), folder.path().join("data"));
    let refused = |bytes: &[u8], why: &str| {
        std::fs::write(&file, bytes).unwrap();
        let output = restore(&file, &data, &[]);
        assert!(!output.status.success() && said(&output).contains(why), "{why}: {}", said(&output));
        assert!(!data.exists(), "{why}");
    };
    let mut altered = backup.clone();
    altered[backup.len() / 2] ^= 1;
    refused(&altered, "damaged");
    refused(&backup[..backup.len() - 100], "damaged");
    refused(b"something else", "no backup of blixard's");
    std::fs::write(&file, &backup).unwrap();
    for (arguments, why) in [(["--node", "No Name"], "invalid"), (["--advertise", "*"], "invalid address")] {
        let output = restore(&file, &data, &arguments);
        assert!(!output.status.success() && said(&output).contains(why), "{}", said(&output));
        assert!(!data.exists(), "{why}");
    }
    node.stop();
    let output = restore(&file, &node.data(), &[]);
    assert!(!output.status.success() && said(&output).contains("already"), "{}", said(&output));
    node.start();
    assert_eq!(node.value("vms/runs/status", "name").unwrap(), "runs", "what was there is as it was");
    node.stop();
}
