//! The hypervisor and the processes of one host, as its agent has them: they fail, hang and lie as the host is in the mood for.

use crate::machines::{Simulation, boot_id, power_off};
use crate::world::World;
use async_trait::async_trait;
use blixard::engine::host::{HostError, Processes};
use blixard::engine::hypervisor::{
    Capabilities, Console, Exit, Hypervisor, HypervisorError, Instance, Machine, Record, Running, Spawned,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

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
        let mood = self.world.machines().mood(self.host);
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
        self.world.machines().kill_at(at, pid);
    }

    fn instance(&self, simulation: Arc<Simulation>) -> Arc<dyn Instance> {
        Arc::new(Handle { simulation, host: self.clone() })
    }
}

#[async_trait]
impl Processes for HostMachines {
    async fn end(&self, pid: u32, _start_ticks: u64, _boot: &str) -> Result<(), HostError> {
        let Some(machine) = self.world.machines().process(self.host, pid) else { return Ok(()) };
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
            memory_bytes: self.world.plan.memory_bytes,
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
