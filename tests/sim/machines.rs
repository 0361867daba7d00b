//! The machines of all hosts, whether anybody looks after them or not; and the hypervisor by which one host's agent does.
//!
//! Here it is known what runs, whatever is reported: two processes of one VM, anywhere, at once, are a violation; so are two processes with
//! one address.

use crate::world::World;
use async_trait::async_trait;
use blixard::engine::host::deadline::{allows, note_fenced, open, read};
use blixard::engine::host::{BootClock, HostError, Processes};
use blixard::engine::hypervisor::{
    Capabilities, Console, Exit, Fence, Hypervisor, HypervisorError, Instance, Machine, Record, Running, Spawned,
};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};

/// Memory of a host, in bytes: room for some machines, not for all.
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
struct Is {
    exit: Option<Exit>,
    paused: bool,
    /// There is no process any more.
    gone: bool,
}

struct Simulation {
    host: usize,
    vm: u64,
    generation: u64,
    run_dir: PathBuf,
    addresses: Vec<IpAddr>,
    record: Record,
    is: watch::Sender<Is>,
    ready_at: u64,
    /// It ignores the power button.
    deaf: bool,
    /// It ends when its host's lease does.
    fence: Option<Fence>,
    /// When its fence looks at the deadline again, by the host's boot-time clock.
    looks_at_ns: AtomicU64,
}

impl Simulation {
    fn there(&self) -> bool {
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
}

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

    pub fn set_mood(&mut self, host: usize, mood: Mood) {
        self.moods.insert(host, mood);
    }

    pub fn heal(&mut self) {
        self.moods.clear();
    }

