//! Machines that are not there: the same behaviour without processes, for tests, for trying things out, and for large numbers.
//!
//! Everything is in the handle: an agent that is started anew with the same handle finds its machines again, as it would find
//! processes. What is to go wrong is said beforehand, with [`Simulated::behave`].

use super::{
    Capabilities, Console, Exit, Fence, Hypervisor, HypervisorError, Instance, Machine, Record, Running, Spawned,
};
use crate::engine::host::deadline::{allows, note_fenced, open, read};
use crate::engine::host::{BootClock, HostClock, HostError, Processes};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};

/// Memory that the simulated host offers, in bytes: room for a hundred thousand machines.
const MEMORY_BYTES: u64 = 1 << 50;

/// How a machine behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// From launch to the guest's first answer.
    pub boot: Duration,
    /// It never answers, and ignores the power button.
    pub hangs: bool,
    /// From being killed to being gone.
    pub dying: Duration,
}

struct Shared {
    machines: BTreeMap<PathBuf, Arc<Simulation>>,
    behaviour: Behaviour,
    last_pid: u32,
    launches: u64,
    clock: Arc<dyn BootClock>,
}

/// A hypervisor whose machines are simulated. A clone is the same one.
#[derive(Clone)]
pub struct Simulated(Arc<Mutex<Shared>>);

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Simulated").field(&self.shared().machines.keys()).finish()
    }
}

/// One simulated machine.
#[derive(Debug)]
struct Simulation {
    record: Record,
    fence: Option<Fence>,
    behaviour: Behaviour,
    state: watch::Sender<(Option<Exit>, bool)>,
    launched: tokio::time::Instant,
}

impl Default for Simulated {
    fn default() -> Simulated {
        Simulated::new(Behaviour::default())
    }
}

impl Simulated {
    /// Machines that behave like this. Their fences have the host's clock.
    pub fn new(behaviour: Behaviour) -> Simulated {
        Simulated::with_clock(behaviour, Arc::new(HostClock))
    }

    /// Machines that behave like this, and whose fences have this clock.
    pub fn with_clock(behaviour: Behaviour, clock: Arc<dyn BootClock>) -> Simulated {
        let shared = Shared { machines: BTreeMap::new(), behaviour, last_pid: 0, launches: 0, clock };
        Simulated(Arc::new(Mutex::new(shared)))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Machines launched from now on behave like this.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared().behaviour = behaviour;
    }

    /// The machine with this run folder ends so, by itself. False: there is none.
    pub fn end(&self, run_dir: &Path, exit: Exit) -> bool {
        let found = self.shared().machines.remove(run_dir);
        found.as_ref().is_some_and(|m| m.end(exit))
    }

    /// Kills the machine with this run folder, and returns when it is gone.
    async fn kill(&self, run_dir: &Path) {
        let dying = self.shared().machines.get(run_dir).map(|m| m.behaviour.dying);
        if let Some(dying) = dying.filter(|dying| !dying.is_zero()) {
            tokio::time::sleep(dying).await;
        }
        self.end(run_dir, Exit::Killed);
    }

    /// The run folders of the machines that are there.
    pub fn machines(&self) -> Vec<PathBuf> {
        self.fence_all();
        self.shared().machines.keys().cloned().collect()
    }

    /// What fences do. They are woken at their deadlines, and whoever looks for machines sees none whose deadline is past: those who
    /// were to be woken may be gone with their runtime, as processes would not be.
    fn fence_all(&self) {
        let fenced = |(run_dir, m): (&PathBuf, &Arc<Simulation>)| m.fence.is_some().then(|| run_dir.clone());
        let fenced: Vec<PathBuf> = self.shared().machines.iter().filter_map(fenced).collect();
        fenced.iter().for_each(|run_dir| self.fence_if_over(run_dir));
    }

    fn fence_if_over(&self, run_dir: &Path) {
        let (fence, clock) = {
            let shared = self.shared();
            (shared.machines.get(run_dir).and_then(|m| m.fence.clone()), shared.clock.clone())
        };
        let is_over = fence.is_some_and(|fence| !allows(&fence.deadline, fence.tenure, &*clock));
        if is_over
            && self.end(run_dir, Exit::Fenced)
            && let Err(error) = note_fenced(run_dir)
        {
            tracing::warn!(run_dir = %run_dir.display(), %error, "that a machine was fenced can't be noted");
        }
    }

    /// One machine's fence: returns when it has ended.
    async fn fence(&self, run_dir: PathBuf, fence: Fence) {
        let clock = self.shared().clock.clone();
        while self.shared().machines.contains_key(&run_dir) {
            let term = open(&fence.deadline).and_then(|file| read(&file));
            match term {
                Ok(term) if term.allows(fence.tenure, clock.now_ns()) => clock.sleep_until(term.ends_ns).await,
                _ => self.fence_if_over(&run_dir),
            }
        }
    }

    /// How many launches have succeeded.
    pub fn launches(&self) -> u64 {
        self.shared().launches
    }
}

impl Simulation {
    fn end(&self, exit: Exit) -> bool {
        self.state.send_if_modified(|(ended, _)| {
            let first = ended.is_none();
            ended.get_or_insert(exit);
            first
        })
    }
}

