//! The machines of all hosts, whether anybody looks after them or not.
//!
//! Here it is known what runs, whatever is reported: two processes of one VM, anywhere, at once, are a violation; so are two processes with
//! one address.

use crate::world::World;
use blixard::engine::host::BootClock;
use blixard::engine::host::deadline::{allows, note_fenced, open, read};
use blixard::engine::hypervisor::{Exit, Fence, Machine, Record};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Memory of a host in bytes, as a rule: room for some machines, not for all.
pub const MEMORY_BYTES: u64 = 2 << 30;

/// What becomes of calls on a host, in hundredths: the rest is as it should be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mood {
    /// Says that it failed, and nothing was done.
    pub fails: u64,
    /// Does it, and says that it failed.
    pub says_failed: u64,
    /// Never answers.
    pub hangs: u64,
    /// Says that it is done, and nothing was.
    pub lies: u64,
    /// Takes up to ten seconds.
    pub slow: u64,
}

/// How a machine is.
#[derive(Debug, Clone, Default)]
pub struct Is {
    pub exit: Option<Exit>,
    pub paused: bool,
    /// There is no process any more.
    pub gone: bool,
}

/// The process of a machine.
pub struct Simulation {
    pub host: usize,
    vm: u64,
    generation: u64,
    pub run_dir: PathBuf,
    addresses: Vec<IpAddr>,
    pub record: Record,
    pub is: watch::Sender<Is>,
    pub ready_at: u64,
    /// It ignores the power button.
    pub deaf: bool,
    /// It ends when its host's lease does.
    fence: Option<Fence>,
    /// When its fence looks at the deadline again, by the host's boot-time clock.
    looks_at_ns: AtomicU64,
}

impl Simulation {
    pub fn there(&self) -> bool {
        !self.is.borrow().gone
    }
}

/// Of all hosts.
#[derive(Default)]
pub struct Machines {
    all: BTreeMap<u32, Arc<Simulation>>,
    dying: BTreeMap<(u64, u32), ()>,
    last_pid: u32,
    moods: BTreeMap<usize, Mood>,
    pub launches: u64,
    /// Machines that a fence has ended.
    pub fenced: u64,
    /// Hosts that stand still as a whole: nothing of theirs runs before.
    hung: BTreeMap<usize, u64>,
}

/// How late a fence may come to look, after its host stood still, in milliseconds.
const LOOKS_LATE_MS: u64 = 400;

impl Machines {
    /// A process by itself, in (host, vm, generation).
    pub fn running(&self) -> Vec<(usize, u64, u64)> {
        let there = self.all.values().filter(|machine| machine.there() && machine.is.borrow().exit.is_none());
        there.map(|machine| (machine.host, machine.vm, machine.generation)).collect()
    }

    /// Processes whose guest went off, and that nobody has ended.
    pub fn lingering(&self) -> usize {
        self.all.values().filter(|machine| machine.there() && machine.is.borrow().exit.is_some()).count()
    }

    /// The host with the most machines that have a fence.
    pub fn most_fenced(&self) -> Option<usize> {
        let mut count: BTreeMap<usize, usize> = BTreeMap::new();
        self.all
            .values()
            .filter(|machine| machine.fence.is_some())
            .for_each(|m| *count.entry(m.host).or_default() += 1);
        count.into_iter().max_by_key(|(_, machines)| *machines).map(|(host, _)| host)
    }

    /// The process of this number on a host.
    pub fn process(&self, host: usize, pid: u32) -> Option<Arc<Simulation>> {
        self.all.get(&pid).filter(|machine| machine.host == host).cloned()
    }

    /// A process is killed: it will be gone then.
    pub fn kill_at(&mut self, at: u64, pid: u32) {
        self.dying.insert((at, pid), ());
    }

    pub fn mood(&self, host: usize) -> Mood {
        self.moods.get(&host).copied().unwrap_or_default()
    }

    /// The host where a process of this VM is.
    pub fn of(&self, vm: u64) -> Option<usize> {
        self.all.values().find(|machine| machine.vm == vm).map(|machine| machine.host)
    }

    pub fn set_mood(&mut self, host: usize, mood: Mood) {
        self.moods.insert(host, mood);
    }

    pub fn heal(&mut self) {
        self.moods.clear();
        self.hung.clear();
    }

    /// Does the host stand still? Then nothing on it does anything, and its fences end what they have to when it goes on.
    pub fn stands_still(&self, host: usize) -> bool {
        self.hung.contains_key(&host)
    }

    /// The host stands still, with its fences and all that they look after.
    pub fn hang(&mut self, world: &World, host: usize, lasts_ms: u64) {
        let late = world.random().below(LOOKS_LATE_MS);
        self.hung.insert(host, world.now() + lasts_ms + late);
    }