    /// What was killed some time ago is gone; so is what its fence ends, whether anybody looks after it or not.
    pub fn step(&mut self, world: &World) {
        let fenced: Vec<Arc<Simulation>> = self.all.values().filter(|m| m.fence.is_some()).cloned().collect();
        fenced.iter().for_each(|machine| self.look_at_deadline(world, machine));
        let now = world.now();
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
    fn launch(&mut self, world: &World, host: usize, machine: &Machine) -> Option<Arc<Simulation>> {
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
        for other in self.all.values() {
            if other.vm == simulation.vm {
                world.violation(format!(
                    "two processes of vm {}: generation {} on node {} and generation {} on node {}",
                    other.vm,
                    other.generation,
                    other.host + 1,
                    simulation.generation,
                    host + 1
                ));
            } else if let Some(address) = other.addresses.iter().find(|a| simulation.addresses.contains(a)) {
                world.violation(format!("vms {} and {} both have {address}", other.vm, simulation.vm));
            }
        }
        self.all.insert(pid, simulation.clone());
        Some(simulation)
    }

    fn below(&self, host: usize, folder: &Path) -> Vec<Arc<Simulation>> {
        let there = self.all.values().filter(|machine| machine.host == host && machine.run_dir.starts_with(folder));
        there.cloned().collect()
    }
}

/// The guest goes off; its process waits for whoever wants to know why.
fn power_off(machine: &Simulation) {
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

fn boot_id(world: &World, host: usize) -> String {
    format!("host-{}-{}", host + 1, world.hosts[host].reboots.load(Ordering::Relaxed))
}

/// One host's hypervisor and processes.
#[derive(Clone)]
pub struct HostMachines {
    pub world: Arc<World>,
    pub host: usize,
}

/// How late whoever watches a machine may hear of its end.
const WATCH_LATE: Duration = Duration::from_secs(20);

fn failed(what: &str) -> HypervisorError {
    HypervisorError::Transient(format!("{what} failed; start it again"))
}

impl HostMachines {
    /// A call, as the host is in the mood for it. `lie` is what is said when nothing was done.
    async fn call<T>(
        &self,
        what: &str,
        lie: Option<T>,
        effect: impl Future<Output = Result<T, HypervisorError>>,
    ) -> Result<T, HypervisorError> {
        self.world.shuffle().await;
        let mood = self.world.machines().moods.get(&self.host).copied().unwrap_or_default();
        let (mut chance, slow) = {
            let mut random = self.world.random();
            (random.below(100), random.below(10_000))
        };
        let mut comes = |part: u64| {
            let hit = chance < part;
            chance = chance.saturating_sub(part);
            hit
        };
        if comes(mood.fails) {
            return Err(failed(what));
        }
        if comes(mood.says_failed) {
            return effect.await.and(Err(failed(what)));
        }
        if comes(mood.hangs) {
            return std::future::pending().await;
        }
        if let (true, Some(lie)) = (comes(mood.lies), lie) {
            return Ok(lie);
        }
        if comes(mood.slow) {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        effect.await
    }

    fn kill(&self, pid: u32) {
        let at = self.world.now() + self.world.random().below(400);
        self.world.machines().dying.insert((at, pid), ());
    }

    fn instance(&self, simulation: Arc<Simulation>) -> Arc<dyn Instance> {
        Arc::new(Handle { simulation, host: self.clone() })
    }
}

#[async_trait]
impl Processes for HostMachines {
    async fn end(&self, pid: u32, _start_ticks: u64, _boot: &str) -> Result<(), HostError> {
        let found = self.world.machines().all.get(&pid).cloned();
        let Some(machine) = found.filter(|machine| machine.host == self.host) else { return Ok(()) };
        let mut is = machine.is.subscribe();
        let ending = async {
            self.kill(pid);
            let _ = is.wait_for(|is| is.gone).await;
            Ok(())
        };
        // What says that a process is gone says the truth: nothing could be built on less.
        self.call("ending a process", None, ending).await.map_err(|error| HostError(error.to_string()))
    }

    fn boot_id(&self) -> Result<String, HostError> {
        Ok(boot_id(&self.world, self.host))
    }
}

#[async_trait]
impl Hypervisor for HostMachines {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn console_log(&self, _run_dir: &Path) -> std::io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn probe(&self, _run_as: Option<(u32, u32)>) -> Capabilities {
        Capabilities {
            version: "simulated".to_owned(),
            accelerator: "simulated".to_owned(),
            warnings: Vec::new(),
            memory_bytes: MEMORY_BYTES,
        }
    }

    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let launch = async {
            let launched = self.world.machines().launch(&self.world, self.host, machine);
            let simulation = launched.ok_or(HypervisorError::NoLease)?;
            // It can be cut off here: there is a process, and nothing says so.
            self.world.shuffle().await;
            if let Err(error) = spawned(&simulation.record) {
                self.kill(simulation.record.pid);
                return Err(HypervisorError::Transient(format!("it can't be written down: {error}")));
            }
            self.world.shuffle().await;
            Ok(self.instance(simulation))
        };
        self.call("launch", None, launch).await
    }

    async fn adopt(&self, machine: &Machine, _record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let adopt = async {
            let found = self.world.machines().below(self.host, &machine.run_dir).pop();
            found.map(|simulation| self.instance(simulation)).ok_or(HypervisorError::Gone)
        };
        self.call("taking back", None, adopt).await
    }

    async fn orphans(&self, vms_dir: &Path, known: &[PathBuf]) -> Result<Vec<(Record, PathBuf)>, HypervisorError> {
        let all = self.world.machines().below(self.host, vms_dir);
        let unknown = all.into_iter().filter(|machine| !known.contains(&machine.run_dir));
        Ok(unknown.map(|machine| (machine.record.clone(), machine.run_dir.clone())).collect())
    }
}

/// A machine as its agent holds it.
struct Handle {
    simulation: Arc<Simulation>,
    host: HostMachines,
}

impl Handle {
    async fn set_paused(&self, paused: bool) -> Result<(), HypervisorError> {
        let set = async {
            self.there()?;
            self.simulation.is.send_modify(|is| is.paused = paused);
            Ok(())
        };
        self.host.call("pausing", None, set).await
    }

    fn there(&self) -> Result<(), HypervisorError> {
        if self.simulation.there() { Ok(()) } else { Err(HypervisorError::Gone) }
    }
}

#[async_trait]
impl Instance for Handle {
    fn record(&self) -> Record {
        self.simulation.record.clone()
    }

    async fn running(&self) -> Result<Running, HypervisorError> {
        let look = async {
            self.there()?;
            Ok(if self.simulation.is.borrow().paused { Running::Paused } else { Running::Running })
        };
        self.host.call("looking", None, look).await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.set_paused(true).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.set_paused(false).await
    }

    async fn power_down(&self) -> Result<(), HypervisorError> {
        let ask = async {
            self.there()?;
            if !self.simulation.deaf {
                power_off(&self.simulation);
            }
            Ok(())
        };
        self.host.call("powering down", Some(()), ask).await
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        let kill = async {
            self.host.kill(self.simulation.record.pid);
            Ok(())
        };
        self.host.call("killing", Some(()), kill).await
    }

    async fn exited(&self) -> Exit {
        let told = || async {
            let mut is = self.simulation.is.subscribe();
            let told = is.wait_for(|is| is.exit.is_some()).await.ok().and_then(|is| is.exit.clone());
            told.unwrap_or(Exit::Killed)
        };
        // The kernel says that a process has ended; if that never came, nothing could be built on it. It may come late.
        let late = async {
            let exit = told().await;
            tokio::time::sleep(WATCH_LATE).await;
            exit
        };
        let lie = Exit::Crashed("it says so; start it".to_owned());
        tokio::select! {
            // Who watches has no other word for what it can't see.
            exit = self.host.call("watching", Some(lie), async { Ok(told().await) }) => exit.unwrap_or(Exit::Killed),
            exit = late => exit,
        }
    }

    async fn discard(&self) {
        let end = async {
            let _ = Processes::end(&self.host, self.simulation.record.pid, 0, "").await;
            Ok(())
        };
        let _ = self.host.call("discarding", Some(()), end).await;
    }

    async fn guest_ready(&self) -> Result<(), HypervisorError> {
        let wait = self.simulation.ready_at.saturating_sub(self.host.world.now());
        let mut is = self.simulation.is.subscribe();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => Ok(()),
            _ = is.wait_for(|is| is.exit.is_some()) => Err(HypervisorError::Gone),
        }
    }

    async fn guest_run(&self, _command: &str, _deadline: Duration) -> Result<(i32, Vec<u8>), HypervisorError> {
        Err(HypervisorError::Permanent("a simulated machine has no guest".to_owned()))
    }

    async fn console(&self) -> Result<Console, HypervisorError> {
        let (output, input) = (broadcast::channel(1), mpsc::channel(1));
        Ok(Console { output: output.1, input: input.0 })
    }
}
