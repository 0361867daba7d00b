//! An owner that is stopped (SIGSTOP) for longer than its lease: its machine begins elsewhere, and there never are two that run.
//!
//! The network namespaces of a lab have one list of processes between them, so that whoever looks at it sees the machines of all nodes.

use crate::lab::{Lab, NAMES, Node, await_same, cluster_with, until};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A lease that is over soon: the others wait for five seconds.
const SHORT: &str = "[lease]\nlength = \"3s\"\ndrift = \"20%\"\ngrace = \"1s\"\n";
/// A look at all processes takes some milliseconds, and this comes after it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A machine's process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Machine {
    pid: i32,
    uuid: String,
    /// Stopped by a signal, or killed and about to go: it is there, and does nothing.
    stopped: bool,
}

/// The machines of this lab that have a process now.
fn machines(folder: &str) -> Vec<Machine> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        // Its fence and what it is started by have the same words, behind another program.
        if !words[0].contains("qemu-system") || !line.contains(folder) {
            continue;
        }
        let at = words.iter().position(|word| *word == "-uuid").unwrap();
        let stopped = is_stopped(&entry.path());
        found.push(Machine { pid, uuid: words[at + 1].to_owned(), stopped });
    }
    found
}

/// Is it stopped, or about to go? proc(5): the kernel's flags have PF_EXITING (4) and PF_SIGNALED (0x400) then, and a SIGKILL that it has not taken
/// yet is among its pending signals.
fn is_stopped(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let flags: u64 = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0x4);
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let is_killed =
        pending.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & (1 << 8) != 0);
    matches!(fields[0], "T" | "Z" | "X") || flags & 0x404 != 0 || is_killed
}

/// Looks for machines all the time.
struct Watch {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What a watch has seen.
#[derive(Debug, Default)]
struct Seen {
    looks: u64,
    pids: BTreeSet<i32>,
    /// Looks with more than one process of one uuid.
    two: Vec<Vec<Machine>>,
}

impl Seen {
    /// Of these looks, those in which more than one of them could do something.
    fn two_that_run(&self) -> Vec<&Vec<Machine>> {
        self.two.iter().filter(|look| look.iter().filter(|machine| !machine.stopped).count() > 1).collect()
    }
}

impl Watch {
    fn begin(lab: &Lab) -> Watch {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (told, folder) = (stop.clone(), lab.folder().to_str().unwrap().to_owned());
        let look = move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Relaxed) {
                let there = machines(&folder);
                seen.looks += 1;
                seen.pids.extend(there.iter().map(|machine| machine.pid));
                let uuids: BTreeSet<&String> = there.iter().map(|machine| &machine.uuid).collect();
                if uuids.len() < there.len() {
                    seen.two.push(there);
                }
                std::thread::sleep(BETWEEN_LOOKS);
            }
            seen
        };
        Watch { stop, thread: std::thread::spawn(look) }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Three nodes, and a guest on one of them.
struct Bed {
    nodes: Vec<Node>,
    /// Where the guest is at first.
    owner: usize,
    /// Another node.
    other: usize,
    id: String,
}

impl Bed {
    fn new(lab: &Lab) -> Bed {
        let nodes = cluster_with(SHORT, "qemu", lab, 3);
        let id = nodes[0].new_object("vms/new", "name=web image=tiny memory=128M ha=restart").unwrap();
        nodes[0].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
        assert_eq!(nodes[0].read(&format!("vms/{id}/wait")), "running\n");
        let on = nodes[0].value("vms/web/status", "node").unwrap();
        let owner = nodes.iter().position(|node| NAMES[node.at] == on).unwrap();
        Bed { nodes, owner, other: (owner + 1) % 3, id }
    }

    fn of_vm(&self, key: &str) -> Option<String> {
        self.nodes[self.other].value(&format!("vms/{}/status", self.id), key)
    }

    fn await_it_elsewhere(&self) {
        until("the machine, elsewhere", || {
            let elsewhere = self.of_vm("node").is_some_and(|node| node != NAMES[self.owner]);
            elsewhere && self.of_vm("state").as_deref() == Some("running")
        });
        assert_eq!(self.of_vm("generation").unwrap(), "2");
    }

    /// The owner goes on: it finds out that the VM is another's by now, and says so.
    fn owner_finds_out(&self) {
        let owner = &self.nodes[self.owner];
        until("that it is back", || owner.try_read("sync").is_ok());
        until("that it clears up", || !owner.data().join("vms").join(&self.id).exists());
        let folder = owner.data().to_str().unwrap().to_owned();
        assert_eq!(machines(&folder), [], "nothing of it runs there");
        let said = format!("vm={}", self.id);
        let said = |line: &str| {
            line.contains(&said) && line.contains("its machine has ended here, and the vm is another node's")
        };
        let trace = owner.trace_text();
        assert!(trace.lines().any(said) && !trace.contains(" ERROR "), "{trace}");
        let status = format!("nodes/{}/status", NAMES[self.owner]);
        until("that it is not lost any more", || owner.value(&status, "state").is_some_and(|state| state == "up"));
        assert_eq!(owner.value(&status, "machines").unwrap(), "0");
        await_same(&self.nodes);
    }

    fn end(&self) {
        let other = &self.nodes[self.other];
        other.write("vms/web/ctl", "kill\n").unwrap();
        assert_eq!(other.read("vms/web/wait"), "stopped\n");
    }
}

#[test]
fn there_never_are_two_when_the_owner_stands_still() {
    let lab = Lab::new(3);
    let bed = Bed::new(&lab);
    let watch = Watch::begin(&lab);
    bed.nodes[bed.owner].signal(Signal::STOP);
    bed.await_it_elsewhere();
    bed.nodes[bed.owner].signal(Signal::CONT);
    bed.owner_finds_out();
    bed.end();
    let seen = watch.end();
    assert!(seen.looks > 100 && seen.pids.len() == 2, "{} looks, {:?}", seen.looks, seen.pids);
    assert!(seen.two.is_empty(), "{:?}", seen.two);
}

/// When whoever stops the daemon stops the fence and its machine as well, nobody is there to end it: it is there beside its successor,
/// and does nothing. Its fence ends it as soon as it goes on.
#[test]
fn one_that_stands_still_with_its_fence_is_ended_when_that_goes_on() {
    let lab = Lab::new(3);
    let bed = Bed::new(&lab);
    let machine = machines(lab.folder().to_str().unwrap()).remove(0);
    let fence = blixard::engine::host::process::parent(u32::try_from(machine.pid).unwrap()).unwrap().unwrap();
    let fence = Pid::from_raw(i32::try_from(fence).unwrap()).unwrap();
    let group = rustix::process::getpgid(Some(fence)).unwrap();
    assert_eq!(
        rustix::process::getpgid(Pid::from_raw(machine.pid)).unwrap(),
        group,
        "the machine is of its fence's group"
    );
    let watch = Watch::begin(&lab);
    bed.nodes[bed.owner].signal(Signal::STOP);
    kill_process_group(group, Signal::STOP).unwrap();
    bed.await_it_elsewhere();
    kill_process(fence, Signal::CONT).unwrap();
    until("its end", || machines(lab.folder().to_str().unwrap()).iter().all(|there| there.pid != machine.pid));
    bed.nodes[bed.owner].signal(Signal::CONT);
    bed.owner_finds_out();
    bed.end();
    let seen = watch.end();
    assert!(seen.pids.len() == 2 && !seen.two.is_empty(), "it was to be there, and stopped: {seen:?}");
    assert!(seen.two_that_run().is_empty(), "{:?}", seen.two_that_run());
}
