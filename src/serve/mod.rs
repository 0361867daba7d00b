//! `blixard serve`: puts the rooms together, and takes them apart again.
//!
//! Up: trace, data folder, the other nodes, log, engine, agent, tree, sockets, mount; then one line on stdout says that it is ready. Down: the same the
//! other way round. It is crash-only: when a part can't go on the process ends with an error, and its next start finds everything.

mod between;
mod members;
mod output;
mod rejoin;
mod room;
mod worker;

use crate::clock::{HybridClock, system_millis};
use crate::cluster::{self, ClusterError, Joiner};
use crate::config::{self, Config};
use crate::engine::agent::{self, Agent, Policy, SetTraceLevel, Supervisor};
use crate::engine::host::HostParts;
use crate::engine::hypervisor::{Hypervisor, Qemu, Simulated};
use crate::engine::log::{Addresses, FollowedLog, HiqliteLog, Log, LogError, Member as StoreMember, OpenOptions};
use crate::engine::state::{By, Command, ENTRY_FORMAT, NodeId};
use crate::engine::{self, DataFolder, Engine};
use crate::fs::fuse::{self, Fuse};
use crate::fs::ninep;
use crate::fs::tree::Tree;
use crate::member::{self, Member, MemberError};
use crate::ninep::identity::IdentityError;
use crate::text::{Dial, Refusal, name, trace_level};
use between::Between;
use members::{Follower, Verdict};
use output::Output;
use std::future::Future;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

/// How long a node that goes down tries to say so: without a quorum nobody can be told.
const TELL_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);
/// The pause before a process puts a new one in its place.
const START_ANEW_AFTER: std::time::Duration = std::time::Duration::from_millis(500);
/// What brings the log to a node and carries it to others: without these nobody hears that it goes down, and it hears no answer.
const ENDS_LAST: &[&str] = &["peers", "tunnels", "follow"];
/// QEMU's binary.
const QEMU: &str = "qemu-system-x86_64";

/// Why a node can't serve, or serves no longer. Each message is for whoever started it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] config::Mistakes),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] engine::FolderError),
    /// The log.
    #[error(transparent)]
    Log(#[from] engine::log::LogError),
    /// The cluster could not be made.
    #[error("the cluster can't be made: {0}")]
    Init(Refusal),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ninep::ListenError),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] crate::fs::fuse::FuseError),
    /// The system.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// What this machine is in its cluster.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// It could not join.
    #[error("{0}")]
    Join(#[from] ClusterError),
    /// Its identity among the nodes.
    #[error(transparent)]
    Identity(IdentityError),
    /// The port where others come in.
    #[error("can't listen on port {port}, where the other nodes come in (--advertise): {source}")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The store can't go on; another start begins with a fresh one, from the others.
    #[error("{0}; starting anew with a fresh store")]
    StaleStore(String),
    /// The log of this node can't go on in this process; another start can.
    #[error("{0}; starting anew")]
    Again(String),
    /// The engine can't go on.
    #[error("the node can't go on: {0}; start it again, its guests run on")]
    Engine(engine::Failure),
    /// A part ended that it can't do without.
    #[error("the node can't go on: {0}; start it again, its guests run on")]
    Failed(String),
}

/// How a node is started, beside its configuration.
#[derive(Debug, Clone)]
pub struct Start {
    /// Go on although the log has lost what was acknowledged.
    pub accept_loss: bool,
    /// The token of the cluster to join; of no effect once it has joined.
    pub join: Option<String>,
    /// Where other nodes reach it from now on.
    pub advertise: Option<String>,
    /// The newest format of entries that it reads, and says that it reads. Nobody can set it but who builds a program of this library: a
    /// release is of [`ENTRY_FORMAT`].
    pub entry_format: u8,
}

impl Default for Start {
    fn default() -> Start {
        Start { accept_loss: false, join: None, advertise: None, entry_format: ENTRY_FORMAT }
    }
}

