//! A host whose every call can be told to fail, and which knows what it has given out.

use async_trait::async_trait;
use blixard::engine::host::{Cgroups, DeadlineFolder, Disks, HostClock, HostError, HostParts, Net, Network, Processes};
use blixard::engine::hypervisor::{
    Capabilities, Console, Exit, Hypervisor, HypervisorError, Instance, Machine, Record, Running, Simulated, Spawned,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing has happened.
    Before,
    /// It does what was asked, and says that it failed.
    After,
    /// It never returns.
    Hang,
    /// It panics.
    Panic,
    /// It takes so long, and panics.
    LatePanic(Duration),
    /// It says that it is done, and nothing has happened.
    Lie,
    /// It takes so long.
    Slow(Duration),
    /// It is done, and says so only so much later.
    SlowAnswer(Duration),
}

/// Which fault meets a call: its number (from 1, since the rule was set) and its name, without the VM.
pub type Rule = Box<dyn FnMut(usize, &str) -> Option<Fault> + Send>;

#[derive(Default)]
struct Shared {
    rule: Option<Rule>,
    calls: Vec<String>,
    taps: BTreeSet<u64>,
    cgroups: BTreeSet<u64>,
    bridges: BTreeSet<u64>,
    disks: BTreeSet<PathBuf>,
    launches: BTreeMap<(u64, u64), usize>,
    wrong: Vec<String>,
}

/// The host and its hypervisor. A clone is the same one.
#[derive(Clone, Default)]
pub struct World {
    shared: Arc<Mutex<Shared>>,
    pub simulated: Simulated,
}

impl World {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// From now on this rule holds, and calls are counted anew.
    pub fn rule(&self, rule: impl FnMut(usize, &str) -> Option<Fault> + Send + 'static) {
        let rule: Rule = Box::new(rule);
        let mut shared = self.shared();
        (shared.rule, shared.calls) = (Some(rule), Vec::new());
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.rule(|_, _| None);
    }

    /// The calls since the rule was set.
    pub fn calls(&self) -> Vec<String> {
        self.shared().calls.clone()
    }

    /// What the VM holds, in the words of the list of leftovers, its disk aside.
    pub fn held(&self, vm: u64) -> BTreeSet<String> {
        let shared = self.shared();
        let mut held = BTreeSet::new();
        held.extend(shared.taps.contains(&vm).then(|| format!("tap of vm {vm}")));
        held.extend(shared.cgroups.contains(&vm).then(|| format!("cgroup of vm {vm}")));
        drop(shared);
        held.extend(self.machines(vm).iter().map(|_| format!("process of vm {vm}")));
        held
    }

    /// The VM's disks.
    pub fn disks(&self, vm: u64) -> usize {
        self.shared().disks.iter().filter(|path| path.parent().and_then(number) == Some(vm)).count()
    }

    /// Everything that is held by anybody.
    pub fn all(&self) -> usize {
        let shared = self.shared();
        shared.taps.len() + shared.cgroups.len() + shared.disks.len() + self.simulated.machines().len()
    }

    /// The run folders of the VM's machines.
    pub fn machines(&self, vm: u64) -> Vec<PathBuf> {
        self.simulated.machines().into_iter().filter(|dir| dir.parent().and_then(number) == Some(vm)).collect()
    }

    /// The pools that have a bridge.
    pub fn bridges(&self) -> BTreeSet<u64> {
        self.shared().bridges.clone()
    }

    /// How many machines were launched for the VM.
    pub fn launches(&self, vm: u64) -> usize {
        self.shared().launches.iter().filter(|((of, _), _)| *of == vm).map(|(_, count)| count).sum()
    }

    /// What must never be: two machines of one VM, one generation launched twice.
    pub fn wrong(&self) -> Vec<String> {
        self.shared().wrong.clone()
    }

    pub fn host(&self) -> HostParts {
        let world = Arc::new(self.clone());
        HostParts {
            processes: world.clone(),
            cgroups: world.clone(),
            net: world.clone(),
            disks: world,
            clock: Arc::new(HostClock),
            deadlines: DeadlineFolder::Data,
            guest_uid_base: None,
            missing: Vec::new(),
        }
    }

