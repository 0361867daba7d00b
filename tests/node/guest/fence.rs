//! What becomes of a guest when its daemon can't renew the node's lease: with `ha=restart` it is over when the lease is, with `ha=stay`
//! nothing happens to it.

use crate::secure::until;
use crate::support::{Node, images};
use blixard::engine::host::deadline::{Term, open, read};
use blixard::engine::host::process::parent;
use blixard::engine::host::{BootClock, HostClock};
use rustix::process::Signal;

/// A node whose lease is short, with a guest that is fenced and one that stays.
struct Pair {
    node: Node,
    fenced: u64,
    stays: u64,
}

impl Pair {
    fn new() -> Pair {
        let node = Node::prepared(|folder| {
            let config = folder.join("config.toml");
            std::fs::write(&config, "[lease]\nlength = \"4s\"\n").unwrap();
            let (config, images) = (config.display().to_string(), images().display().to_string());
            ["--hypervisor", "qemu", "--images", &images, "--config", &config].map(str::to_owned).to_vec()
        });
        let fenced = node.new_vm("name=fenced image=tiny memory=128M ha=restart").unwrap();
        let stays = node.new_vm("name=stays image=tiny memory=128M ha=stay").unwrap();
        for id in [fenced, stays] {
            node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
            assert_eq!(node.wait(id), "running");
        }
        Pair { node, fenced, stays }
    }

    fn pid(&self, id: u64) -> Option<u32> {
        self.node.machines().into_iter().find(|(_, of)| *of == id).map(|(pid, _)| pid)
    }

    fn term(&self) -> Term {
        read(&open(&self.node.data().join("deadline")).unwrap()).unwrap()
    }

    /// The fenced guest ends when the lease does, and not before; the other one runs on.
    fn ends_with_the_lease(&self, begun: Term) {
        let stays = self.pid(self.stays);
        assert!(stays.is_some());
        until("the fenced guest's end", || self.pid(self.fenced).is_none());
        let (now_ns, term) = (HostClock.now_ns(), self.term());
        assert!(now_ns >= term.ends_ns, "it was ended {} ns before its time", term.ends_ns - now_ns);
        assert_eq!(term.tenure, begun.tenure);
        assert_eq!(self.pid(self.stays), stays, "the other one runs on");
    }

    /// It is started anew, and that is no failure.
    fn is_begun_again(&self) {
        let status = |key: &str| self.node.value(&format!("vms/{}/status", self.fenced), key);
        until("another generation", || status("generation").as_deref() == Some("2"));
        assert_eq!(self.node.wait(self.fenced), "running");
        assert!(self.pid(self.fenced).is_some());
        self.node.wait_line(&format!("vms/{}/events", self.fenced), "ended by its fence");
        assert!(matches!(status("failures").as_deref(), None | Some("0")), "{:?}", status("failures"));
    }
}

#[test]
fn of_a_stopped_daemon_it_dies_and_is_begun_again() {
    let pair = Pair::new();
    let frozen = pair.node.freeze();
    pair.ends_with_the_lease(pair.term());
    drop(frozen);
    pair.is_begun_again();
}

#[test]
fn of_a_killed_daemon_it_dies_and_the_next_one_begins_it_again() {
    let mut pair = Pair::new();
    pair.node.kill();
    pair.ends_with_the_lease(pair.term());
    let stays = pair.pid(pair.stays);
    pair.node.start();
    pair.is_begun_again();
    assert_eq!(pair.pid(pair.stays), stays);
}

#[test]
fn of_a_daemon_that_is_started_again_it_lives_on() {
    let mut pair = Pair::new();
    let (pid, begun) = (pair.pid(pair.fenced), pair.term());
    for end in [Node::kill, Node::stop] {
        end(&mut pair.node);
        pair.node.start();
        let before = pair.term();
        until("three renewals", || pair.term().ends_ns > before.ends_ns + 4_000_000_000);
        assert_eq!(pair.term().tenure, begun.tenure);
        assert_eq!(pair.pid(pair.fenced), pid);
    }
    // Its fence is not taken for it: what is asked for reaches the machine, and nothing of it stays.
    pair.node.write(&format!("vms/{}/ctl", pair.fenced), "stop\n").unwrap();
    assert_eq!(pair.node.wait(pair.fenced), "stopped");
    assert_eq!(pair.pid(pair.fenced), None);
    pair.node.delete(pair.fenced);
    let host = pair.node.read("nodes/list");
    let name = host.lines().nth(1).unwrap().split(' ').next().unwrap();
    let status = pair.node.read(&format!("nodes/{name}/status"));
    assert!(!status.lines().any(|line| line.starts_with("leftover ")), "{status}");
}

#[test]
fn with_its_fence_it_dies_and_is_retried() {
    let pair = Pair::new();
    let fence = parent(pair.pid(pair.fenced).unwrap()).unwrap().unwrap();
    let pid = rustix::process::Pid::from_raw(fence as i32).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    pair.node.wait_line(&format!("vms/{}/events", pair.fenced), "killed from outside");
    let generation = || pair.node.value(&format!("vms/{}/status", pair.fenced), "generation");
    until("another generation", || generation().as_deref() == Some("2"));
    assert_eq!(pair.node.wait(pair.fenced), "running");
}