/// Serves until SIGINT or SIGTERM. When the store can't go on and the others have everything, it puts a new process of itself in its
/// place, which begins with a fresh one.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(config: &Config, start: &Start) -> Result<(), ServeError> {
    let set_trace_level = start_trace(config)?;
    config.check_places()?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| ServeError::Io("no runtime", e))?;
    let output = Output::take().map_err(|e| ServeError::Io("no standard output", e))?;
    let served = runtime.block_on(run(config, start, set_trace_level, &output));
    // What still blocks by now, such as a rendering for a reader, must not keep the process.
    runtime.shutdown_background();
    match served {
        Err(ServeError::StaleStore(why) | ServeError::Again(why)) => {
            output.give_back();
            Err(start_anew(why))
        }
        served => served,
    }
}

/// This process becomes a new one with the same arguments: of a store that has failed nothing can be closed or used again.
fn start_anew(why: String) -> ServeError {
    use std::os::unix::process::CommandExt;
    tracing::warn!(why, "starting anew");
    // Should that lead here again, it is not to be at once.
    std::thread::sleep(START_ANEW_AFTER);
    let mut arguments = std::env::args_os();
    let _program = arguments.next();
    match std::env::current_exe() {
        Ok(program) => ServeError::Io("can't start anew", std::process::Command::new(program).args(arguments).exec()),
        Err(error) => ServeError::Io("can't start anew", error),
    }
}

/// Each machine and each connection holds descriptors, and the usual soft limit of 1024 is for programs that call select(2).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, soft = ?limit.current, "the limit of open files can't be raised");
    }
}

/// The trace goes to stderr, as text or JSON; its level can be changed while it runs.
fn start_trace(config: &Config) -> Result<SetTraceLevel, ServeError> {
    let level = filter(&config.trace.level).map_err(|refusal| ServeError::Failed(refusal.sentence))?;
    let (level, handle) = reload::Layer::new(level);
    let output = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let output = if config.trace.json { output.json().boxed() } else { output.boxed() };
    // A second start in one process, as in tests, keeps the first one's trace.
    let _ = tracing_subscriber::registry().with(output.with_filter(level)).try_init();
    Ok(Arc::new(move |level| {
        handle.reload(filter(level)?).map_err(|e| Refusal::fault(format!("the trace can't be changed: {e}")))
    }))
}

/// A level without a module is ours; the libraries below have much to say, and say it from `warn` on. The store's say ten times a second
/// that a node is not there, which is in the events once: who wants to read that asks for `openraft=warn`.
fn filter(level: &str) -> Result<EnvFilter, Refusal> {
    trace_level::check(level)?;
    let ours =
        level.split(',').map(|word| if word.contains('=') { word.to_owned() } else { format!("blixard={word}") });
    let directives: Vec<String> =
        ["warn", "polyfuse=error", "hiqlite=off", "openraft=off"].into_iter().map(str::to_owned).chain(ours).collect();
    EnvFilter::try_new(directives.join(",")).map_err(|e| Refusal::invalid(format!("invalid level: {e}")))
}

async fn run(
    config: &Config,
    start: &Start,
    set_trace_level: SetTraceLevel,
    output: &Output,
) -> Result<(), ServeError> {
    let mut ends = Ends::listen()?;
    if has_others(config) {
        tokio::select! {
            () = room::await_room(&config.data) => {}
            () = ends.asked() => return Ok(()),
        }
    }
    let data = DataFolder::open(&config.data)?;
    let supervisor = Supervisor::with_last(ENDS_LAST);
    let opening = async {
        let member = member(config, data.path(), start).await?;
        let between = Between::start(&member, data.path(), &config.listen, &supervisor).await?;
        if !member.worker && rejoin::is_due(data.path(), &member) {
            let Member { raft, .. } = rejoin::rejoin(data.path(), &member, &between.identity).await?;
            // The port and the tunnels are for the identity that it had.
            return Err(ServeError::Again(format!("this node is number {raft} in Raft now")));
        }
        let opened = match member.worker {
            true => follow_members_log(config, &data, &member, &between, (&supervisor, start)).await?,
            false => open_engine(config, &data, &member, &between, start).await?,
        };
        between.opened(&opened.engine, opened.store.as_ref());
        Ok((member, between, opened))
    };
    let opened = tokio::select! {
        opened = opening => opened,
        why = supervisor.escalated() => Err(ServeError::Failed(why)),
        () = ends.asked() => {
            // As at any death: the next start finds the log as it is. Until the process is gone the store's own tasks may write, so
            // nobody else gets the folder before.
            std::mem::forget(data);
            return Ok(());
        }
    };
    let (member, between, Opened { engine, log, store }) = match opened {
        Ok(opened) => opened,
        Err(ServeError::Log(LogError::Damaged { what, .. })) if has_others(config) => {
            return Err(stale_store(&config.data, what));
        }
        // There is a leader, and still nothing comes: as good as a log that has ended.
        Err(ServeError::Log(error)) if has_others(config) => return Err(ServeError::Again(error.to_string())),
        Err(error) => return Err(error),
    };
    let verdict = Arc::default();
    let node = Node {
        config,
        data: data.path(),
        member: &member,
        engine: &engine,
        log: &log,
        store: store.as_ref(),
        supervisor: &supervisor,
        verdict: &verdict,
        output,
        entry_format: start.entry_format,
    };
    let served = node.with_engine(&between, set_trace_level, &mut ends).await;
    supervisor.stop().await;
    engine.close().await;
    node.after(served)
}

