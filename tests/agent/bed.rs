//! A node without its tree: the real engine over a log in memory, the real agent and supervisor, and a [`World`] below.
//!
//! Time is tokio's, and stands still but for what waits for it.

use super::world::World;
use blixard::clock::HybridClock;
use blixard::engine::agent::{Agent, AgentError, Options, Supervisor, lease};
use blixard::engine::log::MemoryLog;
use blixard::engine::state::{Actual, By, Command, Conditions, NodeId, Reply, Restart, Vm, VmId, VmSpec, VmVerb};
use blixard::engine::{Engine, LocalHost};
use blixard::text::Refusal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// More than any chain of retries takes, in the time of the test.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// When the world begins, in milliseconds since 1970.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// Longer than what could not be given back waits for its next try.
pub const RETRIED: Duration = Duration::from_secs(31);

/// What leases have here.
const LEASE: lease::Options = lease::Options { length_ms: 10_000, drift_percent: 20, grace_ms: 2_000 };

pub struct Bed {
    pub world: World,
    pub log: MemoryLog,
    pub engine: Engine,
    pub supervisor: Supervisor,
    pub agent: Option<Agent>,
    pub folder: tempfile::TempDir,
}

pub fn root() -> By {
    By::User("root".to_owned())
}

impl Bed {
    /// A node that is up.
    pub async fn new() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let tiny = folder.path().join("images/tiny");
        std::fs::create_dir_all(&tiny).unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(tiny.join("image.toml"), "kernel = \"kernel\"\ninitrd = \"initrd\"\n").unwrap();
        std::fs::write(tiny.join("kernel"), "k").unwrap();
        std::fs::write(tiny.join("initrd"), "i").unwrap();
        let (log, committed) = MemoryLog::open();
        let begin = Instant::now();
        let millis = move || Ok(BEGIN_MS + u64::try_from(begin.elapsed().as_millis()).unwrap());
        let clock = Arc::new(HybridClock::new(millis, 500));
        let engine = Engine::open(Arc::new(log.clone()), committed, clock, NodeId(1), 1).await.unwrap();
        let init = Command::Init { cluster: "test".into(), node: "alpha".into(), admin: "root".into(), admin_uid: 0 };
        engine.submit(By::Agent, vec![init]).await.unwrap();
        let mut bed = Bed { world: World::default(), log, engine, supervisor: Supervisor::new(), agent: None, folder };
        bed.start_agent().await;
        bed
    }

    pub async fn start_agent(&mut self) {
        self.try_start_agent().await.unwrap();
    }

    /// The log may not take it.
    pub async fn try_start_agent(&mut self) -> Result<(), AgentError> {
        let options = Options {
            node: NodeId(1),
            data: self.folder.path().join("data"),
            images: self.folder.path().join("images"),
            memory_bytes: None,
            cpus: None,
            lease: LEASE,
            set_trace_level: Arc::new(|_| Ok(())),
            invite: Arc::new(|| Err(blixard::text::Refusal::fault("nobody joins here"))),
        };
        self.supervisor = Supervisor::new();
        let hypervisor = Arc::new(self.world.clone());
        let started =
            Agent::start(self.engine.clone(), hypervisor, self.world.host(), self.supervisor.clone(), options).await;
        self.agent = Some(started?);
        Ok(())
    }

    /// The agent is gone from one moment to the next, as if its process had been killed.
    pub async fn crash_agent(&mut self) {
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.agent = None;
        self.supervisor = Supervisor::new();
        // What was aborted is dropped when its turn comes.
        for _ in 0..before {
            tokio::task::yield_now().await;
        }
    }

    pub async fn stop_agent(&mut self) {
        self.supervisor.stop().await;
        // The log may not take it.
        let _ = self.agent.take().unwrap().stop().await;
    }

    pub async fn new_vm(&self, spec: VmSpec) -> VmId {
        self.try_new_vm(spec).await.unwrap()
    }

    pub async fn try_new_vm(&self, spec: VmSpec) -> Result<VmId, Refusal> {
        let new = Command::VmNew { name: None, spec, key: None };
        match self.engine.submit(root(), vec![new]).await?.as_slice() {
            [Reply::Created(id)] => Ok(VmId(*id)),
            other => panic!("{other:?}"),
        }
    }

    pub async fn tell(&self, vm: VmId, verb: VmVerb) -> Result<(), Refusal> {
        let command = Command::Vm { vm, verb, conditions: Conditions::default() };
        self.engine.submit(root(), vec![command]).await.map(drop)
    }

    pub async fn start(&self, vm: VmId) {
        self.tell(vm, VmVerb::Start).await.unwrap();
    }

    pub async fn stop(&self, vm: VmId) {
        self.tell(vm, VmVerb::Stop { grace_ms: None }).await.unwrap();
    }

    /// The VM, when it has become like this.
    pub async fn becomes(&self, id: VmId, what: &str, like: impl Fn(&Vm) -> bool) -> Arc<Vm> {
        let mut changes = self.engine.changes();
        let seen = async {
            loop {
                changes.borrow_and_update();
                match self.engine.state().vm(id) {
                    Some(vm) if like(vm) => return vm.clone(),
                    Some(_) => changes.changed().await.unwrap(),
                    None => panic!("vm {id} is gone, and not {what}"),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(vm) => vm,
            Err(_) => panic!(
                "vm {id} is not {what}: {:?}\n{:#?}\n{:?}",
                self.engine.state().vm(id),
                self.status(),
                self.world.calls()
            ),
        }
    }

    pub async fn is(&self, id: VmId, actual: Actual) -> Arc<Vm> {
        self.becomes(id, &actual.to_string(), |vm| vm.actual == actual).await
    }

    /// Until the VM is no more.
    pub async fn is_gone(&self, id: VmId) {
        let mut changes = self.engine.changes();
        let gone = changes.wait_for(|_| self.engine.state().vm(id).is_none());
        let timely = tokio::time::timeout(PATIENCE, gone).await.is_ok();
        assert!(timely, "vm {id} is still there: {:?} {:#?}", self.engine.state().vm(id), self.status());
    }

    pub fn vm(&self, id: VmId) -> Arc<Vm> {
        self.engine.state().vm(id).cloned().unwrap()
    }

    pub fn status(&self) -> Vec<(String, String)> {
        self.agent.as_ref().map(LocalHost::status).unwrap_or_default()
    }

    /// What the node's status lists as left over, without why: processes without their number.
    pub fn leftovers(&self) -> BTreeSet<String> {
        let named = |line: &str| {
            let (what, _why) = line.split_once(": ").unwrap();
            match what.strip_prefix("process ") {
                Some(process) => format!("process {}", process.split_once(' ').unwrap().1),
                None => what.to_owned(),
            }
        };
        self.status().iter().filter(|(key, _)| key == "leftover").map(|(_, line)| named(line)).collect()
    }

    /// Nothing is left of the VM that is no more.
    pub fn nothing_left(&self, vm: VmId, of: &str) {
        assert_eq!(self.world.held(vm.0), BTreeSet::new(), "{of}: {:?}", self.world.calls());
        assert_eq!(self.world.disks(vm.0), 0, "{of}: disks");
        assert_eq!(self.leftovers(), BTreeSet::new(), "{of}");
        assert!(!self.folder.path().join("data/vms").join(vm.to_string()).exists(), "{of}: its folder");
        let machines = ("machines".to_owned(), self.world.simulated.machines().len().to_string());
        assert!(self.status().contains(&machines), "{of}: {:?}", self.status());
        let state = self.engine.state();
        let pool = state.ipam().pool("default").unwrap();
        assert!(pool.leases().all(|(_, lease)| lease.holder != vm.0), "{of}: its lease");
        assert_eq!(self.world.wrong(), Vec::<String>::new(), "{of}");
    }
}

/// A VM with everything that a VM can have, which is not started by itself.
pub fn spec() -> VmSpec {
    VmSpec { disk_bytes: Some(1 << 20), restart: Restart::Never, grace_ms: 5_000, ..VmSpec::default() }
}

pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
