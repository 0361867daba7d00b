//! The agent: the hands of one host. It makes what is desired so, and reports what is.
//!
//! - `supervisor.rs`: keeps every task of the program alive
//! - `reconciler.rs`: wakes the actor of each VM that has changed; at the start, finds what former lives left behind
//! - `actor.rs`: one VM: looks at what is desired and at what it sees, does one step, reports; `decide.rs`: which step, purely
//! - `start.rs`: from a VM to a running machine: the list of what is acquired; `resources.rs`: giving it back
//! - `holder.rs`: this node's own lease, which its fenced machines depend on; `lease.rs`: those of the others
//! - `clock_offset.rs`: how far this host's time of day is from the leader's
//! - `stats.rs`: what machines have used, and how busy the host is
//! - `record.rs`, `images.rs`: what this host knows beside the log

mod actor;
mod clock_offset;
mod decide;
mod holder;
mod images;
pub mod lease;
mod reconciler;
mod record;
mod resources;
mod start;
mod stats;
pub mod supervisor;

pub use resources::{Leftovers, Resource};
pub use supervisor::{Policy, Supervisor, WeakSupervisor};

use super::Engine;
use super::LocalHost;
use super::blocking;
use super::host::{HostError, HostParts};
use super::hypervisor::{Capabilities, Console, Hypervisor, HypervisorError, Instance};
use super::state::{By, Command, NodeId, VmId};
use crate::text::{Code, Refusal};
use bytes::Bytes;
use clock_offset::ClockOffset;
use futures::future::BoxFuture;
use holder::Holder;
use reconciler::ActorOf;
use record::Records;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The first pause after a submission that could not be made; it doubles up to [`SUBMIT_PAUSE_MOST`].
const SUBMIT_PAUSE_FIRST: Duration = Duration::from_millis(100);
/// How soon what the host refused is tried again: it says nothing when what was busy comes free.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// See [`SUBMIT_PAUSE_FIRST`].
const SUBMIT_PAUSE_MOST: Duration = Duration::from_secs(5);

/// Why an agent can't begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file of the data folder.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The log took no report.
    #[error("this node can't report that it is up: {0}")]
    Refused(Refusal),
    /// A task could not be started.
    #[error("{0}")]
    Task(String),
}

/// Changes the level of the trace: main has the subscriber.
pub type SetTraceLevel = Arc<dyn Fn(&str) -> Result<(), Refusal> + Send + Sync>;

/// Makes a token with which one machine may join, and the SHA-256 of its secret: the top knows how.
pub type Invite = Arc<dyn Fn() -> Result<(String, [u8; 32]), Refusal> + Send + Sync>;

/// How an agent is set.
#[derive(Clone)]
pub struct Options {
    /// Which node it is.
    pub node: NodeId,
    /// The data folder.
    pub data: PathBuf,
    /// The images folder.
    pub images: PathBuf,
    /// Memory that guests may have, in bytes; None: what the hypervisor finds.
    pub memory_bytes: Option<u64>,
    /// Virtual CPUs that guests may have together; None: no limit.
    pub cpus: Option<u32>,
    /// This node's lease, and how those of the others are watched.
    pub lease: lease::Options,
    /// See [`SetTraceLevel`].
    pub set_trace_level: SetTraceLevel,
    /// See [`Invite`].
    pub invite: Invite,
}