/// The program that this process is, also when its file was replaced meanwhile: fences are to be of the same release.
fn own_program() -> PathBuf {
    std::env::current_exe().ok().filter(|program| program.exists()).unwrap_or_else(|| {
        let pid = std::process::id();
        format!("/proc/{pid}/exe").into()
    })
}

/// Are there others who have everything that this node has?
fn has_others(config: &Config) -> bool {
    Member::read(&config.data).is_ok_and(|member| !member.peers.is_empty())
}

fn stale_store(data: &Path, why: String) -> ServeError {
    if Member::read(data).is_ok_and(|member| member.worker) {
        return ServeError::Again(why);
    }
    match rejoin::note(data, &why) {
        Ok(()) => ServeError::StaleStore(why),
        Err(error) => ServeError::Io("that the store is of no use can't be noted", error),
    }
}

/// What this machine is: as it was, or as it becomes by joining.
async fn member(config: &Config, data: &Path, start: &Start) -> Result<Member, ServeError> {
    let mut member = match (Member::read(data), &start.join) {
        (Err(MemberError::Missing(_)), Some(token)) => {
            let advertise = start.advertise.as_deref();
            let joiner = Joiner { data, name: &config.name, advertise, entry_format: start.entry_format };
            return Ok(cluster::join(token, joiner).await?);
        }
        (member, _) => member?,
    };
    let named = config.source("name") != config::Source::Default;
    if named && config.name != member.name {
        let what =
            format!("is node '{}' of cluster '{}' and can't become '{}'", member.name, member.cluster, config.name);
        return Err(ServeError::Failed(format!("{} {what}: leave --name away", data.display())));
    }
    if let Some(advertise) = &start.advertise {
        let address = member::address(advertise).map_err(|refusal| ServeError::Failed(refusal.sentence))?;
        if address != member.address {
            let hosts = cluster::hosts_of(&address)?;
            crate::ca::issue_own(data, &member.name, &hosts).map_err(ClusterError::from)?;
            member.address = address;
            member.write(data)?;
        }
    }
    Ok(member)
}

/// A log that is open, and the engine over it.
struct Opened {
    engine: Engine,
    log: Arc<dyn Log>,
    /// None: of a worker.
    store: Option<Arc<HiqliteLog>>,
}

fn engine_options(data: &DataFolder, entry_format: u8) -> engine::Options {
    engine::Options { entry_format, audit: Some(data.path().join("audit")), ..engine::Options::default() }
}

/// Opens the log of a machine that has none of its own.
async fn follow_members_log(
    config: &Config,
    data: &DataFolder,
    member: &Member,
    between: &Between,
    (supervisor, start): (&Supervisor, &Start),
) -> Result<Opened, ServeError> {
    let identity = crate::ca::node_identity(data.path());
    let own = (member.name.as_str(), member.node);
    let members = Arc::new(worker::Members::new(own, identity, between.lines(), between.peers.subscribe()));
    let (log, publisher, committed) = FollowedLog::open(members.clone());
    let log: Arc<dyn Log> = Arc::new(log);
    let clock = Arc::new(HybridClock::new(system_millis, config.limits.drift_max_ms));
    let (node, options) = (NodeId(member.node), engine_options(data, start.entry_format));
    let engine = Engine::open_with(log.clone(), committed, clock, node, data.boot(), options).await?;
    let heard = engine.clone();
    let follow = move |stop: CancellationToken| {
        let (members, last, publisher) = (members.clone(), heard.state().seq(), publisher.clone());
        members.follow(last, publisher, stop)
    };
    supervisor.start("follow", Policy::VITAL, follow).map_err(ServeError::Failed)?;
    Ok(Opened { engine, log, store: None })
}