    /// What was killed some time ago is gone; so is what its fence ends, whether anybody looks after it or not.
    pub fn step(&mut self, world: &World) {
        let now = world.now();
        self.hung.retain(|_, until| *until > now);
        let looks = |machine: &&Arc<Simulation>| machine.fence.is_some() && !self.hung.contains_key(&machine.host);
        let fenced: Vec<Arc<Simulation>> = self.all.values().filter(looks).cloned().collect();
        fenced.iter().for_each(|machine| self.look_at_deadline(world, machine));
        while let Some(entry) = self.dying.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, pid), ()) = entry.remove_entry();
            self.end(world, pid, Exit::Killed);
        }
    }

    fn end(&mut self, world: &World, pid: u32, exit: Exit) {
        let Some(machine) = self.all.remove(&pid) else { return };
        world.note(format_args!(
            "vm {} generation {} on node {} is gone",
            machine.vm,
            machine.generation,
            machine.host + 1
        ));
        machine.is.send_modify(|is| {
            is.exit.get_or_insert(exit);
            is.gone = true;
        });
    }

    /// Some machine of the host ends by itself. False: there is none.
    pub fn mishap(&mut self, world: &World) -> bool {
        let pids: Vec<u32> = self.all.keys().copied().collect();
        let Some(pid) = world.random().pick(&pids).copied() else { return false };
        if world.random().percent(50) {
            self.end(world, pid, Exit::Crashed("it crashed; start it".to_owned()));
        } else if let Some(machine) = self.all.get(&pid) {
            power_off(machine);
        }
        true
    }

    /// The host's power fails: nobody is told.
    pub fn power_fails(&mut self, world: &World, host: usize) {
        let pids: Vec<u32> = self.all.iter().filter(|(_, m)| m.host == host).map(|(pid, _)| *pid).collect();
        for pid in pids {
            self.end(world, pid, Exit::Killed);
        }
    }

    /// A fence does what it does whether the daemon lives or not: it sleeps until the deadline that it has read, and reads again.
    fn look_at_deadline(&mut self, world: &World, machine: &Simulation) {
        let (Some(fence), clock) = (&machine.fence, BootTime::of(world, machine.host)) else { return };
        if clock.now_ns() < machine.looks_at_ns.load(Ordering::Relaxed) {
            return;
        }
        match open(&fence.deadline).and_then(|file| read(&file)) {
            Ok(term) if term.allows(fence.tenure, clock.now_ns()) => {
                machine.looks_at_ns.store(term.ends_ns, Ordering::Relaxed);
                self.check_alone(world, machine);
            }
            _ => {
                self.fenced += 1;
                if let Err(error) = note_fenced(&machine.run_dir) {
                    world.violation(format!("that a machine was fenced can't be noted: {error}"));
                }
                self.end(world, machine.record.pid, Exit::Fenced);
            }
        }
    }

    /// None: it would be fenced, and the host's lease is over.
    pub fn launch(&mut self, world: &World, host: usize, machine: &Machine) -> Option<Arc<Simulation>> {
        if let Some(fence) = &machine.fence
            && !allows(&fence.deadline, fence.tenure, &BootTime::of(world, host))
        {
            return None;
        }
        self.last_pid += 1;
        self.launches += 1;
        let pid = self.last_pid;
        let addresses = machine.nic.iter().flat_map(|nic| nic.addresses.iter().map(|(address, _)| *address)).collect();
        let mut random = world.random();
        let simulation = Arc::new(Simulation {
            host,
            vm: machine.vm,
            generation: machine.generation,
            run_dir: machine.run_dir.clone(),
            addresses,
            record: Record { pid, start_ticks: u64::from(pid), boot_id: boot_id(world, host) },
            is: watch::Sender::new(Is::default()),
            ready_at: world.now() + random.between(50, 3_000),
            deaf: random.percent(10),
            fence: machine.fence.clone(),
            looks_at_ns: AtomicU64::new(0),
        });
        drop(random);
        world.note(format_args!("vm {} generation {} begins on node {}", machine.vm, machine.generation, host + 1));
        self.check_alone(world, &simulation);
        self.all.insert(pid, simulation.clone());
        Some(simulation)
    }

    /// No other process has its VM or its address. One on a host that stands still does nothing until its fence has looked.
    fn check_alone(&self, world: &World, machine: &Simulation) {
        let others = self.all.values().filter(|other| other.record.pid != machine.record.pid);
        for other in others.filter(|other| !self.hung.contains_key(&other.host)) {
            if other.vm == machine.vm {
                world.violation(format!(
                    "two processes of vm {}: generation {} on node {} and generation {} on node {}",
                    other.vm,
                    other.generation,
                    other.host + 1,
                    machine.generation,
                    machine.host + 1
                ));
            } else if let Some(address) = other.addresses.iter().find(|a| machine.addresses.contains(a)) {
                world.violation(format!("vms {} and {} both have {address}", other.vm, machine.vm));
            }
        }
    }

    pub fn below(&self, host: usize, folder: &Path) -> Vec<Arc<Simulation>> {
        let there = self.all.values().filter(|machine| machine.host == host && machine.run_dir.starts_with(folder));
        there.cloned().collect()
    }
}

/// The guest goes off; its process waits for whoever wants to know why.
pub fn power_off(machine: &Simulation) {
    machine.is.send_modify(|is| {
        is.exit.get_or_insert(Exit::PoweredOff);
    });
}

/// What a host's boot-time clock shows at a moment.
struct BootTime(u64);

impl BootTime {
    fn of(world: &World, host: usize) -> BootTime {
        BootTime(world.hosts[host].boot_us.load(Ordering::Relaxed) * 1_000)
    }
}

impl BootClock for BootTime {
    fn now_ns(&self) -> u64 {
        self.0
    }
}

pub fn boot_id(world: &World, host: usize) -> String {
    format!("host-{}-{}", host + 1, world.hosts[host].reboots.load(Ordering::Relaxed))
}
