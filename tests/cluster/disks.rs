//! Disks that are full, and disks that hang: the others go on, who can't says so, and is back by itself when the disk is.

use crate::lab::{Lab, NAMES, Node, await_same, form, leader, until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a disk hangs: several elections.
const HANGS: Duration = Duration::from_secs(5);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of its own for the data folder of a machine.
struct Disk {
    folder: PathBuf,
    frozen: bool,
}

impl Disk {
    fn mount(node: &Node, arguments: &[&str]) -> Disk {
        let folder = node.data().to_owned();
        std::fs::create_dir(&folder).unwrap();
        run("mount", &[arguments, &[folder.to_str().unwrap()]].concat());
        run("chmod", &["700", folder.to_str().unwrap()]);
        Disk { folder, frozen: false }
    }

    /// In memory, of so many MiB.
    fn small(node: &Node, mib: u64) -> Disk {
        Disk::mount(node, &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
    }

    /// One that can be frozen: ext4 in a file.
    fn of_file(node: &Node, file: &Path) -> Disk {
        let file = file.to_str().unwrap();
        run("truncate", &["-s", "512M", file]);
        run("mkfs.ext4", &["-q", "-O", "^has_journal", file]);
        Disk::mount(node, &["-o", "loop", file])
    }

    /// Leaves so many MiB free.
    fn fill(&self, free_mib: u64) {
        let of = rustix::fs::statvfs(&self.folder).unwrap();
        let free = of.f_bavail * of.f_frsize;
        let size = free.saturating_sub(free_mib << 20).to_string();
        run("fallocate", &["-l", &size, self.folder.join("ballast").to_str().unwrap()]);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.folder.join("ballast")).unwrap();
    }

    /// From now on whoever writes there waits.
    fn freeze(&mut self) {
        run("fsfreeze", &["-f", self.folder.to_str().unwrap()]);
        self.frozen = true;
    }

    fn thaw(&mut self) {
        run("fsfreeze", &["-u", self.folder.to_str().unwrap()]);
        self.frozen = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen {
            self.thaw();
        }
        let _ = Command::new("umount").args(["-l", self.folder.to_str().unwrap()]).status();
    }
}

/// Makes users through a node, and says which were acknowledged.
fn write_users(node: &Node, client: &str, count: usize) -> Vec<String> {
    let names = (0..count).map(|n| format!("{client}-{n}"));
    names.filter(|name| node.write("users/new", &format!("name={name}\n")).is_ok()).collect()
}

fn check_users(nodes: &[Node], names: &[String]) {
    await_same(nodes);
    for node in nodes {
        let list = node.read("users/list");
        let lost: Vec<_> = names.iter().filter(|name| !list.contains(&format!("{name} "))).collect();
        assert!(lost.is_empty(), "{}: lost {lost:?}", NAMES[node.at]);
    }
}

/// What is below, of a full disk on this node.
fn full(nodes: &[Node], disk: &Disk, victim: usize) -> Vec<String> {
    let (node, other) = (&nodes[victim], &nodes[(victim + 1) % 3]);
    let name = NAMES[victim];
    disk.fill(100);
    let refused = node.write("users/new", &format!("name=little-{victim}\n")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{refused}");
    for path in ["status", &format!("nodes/{name}/status")] {
        let said = node.value(path, "disk-full").unwrap_or_default();
        assert!(
            said.contains("no space left for the log: 9") || said.contains("no space left for the log: 100"),
            "{said}"
        );
    }
    let mut there = write_users(other, &format!("little{victim}"), 10);
    assert_eq!(there.len(), 10, "through the others all goes on");
    disk.make_room();
    until("that it takes writes again", || node.write("users/new", &format!("name=again-{victim}\n")).is_ok());
    assert_eq!(node.value("status", "disk-full"), None);

    // Hardly any room: it ends, and others lead if it did.
    disk.fill(8);
    until("that it waits for room", || {
        let _ = other.write("users/new", &format!("name=so-that-something-comes-to-{victim}\n"));
        node.trace_text().contains("this node waits for room on its disk")
    });
    until("that the others go on", || other.try_read("sync").is_ok());
    there.extend(write_users(other, &format!("none{victim}"), 50));
    assert!(there.len() >= 59, "{}", there.len());
    disk.make_room();
    until("that it is back", || node.try_read("sync").is_ok());
    there.extend(write_users(node, &format!("back{victim}"), 5));
    check_users(nodes, &there);
    there
}

#[test]
fn a_full_disk_is_its_nodes_own_trouble() {
    let lab = Lab::new(3);
    let nodes: Vec<Node> = (0..3).map(|at| Node::new(&lab, at)).collect();
    let disks: Vec<Disk> = nodes.iter().map(|node| Disk::small(node, 400)).collect();
    let nodes = form(nodes);
    let leads = leader(&nodes);
    let follower = (leads + 1) % 3;
    let mut there = full(&nodes, &disks[follower], follower);
    let leads = leader(&nodes);
    there.extend(full(&nodes, &disks[leads], leads));
    check_users(&nodes, &there);
}

#[test]
fn a_disk_that_hangs_is_its_nodes_own_trouble() {
    let lab = Lab::new(3);
    let nodes: Vec<Node> = (0..3).map(|at| Node::new(&lab, at)).collect();
    let mut disks: Vec<Disk> =
        nodes.iter().map(|node| Disk::of_file(node, &node.data().with_file_name("disk"))).collect();
    let nodes = form(nodes);
    let mut there = Vec::new();
    for role in ["follower", "leader"] {
        let leads = leader(&nodes);
        let victim = if role == "leader" { leads } else { (leads + 1) % 3 };
        let other = (victim + 1) % 3;
        disks[victim].freeze();
        let begun = Instant::now();
        // More than what is on its way in memory.
        let wrote = write_users(&nodes[other], &format!("{role}-hangs"), 100);
        assert!(wrote.len() >= 99, "{role}: {} were acknowledged", wrote.len());
        assert!(nodes[victim].read("status").contains("seq "), "reads go on");
        std::thread::sleep(HANGS.saturating_sub(begun.elapsed()));
        disks[victim].thaw();
        there.extend(wrote);
        until("that it is back", || nodes[victim].try_read("sync").is_ok());
        there.extend(write_users(&nodes[victim], &format!("{role}-after"), 5));
        check_users(&nodes, &there);
    }
}