async fn open_engine(
    config: &Config,
    data: &DataFolder,
    member: &Member,
    between: &Between,
    start: &Start,
) -> Result<Opened, ServeError> {
    let at = |raft: u64| {
        let addresses = member.loopback.addresses(raft).map(|(raft, api)| Addresses { raft, api });
        addresses.map_err(|refusal| ServeError::Failed(refusal.sentence))
    };
    let raft = member.raft;
    let others: Result<Vec<_>, ServeError> = member.peers.iter().map(|peer| Ok((peer.raft, at(peer.raft)?))).collect();
    let forward = Some(between.way());
    let store = StoreMember { raft, own: at(raft)?, others: others?, forward };
    let (alone, raft_log_keep) = (member.peers.is_empty(), config.limits.log_keep);
    let log_options = OpenOptions { accept_loss: start.accept_loss, alone, raft_log_keep, ..OpenOptions::default() };
    let (log, committed) = HiqliteLog::open(&data.path().join("log"), &store, log_options).await?;
    let log = Arc::new(log);
    let clock = Arc::new(HybridClock::new(system_millis, config.limits.drift_max_ms));
    let (node, options) = (NodeId(member.node), engine_options(data, start.entry_format));
    let engine = Engine::open_with(log.clone(), committed, clock, node, data.boot(), options).await?;
    if engine.state().cluster().is_none() {
        let init = Command::Init {
            cluster: member.cluster.clone(),
            node: member.name.clone(),
            admin: user_name(),
            admin_uid: rustix::process::getuid().as_raw(),
        };
        engine.submit(By::Agent, vec![init]).await.map_err(ServeError::Init)?;
    }
    if !member.formed {
        Member { formed: true, ..member.clone() }.write(data.path())?;
    }
    Ok(Opened { engine, log: log.clone(), store: Some(log) })
}

/// The name of whoever starts the cluster, by passwd(5): its first admin.
fn user_name() -> String {
    let uid = rustix::process::getuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    named.filter(|name| name::check(name).is_ok()).unwrap_or_else(|| "admin".to_owned())
}

/// A node whose log is open.
struct Node<'n> {
    config: &'n Config,
    data: &'n Path,
    member: &'n Member,
    engine: &'n Engine,
    log: &'n Arc<dyn Log>,
    /// None: of a worker.
    store: Option<&'n Arc<HiqliteLog>>,
    supervisor: &'n Supervisor,
    /// What the node has found out about itself, if it was that which ended it.
    verdict: &'n Arc<OnceLock<Verdict>>,
    output: &'n Output,
    /// See [`Start::entry_format`].
    entry_format: u8,
}