/// The letters that tell the devices of this data folder from another's on the same host.
pub fn device_tag(data: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = images::hex(&Sha256::digest(data.as_os_str().as_bytes()));
    hash.chars().take(5).collect()
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// The size of the file system that guests' disks are on, in bytes.
fn disk_bytes(data: &Path) -> Result<u64, std::io::Error> {
    let of = rustix::fs::statvfs(data)?;
    Ok(of.f_blocks.saturating_mul(of.f_frsize))
}

/// What all parts of the agent share.
struct Shared {
    engine: Engine,
    hypervisor: Arc<dyn Hypervisor>,
    host: HostParts,
    capabilities: Capabilities,
    image_faults: Vec<String>,
    records: Records,
    leftovers: Leftovers,
    lease: Arc<Holder>,
    clock_offset: watch::Receiver<Option<ClockOffset>>,
    supervisor: WeakSupervisor,
    options: Options,
    /// The VMs that have, or had, an actor.
    actors: Mutex<HashMap<VmId, ActorOf>>,
    actors_made: AtomicU64,
    /// Machines that run, for those who want their consoles.
    instances: Mutex<HashMap<VmId, Arc<dyn Instance>>>,
}

impl Shared {
    /// Reports, again and again until the log has it: a report is idempotent. A refusal is an answer.
    async fn report(&self, command: Command) -> Result<(), Refusal> {
        let mut pause = SUBMIT_PAUSE_FIRST;
        loop {
            match self.engine.submit(By::Agent, vec![command.clone()]).await {
                Ok(_replies) => return Ok(()),
                Err(refusal) if matches!(refusal.code, Code::Again | Code::TimedOut | Code::NoSpace) => {
                    tracing::warn!(%command, %refusal, "a report could not be made; it will be tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SUBMIT_PAUSE_MOST);
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn instances(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Arc<dyn Instance>>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent of this host. A clone is the same one.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

impl Agent {
    /// Finds out what the host can do, says that the node is up, registers its images, takes back the machines that run, and
    /// ends what belongs to nothing.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(
        engine: Engine,
        hypervisor: Arc<dyn Hypervisor>,
        host: HostParts,
        supervisor: Supervisor,
        options: Options,
    ) -> Result<Agent, AgentError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| AgentError::Io(path, error)
        };
        // First of all: what runs here may depend on it.
        let lease = start_leases(&engine, &host, &supervisor, &options)?;
        let clock_offset = start_clock_offset(&engine, &lease, &supervisor)?;
        let records = Records::open(&options.data).map_err(io(&options.data.join("vms")))?;
        let leftovers = Leftovers::open(&options.data).map_err(io(&options.data.join("leftovers")))?;
        let capabilities = hypervisor.probe(host.guest_ids(0)).await;
        let (images, data) = (options.images.clone(), options.data.clone());
        let scanned = blocking::run(move || images::scan(&images, &data)).await;
        let (found, mut image_faults) = scanned.map_err(AgentError::Task)?;
        let host_boot = host.processes.boot_id()?;
        let up = Command::NodeUp {
            host_boot,
            hypervisor: hypervisor.name().to_owned(),
            memory_bytes: options.memory_bytes.unwrap_or(capabilities.memory_bytes),
            cpus: host_cpus(),
            vcpus_max: options.cpus,
            arch: std::env::consts::ARCH.to_owned(),
            disk_bytes: disk_bytes(&options.data).map_err(io(&options.data))?,
        };
        engine.submit(By::Agent, vec![up]).await.map_err(AgentError::Refused)?;
        image_faults.extend(register_images(&engine, options.node, found).await);
        let agent = Agent(Arc::new(Shared {
            engine,
            hypervisor,
            host,
            capabilities,
            image_faults,
            records,
            leftovers,
            lease,
            clock_offset,
            supervisor: supervisor.downgrade(),
            options,
            actors: Mutex::default(),
            actors_made: AtomicU64::new(0),
            instances: Mutex::default(),
        }));
        reconciler::clear_up(&agent.0).await?;
        reconciler::start(&agent.0).map_err(AgentError::Task)?;
        Ok(agent)
    }

    /// Says that the node goes down. The machines run on; the tasks are the supervisor's.
    ///
    /// # Errors
    /// The log does not take it, or the host's bridges can't be removed.
    pub async fn stop(&self) -> Result<(), Refusal> {
        let tidied = self.0.host.net.remove_idle_bridges().await.map_err(|e| Refusal::fault(e.to_string()));
        self.0.engine.submit(By::Agent, vec![Command::NodeDown]).await?;
        tidied
    }

    /// What could not be given back.
    pub fn leftovers(&self) -> Vec<(Resource, String)> {
        self.0.leftovers.list()
    }
}

/// This node's own lease, and the watch over the others'.
fn start_leases(
    engine: &Engine,
    host: &HostParts,
    supervisor: &Supervisor,
    options: &Options,
) -> Result<Arc<Holder>, AgentError> {
    let Options { node, lease: set, .. } = *options;
    let holder = Arc::new(Holder::open(&options.data, host, set)?);
    if engine.state().vms_on(node).any(|vm| vm.fenced && vm.active()) {
        holder.want();
    }
    let (own, log) = (holder.clone(), engine.clone());
    let keep = move |stop| {
        let (own, log) = (own.clone(), log.clone());
        async move { own.keep(log, node, stop).await }
    };
    supervisor.start("lease", Policy::VITAL, keep).map_err(AgentError::Task)?;
    let log = engine.clone();
    let watch = move |stop| lease::watch(log.clone(), node, set, stop);
    supervisor.start("lease-watch", Policy::VITAL, watch).map_err(AgentError::Task)?;
    Ok(holder)
}

/// The measurement of this host's clock, at each renewal of its lease.
fn start_clock_offset(
    engine: &Engine,
    lease: &Arc<Holder>,
    supervisor: &Supervisor,
) -> Result<watch::Receiver<Option<ClockOffset>>, AgentError> {
    let (found, clock_offset) = watch::channel(None);
    let (log, lease) = (engine.clone(), lease.clone());
    let measure = move |stop| clock_offset::measure(log.clone(), lease.renewals(), found.clone(), stop);
    supervisor.start("clock-offset", Policy::VITAL, measure).map_err(AgentError::Task)?;
    Ok(clock_offset)
}

/// Makes the images of this host known, and those that are gone unknown. What is refused is the images' fault, told in a sentence
/// each, and no reason not to serve.
async fn register_images(engine: &Engine, node: NodeId, found: Vec<images::Found>) -> Vec<String> {
    let state = engine.state();
    let there = |name: &str| found.iter().any(|image| image.name == name);
    let gone = state.images().filter(|image| image.nodes.contains(&node) && !there(&image.name));
    let gone = gone.map(|image| image.name.clone());
    let mut commands: Vec<(String, Command)> =
        gone.map(|name| (format!("the image '{name}' is not there any more"), Command::ImageForget { name })).collect();
    drop(state);
    commands.extend(found.into_iter().map(|images::Found { name, size_bytes, sha256 }| {
        (format!("the image '{name}' can't be used"), Command::ImageRegister { name, size_bytes, sha256 })
    }));
    let mut faults = Vec::new();
    for (what, command) in commands {
        if let Err(refusal) = engine.submit(By::Agent, vec![command]).await {
            faults.push(format!("{what}: {refusal}"));
        }
    }
    faults
}

impl LocalHost for Agent {
    fn console_log(&self, vm: VmId) -> Result<Bytes, Refusal> {
        let unreadable = |e| Refusal::fault(format!("the console's log can't be read: {e}"));
        let mut text = Vec::new();
        for run_dir in self.0.records.run_dirs(vm.0) {
            text.extend(self.0.hypervisor.console_log(&run_dir).map_err(unreadable)?);
        }
        Ok(text.into())
    }

    fn console(&self, vm: VmId) -> BoxFuture<'static, Result<Console, Refusal>> {
        let instance = self.0.instances().get(&vm).cloned();
        Box::pin(async move {
            let off = || Refusal::busy(format!("vm {vm} is not running: its console is busy with nothing; start it"));
            instance.ok_or_else(off)?.console().await.map_err(|error| match error {
                HypervisorError::Gone => off(),
                other => Refusal::fault(other.to_string()),
            })
        })
    }

    fn vm_stats(&self, vm: VmId) -> BoxFuture<'static, Result<Vec<(&'static str, String)>, Refusal>> {
        let shared = self.0.clone();
        Box::pin(async move { stats::of_vm(&shared, vm).await })
    }

    fn node_stats(&self) -> Result<Vec<(&'static str, String)>, Refusal> {
        stats::of_host(&self.0)
    }

    fn status(&self) -> Vec<(String, String)> {
        let shared = &self.0;
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut line = |key: &str, value: String| lines.push((key.to_owned(), value));
        line("hypervisor", shared.capabilities.version.clone());
        line("accelerator", shared.capabilities.accelerator.clone());
        line("cgroups", shared.host.cgroups.describe());
        line("network", shared.host.net.describe());
        match shared.host.guest_uid_base {
            Some(base) => line("guest-uid", format!("{base} + number")),
            None => line("guest-uid", rustix::process::geteuid().as_raw().to_string()),
        }
        if let Some(offset) = *shared.clock_offset.borrow() {
            line("clock-offset", offset.to_string());
            offset.warning().into_iter().for_each(|warning| line("warning", warning));
        }
        line("machines", shared.instances().len().to_string());
        for missing in shared.capabilities.warnings.iter().chain(&shared.host.missing).chain(&shared.image_faults) {
            line("missing", missing.clone());
        }
        for (resource, why) in shared.leftovers.list() {
            line("leftover", format!("{resource}: {why}"));
        }
        for (task, runs) in shared.engine.tasks() {
            line("task", format!("engine/{task} {}", if runs { "running" } else { "ended" }));
        }
        for task in shared.supervisor.upgrade().map(|s| s.lines()).unwrap_or_default() {
            line("task", task);
        }
        lines
    }

    fn invite(&self) -> Result<(String, [u8; 32]), Refusal> {
        (self.0.options.invite)()
    }

    fn set_trace_level(&self, directive: &str) -> Result<(), Refusal> {
        (self.0.options.set_trace_level)(directive)
    }
}