#[async_trait]
impl Hypervisor for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn console_log(&self, run_dir: &Path) -> std::io::Result<Vec<u8>> {
        let there = self.shared().machines.contains_key(run_dir);
        Ok(if there { b"simulated: there is no guest\n".to_vec() } else { Vec::new() })
    }

    async fn probe(&self, _run_as: Option<(u32, u32)>) -> Capabilities {
        Capabilities {
            version: "simulated".to_owned(),
            accelerator: "simulated".to_owned(),
            warnings: vec!["machines are simulated: there are no guests".to_owned()],
            memory_bytes: MEMORY_BYTES,
        }
    }

    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let simulation = {
            let mut shared = self.shared();
            if machine.fence.as_ref().is_some_and(|fence| !allows(&fence.deadline, fence.tenure, &*shared.clock)) {
                return Err(HypervisorError::NoLease);
            }
            shared.last_pid += 1;
            let record = Record {
                pid: shared.last_pid,
                start_ticks: u64::from(shared.last_pid),
                boot_id: "simulated".to_owned(),
            };
            Arc::new(Simulation {
                record,
                fence: machine.fence.clone(),
                behaviour: shared.behaviour,
                state: watch::channel((None, false)).0,
                launched: tokio::time::Instant::now(),
            })
        };
        // As with processes: it is there before it is written down.
        self.shared().machines.insert(machine.run_dir.clone(), simulation.clone());
        if let Err(error) = spawned(&simulation.record) {
            self.end(&machine.run_dir, Exit::Killed);
            return Err(super::no_record(&error));
        }
        self.shared().launches += 1;
        if let Some(fence) = machine.fence.clone() {
            let (hypervisor, run_dir) = (self.clone(), machine.run_dir.clone());
            tokio::spawn(async move { hypervisor.fence(run_dir, fence).await });
        }
        Ok(Arc::new(Handle { simulation, run_dir: machine.run_dir.clone(), hypervisor: self.clone() }))
    }

    async fn adopt(&self, machine: &Machine, _record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError> {
        self.fence_if_over(&machine.run_dir);
        let simulation = self.shared().machines.get(&machine.run_dir).cloned().ok_or(HypervisorError::Gone)?;
        Ok(Arc::new(Handle { simulation, run_dir: machine.run_dir.clone(), hypervisor: self.clone() }))
    }

    async fn orphans(&self, vms_dir: &Path, known: &[PathBuf]) -> Result<Vec<(Record, PathBuf)>, HypervisorError> {
        self.fence_all();
        let shared = self.shared();
        let unknown = shared.machines.iter().filter(|(dir, _)| dir.starts_with(vms_dir) && !known.contains(dir));
        Ok(unknown.map(|(dir, m)| (m.record.clone(), dir.clone())).collect())
    }
}

#[async_trait]
impl Processes for Simulated {
    async fn end(&self, pid: u32, _start_ticks: u64, _boot: &str) -> Result<(), HostError> {
        let found = self.shared().machines.iter().find(|(_, m)| m.record.pid == pid).map(|(dir, _)| dir.clone());
        if let Some(run_dir) = found {
            self.kill(&run_dir).await;
        }
        Ok(())
    }
}

/// A machine as its agent holds it.
struct Handle {
    simulation: Arc<Simulation>,
    run_dir: PathBuf,
    hypervisor: Simulated,
}

impl Handle {
    fn there(&self) -> Result<(), HypervisorError> {
        if self.simulation.state.borrow().0.is_some() { Err(HypervisorError::Gone) } else { Ok(()) }
    }

    fn set_paused(&self, paused: bool) -> Result<(), HypervisorError> {
        self.there()?;
        self.simulation.state.send_modify(|(_, is)| *is = paused);
        Ok(())
    }
}

#[async_trait]
impl Instance for Handle {
    fn record(&self) -> Record {
        self.simulation.record.clone()
    }

    async fn running(&self) -> Result<Running, HypervisorError> {
        self.there()?;
        Ok(if self.simulation.state.borrow().1 { Running::Paused } else { Running::Running })
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.set_paused(true)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.set_paused(false)
    }

    async fn power_down(&self) -> Result<(), HypervisorError> {
        self.there()?;
        if !self.simulation.behaviour.hangs {
            self.hypervisor.end(&self.run_dir, Exit::PoweredOff);
        }
        Ok(())
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        // It dies whether or not its agent lives to see it.
        let (hypervisor, run_dir) = (self.hypervisor.clone(), self.run_dir.clone());
        tokio::spawn(async move { hypervisor.kill(&run_dir).await });
        Ok(())
    }

    async fn exited(&self) -> Exit {
        let mut state = self.simulation.state.subscribe();
        let told = state.wait_for(|(exit, _)| exit.is_some()).await.ok().and_then(|state| state.0.clone());
        told.unwrap_or(Exit::Killed)
    }

    async fn discard(&self) {}

    async fn guest_ready(&self) -> Result<(), HypervisorError> {
        if self.simulation.behaviour.hangs {
            self.exited().await;
            return Err(HypervisorError::Gone);
        }
        tokio::select! {
            () = tokio::time::sleep_until(self.simulation.launched + self.simulation.behaviour.boot) => Ok(()),
            _ = self.exited() => Err(HypervisorError::Gone),
        }
    }

    async fn guest_run(&self, _command: &str, _deadline: Duration) -> Result<(i32, Vec<u8>), HypervisorError> {
        Err(HypervisorError::Permanent("a simulated machine has no guest that could run anything".to_owned()))
    }

    async fn console(&self) -> Result<Console, HypervisorError> {
        self.there()?;
        let (output, input) = (broadcast::channel(1), mpsc::channel(1));
        Ok(Console { output: output.1, input: input.0 })
    }
}