impl Node<'_> {
    /// What to do about the end of a node: whether it is one, and with what it begins again.
    fn after(&self, served: Result<(), ServeError>) -> Result<(), ServeError> {
        let Err(error) = served else { return Ok(()) };
        if self.verdict.get() == Some(&Verdict::Removed) {
            member::set_aside(self.data)?;
            return Err(error);
        }
        if self.member.worker {
            // It has nothing that could be stale: it begins with what a member tells.
            return Err(match error {
                ServeError::Engine(why) => ServeError::Again(why.to_string()),
                error => error,
            });
        }
        if !has_others(self.config) {
            return Err(error);
        }
        if self.verdict.get() == Some(&Verdict::NoRoom) {
            return Err(ServeError::Again(error.to_string()));
        }
        let stale = self.verdict.get() == Some(&Verdict::StaleStore) || self.log.health().dead.is_some();
        match error {
            ServeError::Engine(why @ engine::Failure::Diverged(_)) => Err(stale_store(self.data, why.to_string())),
            error if stale => Err(stale_store(self.data, error.to_string())),
            ServeError::Engine(why @ engine::Failure::LogEnded(_)) => Err(ServeError::Again(why.to_string())),
            error => Err(error),
        }
    }

    async fn with_engine(
        &self,
        between: &Between,
        set_trace_level: SetTraceLevel,
        ends: &mut Ends,
    ) -> Result<(), ServeError> {
        // A start that is not awaited to its end leaves what a killed one leaves: the next start takes it back.
        let Serving { agent, stop_sockets, fuse } = tokio::select! {
            up = self.start(between, set_trace_level) => up?,
            ended = ends.wait(self.engine, self.supervisor) => return ended,
        };
        let ended = tokio::select! {
            ended = ends.wait(self.engine, self.supervisor) => ended,
            () = fuse.ended() => Err(ServeError::Failed("somebody has unmounted the tree".to_owned())),
        };
        fuse.unmount().await;
        stop_sockets.cancel();
        // First those who start machines, then what the machines of nobody had.
        self.supervisor.stop_first().await;
        if ended.is_ok() {
            let told = tokio::time::timeout(TELL_WITHIN, agent.stop()).await;
            if let Err(refusal) = told.unwrap_or_else(|_| Err(Refusal::again("there is no quorum to tell"))) {
                tracing::warn!(%refusal, "the log was not told that this node goes down");
            }
        }
        ended
    }

    async fn start(&self, between: &Between, set_trace_level: SetTraceLevel) -> Result<Serving, ServeError> {
        let Node { config, data, supervisor, .. } = *self;
        let (engine, node) = (self.engine, NodeId(self.member.node));
        self.follow_members(between)?;
        self.watch_room()?;
        let reach = Command::NodeReach {
            address: self.member.address.clone(),
            entry_format: self.entry_format,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        engine.submit(By::Agent, vec![reach]).await.map_err(ServeError::Init)?;
        let (hypervisor, host): (Arc<dyn Hypervisor>, HostParts) = match config.hypervisor {
            config::Hypervisor::Qemu => {
                (Arc::new(Qemu::new(QEMU).fenced_by(own_program())), HostParts::detect(&agent::device_tag(data)).await)
            }
            config::Hypervisor::Simulated => {
                let simulated = Arc::new(Simulated::default());
                (simulated.clone(), HostParts::none(simulated))
            }
        };
        let guests_uids = match config.hypervisor {
            config::Hypervisor::Qemu => host.guest_uids(),
            // Simulated machines have no processes: nobody who connects is a guest.
            config::Hypervisor::Simulated => Some(0..0),
        };
        let (identity, members) = (between.identity.clone(), engine.clone());
        let invite = move || {
            let addresses =
                members.state().voters().map(|node| node.address.clone()).filter(|at| !at.is_empty()).collect();
            cluster::token(&identity, addresses)
        };
        let options = agent::Options {
            node,
            data: data.to_owned(),
            images: config.images.clone(),
            memory_bytes: config.limits.memory_bytes,
            cpus: config.limits.cpus,
            lease: agent::lease::Options {
                length_ms: config.lease.length_ms,
                drift_percent: config.lease.drift_percent,
                grace_ms: config.lease.grace_ms,
            },
            set_trace_level,
            invite: Arc::new(invite),
        };
        let agent = Agent::start(engine.clone(), hypervisor, host, supervisor.clone(), options).await?;
        let server =
            crate::fs::Server::new(engine.clone(), Arc::new(agent.clone()), node, crate::ca::node_identity(data));
        let tree: Arc<dyn Tree> = Arc::new(server.clone());
        start_watch(supervisor, &server)?;
        let options = ninep::Options {
            guests_uids,
            insecure: config.insecure_listen.clone(),
            identity: crate::ca::node_identity(data),
            sessions: server.sessions().clone(),
        };
        // At the port where other nodes come in, users do, too.
        let is_there = |dial: &&Dial| matches!(dial, Dial::Tls { port, .. } if *port == between.port && *port != 0);
        let listen: Vec<Dial> = config.listen.iter().filter(|dial| !is_there(dial)).cloned().collect();
        let sockets = ninep::Server::bind(tree.clone(), &listen, options).await?;
        between.open_door(sockets.door());
        let stop_sockets = start_sockets(supervisor, sockets)?;
        let how = fuse::Options { all_users: true, write_bytes_max: fuse::WRITE_BYTES_MAX };
        let local = Arc::new(fuse::Local(tree));
        let fuse = Fuse::mount(local, tokio::runtime::Handle::current(), &config.mount, how)?;
        self.output.say(&format!("ready {}", config.mount.display()));
        tracing::info!(mount = %config.mount.display(), data = %config.data.display(), "ready");
        Ok(Serving { agent, stop_sockets, fuse })
    }

    /// A node alone takes nothing when there is little room; to a member things come all the same.
    fn watch_room(&self) -> Result<(), ServeError> {
        let Some(store) = self.store.cloned() else { return Ok(()) };
        let (engine, verdict) = (self.engine.clone(), self.verdict.clone());
        let policy = Policy { restarts: agent::supervisor::Restarts::Transient, most: 0, ..Policy::VITAL };
        let start = move |stop: CancellationToken| room::watch(engine.clone(), store.clone(), verdict.clone(), stop);
        self.supervisor.start("room", policy, start).map_err(ServeError::Failed)
    }

    fn follow_members(&self, between: &Between) -> Result<(), ServeError> {
        let follower = Follower {
            engine: self.engine.clone(),
            log: self.log.clone(),
            store: self.store.cloned(),
            data: self.data.to_owned(),
            member: self.member.clone(),
            peers: between.peers.clone(),
            nodes: between.nodes(),
            verdict: self.verdict.clone(),
        };
        // What it finds out can't be mended by another try.
        let policy = Policy { restarts: agent::supervisor::Restarts::Transient, most: 0, ..Policy::VITAL };
        let start = move |stop: CancellationToken| follower.clone().run(stop);
        self.supervisor.start("members", policy, start).map_err(ServeError::Failed)
    }
}