    fn meet(&self, name: &str) -> Option<Fault> {
        let mut shared = self.shared();
        shared.calls.push(name.to_owned());
        let number = shared.calls.len();
        let mut rule = shared.rule.take()?;
        let fault = rule(number, name);
        shared.rule = Some(rule);
        fault
    }

    /// A call: the effect, and the fault that meets it.
    async fn call<T, E>(
        &self,
        name: &str,
        error: impl Fn(String) -> E,
        lie: T,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match self.meet(name) {
            None => effect.await,
            Some(Fault::Before) => Err(error(format!("injected before {name}"))),
            Some(Fault::After) => {
                let _ = effect.await;
                Err(error(format!("injected after {name}")))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Panic) => panic!("injected into {name}"),
            Some(Fault::LatePanic(time)) => {
                tokio::time::sleep(time).await;
                panic!("injected into {name}, late")
            }
            Some(Fault::Lie) => Ok(lie),
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                effect.await
            }
            Some(Fault::SlowAnswer(time)) => {
                let done = effect.await;
                tokio::time::sleep(time).await;
                done
            }
        }
    }

    /// One that does not wait.
    fn call_at_once<T>(&self, name: &str, effect: impl FnOnce() -> T) -> Result<T, HostError> {
        match self.meet(name) {
            Some(Fault::Before | Fault::Hang) => Err(HostError(format!("injected before {name}"))),
            Some(Fault::After) => {
                effect();
                Err(HostError(format!("injected after {name}")))
            }
            Some(Fault::Panic) => panic!("injected into {name}"),
            _ => Ok(effect()),
        }
    }

    fn note_launch(&self, machine: &Machine) {
        let all = self.machines(machine.vm);
        let mut shared = self.shared();
        let count = shared.launches.entry((machine.vm, machine.generation)).or_default();
        *count += 1;
        if *count > 1 {
            shared.wrong.push(format!("vm {} generation {} was launched twice", machine.vm, machine.generation));
        }
        if all.len() > 1 {
            shared.wrong.push(format!("vm {} runs twice: {all:?}", machine.vm));
        }
    }

    fn instance(&self, inner: Arc<dyn Instance>) -> Arc<dyn Instance> {
        Arc::new(Faulty { world: self.clone(), inner })
    }
}

/// The number that a folder is named by.
fn number(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.parse().ok()
}

fn failed(sentence: String) -> HypervisorError {
    HypervisorError::Transient(format!("{sentence}; start it again"))
}

impl Cgroups for World {
    fn make(&self, vm: u64, _memory_bytes: u64) -> Result<Vec<PathBuf>, HostError> {
        self.call_at_once("make cgroup", || self.shared().cgroups.insert(vm))?;
        Ok(vec![])
    }
    fn remove(&self, vm: u64) -> Result<(), HostError> {
        if !self.machines(vm).is_empty() {
            return Err(HostError(format!("the cgroup of vm {vm} is busy")));
        }
        self.call_at_once("remove cgroup", || self.shared().cgroups.remove(&vm)).map(drop)
    }
    fn list(&self) -> Vec<u64> {
        self.shared().cgroups.iter().copied().collect()
    }
    fn describe(&self) -> String {
        "fake".to_owned()
    }
}

#[async_trait]
impl Net for World {
    async fn make_tap(&self, vm: u64, network: &Network, _uid: Option<u32>) -> Result<Option<String>, HostError> {
        let name = Some(format!("tap{vm}"));
        let made = name.clone();
        self.call("make tap", HostError, name, async {
            self.shared().bridges.insert(network.pool);
            self.shared().taps.insert(vm);
            Ok(made)
        })
        .await
    }
    async fn remove_tap(&self, vm: u64) -> Result<(), HostError> {
        self.call("remove tap", HostError, (), async {
            self.shared().taps.remove(&vm);
            Ok(())
        })
        .await
    }
    async fn taps(&self) -> Result<Vec<u64>, HostError> {
        Ok(self.shared().taps.iter().copied().collect())
    }
    async fn remove_bridge(&self, pool: u64) -> Result<(), HostError> {
        self.call("remove bridge", HostError, (), async {
            self.shared().bridges.remove(&pool);
            Ok(())
        })
        .await
    }
    async fn remove_idle_bridges(&self) -> Result<(), HostError> {
        Ok(())
    }
    fn describe(&self) -> String {
        "fake".to_owned()
    }
}