/// A node that is up.
struct Serving {
    agent: Agent,
    stop_sockets: CancellationToken,
    fuse: Fuse,
}

/// Runs what has been made once and can't be made again, so that its end is one of the process.
fn start_once<R>(
    supervisor: &Supervisor,
    name: &'static str,
    run: impl FnOnce(CancellationToken) -> R + Send + 'static,
) -> Result<(), ServeError>
where
    R: Future<Output = ()> + Send + 'static,
{
    let run = std::sync::Mutex::new(Some(run));
    let start = move |ending: CancellationToken| {
        let run = run.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        async move {
            let Some(run) = run else { return Err(format!("{name} can't be started twice")) };
            run(ending.clone()).await;
            if ending.is_cancelled() { Ok(()) } else { Err(format!("{name} has ended")) }
        }
    };
    let policy = Policy { restarts: agent::supervisor::Restarts::Transient, most: 0, ..Policy::VITAL };
    supervisor.start(name, policy, start).map_err(ServeError::Failed)
}

/// Whoever is not to be connected any more is not for long.
fn start_watch(supervisor: &Supervisor, server: &crate::fs::Server) -> Result<(), ServeError> {
    let server = server.clone();
    let start = move |ending: CancellationToken| {
        let watching = server.clone().watch_sessions();
        async move {
            tokio::select! {
                () = watching => Err("the engine has ended".to_owned()),
                () = ending.cancelled() => Ok(()),
            }
        }
    };
    supervisor.start("sessions", Policy::VITAL, start).map_err(ServeError::Failed)
}

/// The 9P server as a task of the tree of supervision.
fn start_sockets(supervisor: &Supervisor, server: ninep::Server) -> Result<CancellationToken, ServeError> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    start_once(supervisor, "9p", move |ending| async move {
        // Whichever comes first: our own end, or that of all tasks.
        let either = told.child_token();
        let _guard = either.clone().drop_guard();
        tokio::select! {
            () = server.serve(either) => {}
            () = ending.cancelled() => {}
        }
        if told.is_cancelled() {
            // It was asked to, and nobody is to wonder.
            ending.cancelled().await;
        }
    })?;
    Ok(stop)
}

/// What ends a node.
struct Ends {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Ends {
    /// From here on a signal ends us cleanly.
    fn listen() -> Result<Ends, ServeError> {
        let on = |kind| signal(kind).map_err(|e| ServeError::Io("no signals", e));
        Ok(Ends { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Until whoever started us has had enough.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    async fn wait(&mut self, engine: &Engine, supervisor: &Supervisor) -> Result<(), ServeError> {
        tokio::select! {
            () = self.asked() => Ok(()),
            why = engine.failed() => Err(ServeError::Engine(why)),
            why = supervisor.escalated() => Err(ServeError::Failed(why)),
        }
    }
}