#[async_trait]
impl Disks for World {
    async fn make(&self, path: &Path, _bytes: u64, _owner: Option<(u32, u32)>) -> Result<(), HostError> {
        self.call("make disk", HostError, (), async {
            self.shared().disks.insert(path.to_owned());
            Ok(())
        })
        .await
    }
    async fn remove(&self, path: &Path) -> Result<(), HostError> {
        self.call("remove disk", HostError, (), async {
            self.shared().disks.remove(path);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Processes for World {
    async fn end(&self, pid: u32, start_ticks: u64, boot: &str) -> Result<(), HostError> {
        let end = Processes::end(&self.simulated, pid, start_ticks, boot);
        self.call("end process", HostError, (), end).await
    }
}

#[async_trait]
impl Hypervisor for World {
    fn name(&self) -> &'static str {
        self.simulated.name()
    }
    fn console_log(&self, run_dir: &Path) -> std::io::Result<Vec<u8>> {
        self.simulated.console_log(run_dir)
    }
    async fn probe(&self, run_as: Option<(u32, u32)>) -> Capabilities {
        self.simulated.probe(run_as).await
    }

    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
        // Called as soon as there is a process.
        let noted = |record: &Record| {
            self.note_launch(machine);
            match self.meet("record the process") {
                Some(Fault::Lie) => Ok(()),
                Some(Fault::Before | Fault::Hang) => Err(std::io::Error::other("injected")),
                Some(Fault::After) => spawned(record).and_then(|()| Err(std::io::Error::other("injected"))),
                Some(Fault::Panic | Fault::LatePanic(_)) => panic!("injected into the record of the process"),
                Some(Fault::Slow(_) | Fault::SlowAnswer(_)) | None => spawned(record),
            }
        };
        let launch = async { Ok(Some(self.instance(self.simulated.launch(machine, &noted).await?))) };
        let launched = self.call("launch", failed, None, launch).await?;
        launched.ok_or(HypervisorError::Gone)
    }

    async fn adopt(&self, machine: &Machine, record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let adopt = async { Ok(Some(self.simulated.adopt(machine, record).await?)) };
        let adopted = self.call("adopt", failed, None, adopt).await?;
        adopted.map(|inner| self.instance(inner)).ok_or(HypervisorError::Gone)
    }

    async fn orphans(&self, vms_dir: &Path, known: &[PathBuf]) -> Result<Vec<(Record, PathBuf)>, HypervisorError> {
        self.simulated.orphans(vms_dir, known).await
    }
}

struct Faulty {
    world: World,
    inner: Arc<dyn Instance>,
}

#[async_trait]
impl Instance for Faulty {
    fn record(&self) -> Record {
        self.inner.record()
    }
    async fn running(&self) -> Result<Running, HypervisorError> {
        self.world.call("running", failed, Running::Running, self.inner.running()).await
    }
    async fn pause(&self) -> Result<(), HypervisorError> {
        self.world.call("pause", failed, (), self.inner.pause()).await
    }
    async fn resume(&self) -> Result<(), HypervisorError> {
        self.world.call("resume", failed, (), self.inner.resume()).await
    }
    async fn power_down(&self) -> Result<(), HypervisorError> {
        self.world.call("power down", failed, (), self.inner.power_down()).await
    }
    async fn kill(&self) -> Result<(), HypervisorError> {
        self.world.call("kill", failed, (), self.inner.kill()).await
    }
    async fn exited(&self) -> Exit {
        let lie = Exit::Crashed("it says so; start it".to_owned());
        let exited = self.world.call("exited", failed, lie, async { Ok(self.inner.exited().await) }).await;
        exited.unwrap_or(Exit::Killed)
    }
    async fn discard(&self) {
        self.inner.discard().await;
    }
    async fn guest_ready(&self) -> Result<(), HypervisorError> {
        self.world.call("guest ready", failed, (), self.inner.guest_ready()).await
    }
    async fn guest_run(&self, command: &str, deadline: Duration) -> Result<(i32, Vec<u8>), HypervisorError> {
        self.inner.guest_run(command, deadline).await
    }
    async fn console(&self) -> Result<Console, HypervisorError> {
        self.inner.console().await
    }
}
