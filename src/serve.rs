//! `blixard serve`: puts the rooms together, and takes them apart again.
//!
//! Up: trace, data folder, log, engine, agent, tree, sockets, mount; then one line on stdout says that it is ready. Down: the same the
//! other way round. It is crash-only: when a part can't go on the process ends with an error, and its next start finds everything.

use crate::clock::{HybridClock, system_millis};
use crate::config::{self, Config};
use crate::engine::agent::{self, Agent, Policy, SetTraceLevel, Supervisor};
use crate::engine::host::HostParts;
use crate::engine::hypervisor::{Hypervisor, Qemu, Simulated};
use crate::engine::log::{HiqliteLog, OpenOptions};
use crate::engine::state::{By, Command, NodeId};
use crate::engine::{self, DataFolder, Engine};
use crate::fs::fuse::Fuse;
use crate::fs::ninep;
use crate::fs::tree::Tree;
use crate::text::{Refusal, name, trace_level};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

/// The node of this release: the first of its cluster.
const NODE: NodeId = NodeId(1);
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
    /// A part ended that it can't do without.
    #[error("the node can't go on: {0}; start it again, its guests run on")]
    Failed(String),
}

/// Serves until SIGINT or SIGTERM. `accept_loss`: go on although the log has lost what was acknowledged.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(config: &Config, accept_loss: bool) -> Result<(), ServeError> {
    let set_trace_level = start_trace(config)?;
    config.check_places()?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| ServeError::Io("no runtime", e))?;
    let served = runtime.block_on(run(config, accept_loss, set_trace_level));
    // What still blocks by now, such as a rendering for a reader, must not keep the process.
    runtime.shutdown_background();
    served
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

/// A level without a module is ours; the libraries below have much to say, and say it from `warn` on.
fn filter(level: &str) -> Result<EnvFilter, Refusal> {
    trace_level::check(level)?;
    let ours =
        level.split(',').map(|word| if word.contains('=') { word.to_owned() } else { format!("blixard={word}") });
    let directives: Vec<String> =
        ["warn", "polyfuse=error", "hiqlite=error"].into_iter().map(str::to_owned).chain(ours).collect();
    EnvFilter::try_new(directives.join(",")).map_err(|e| Refusal::invalid(format!("invalid level: {e}")))
}

async fn run(config: &Config, accept_loss: bool, set_trace_level: SetTraceLevel) -> Result<(), ServeError> {
    let mut ends = Ends::listen()?;
    let data = DataFolder::open(&config.data)?;
    let engine = tokio::select! {
        opened = open_engine(config, &data, accept_loss) => opened?,
        () = ends.asked() => {
            // As at any death: the next start finds the log as it is. Until the process is gone the store's own tasks may write, so
            // nobody else gets the folder before.
            std::mem::forget(data);
            return Ok(());
        }
    };
    let supervisor = Supervisor::new();
    let served = with_engine(config, data.path(), &engine, &supervisor, set_trace_level, &mut ends).await;
    supervisor.stop().await;
    engine.close().await;
    served
}

async fn open_engine(config: &Config, data: &DataFolder, accept_loss: bool) -> Result<Engine, ServeError> {
    let log_options = OpenOptions { accept_loss, ..OpenOptions::default() };
    let (log, committed) = HiqliteLog::open(&data.path().join("log"), NODE.0, log_options).await?;
    let clock = Arc::new(HybridClock::new(system_millis, config.limits.drift_max_ms));
    let options = engine::Options { audit: Some(data.path().join("audit")), ..engine::Options::default() };
    let engine = Engine::open_with(Arc::new(log), committed, clock, NODE, data.boot(), options).await?;
    if engine.state().cluster().is_none() {
        let init = Command::Init {
            cluster: config.name.clone(),
            node: config.name.clone(),
            admin: user_name(),
            admin_uid: rustix::process::getuid().as_raw(),
        };
        engine.submit(By::Agent, vec![init]).await.map_err(ServeError::Init)?;
    }
    Ok(engine)
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

async fn with_engine(
    config: &Config,
    data: &Path,
    engine: &Engine,
    supervisor: &Supervisor,
    set_trace_level: SetTraceLevel,
    ends: &mut Ends,
) -> Result<(), ServeError> {
    // A start that is not awaited to its end leaves what a killed one leaves: the next start takes it back.
    let Serving { agent, stop_sockets, fuse } = tokio::select! {
        up = start(config, data, engine, supervisor, set_trace_level) => up?,
        ended = ends.wait(engine, supervisor) => return ended,
    };
    let ended = tokio::select! {
        ended = ends.wait(engine, supervisor) => ended,
        () = fuse.ended() => Err(ServeError::Failed("somebody has unmounted the tree".to_owned())),
    };
    fuse.unmount().await;
    stop_sockets.cancel();
    // First those who start machines, then what the machines of nobody had.
    supervisor.stop().await;
    if let Err(refusal) = agent.stop().await {
        tracing::warn!(%refusal, "the log was not told that this node goes down");
    }
    ended
}

/// A node that is up.
struct Serving {
    agent: Agent,
    stop_sockets: CancellationToken,
    fuse: Fuse,
}

async fn start(
    config: &Config,
    data: &Path,
    engine: &Engine,
    supervisor: &Supervisor,
    set_trace_level: SetTraceLevel,
) -> Result<Serving, ServeError> {
    let (hypervisor, host): (Arc<dyn Hypervisor>, HostParts) = match config.hypervisor {
        config::Hypervisor::Qemu => (Arc::new(Qemu::new(QEMU)), HostParts::detect(&agent::device_tag(data)).await),
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
    let options = agent::Options {
        node: NODE,
        data: data.to_owned(),
        images: config.images.clone(),
        memory_bytes: config.limits.memory_bytes,
        cpus: config.limits.cpus,
        set_trace_level,
    };
    let agent = Agent::start(engine.clone(), hypervisor, host, supervisor.clone(), options).await?;
    let server = crate::fs::Server::new(engine.clone(), Arc::new(agent.clone()), NODE);
    let tree: Arc<dyn Tree> = Arc::new(server.clone());
    start_watch(supervisor, &server)?;
    let options = ninep::Options {
        guests_uids,
        insecure: config.insecure_listen.clone(),
        identity: crate::ca::node_identity(data),
        sessions: server.sessions().clone(),
    };
    let sockets = ninep::Server::bind(tree.clone(), &config.listen, options).await?;
    let stop_sockets = start_sockets(supervisor, sockets)?;
    let fuse = Fuse::mount(tree, tokio::runtime::Handle::current(), &config.mount)?;
    say_ready(config)?;
    Ok(Serving { agent, stop_sockets, fuse })
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

/// The 9P server as a task of the tree of supervision. It has its sockets already and can't be made twice, so its end is one of
/// the process.
fn start_sockets(supervisor: &Supervisor, server: ninep::Server) -> Result<CancellationToken, ServeError> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let server = Arc::new(std::sync::Mutex::new(Some(server)));
    let start = move |ending: CancellationToken| {
        let server = server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let told = told.clone();
        async move {
            let Some(server) = server else { return Err("the sockets are gone".to_owned()) };
            // Whichever comes first: our own end, or that of all tasks.
            let either = told.child_token();
            let guard = either.clone().drop_guard();
            tokio::select! {
                () = server.serve(either) => {}
                () = ending.cancelled() => {}
            }
            drop(guard);
            if told.is_cancelled() || ending.is_cancelled() {
                Ok(())
            } else {
                Err("the 9P server has ended".to_owned())
            }
        }
    };
    let policy = Policy { restarts: agent::supervisor::Restarts::Transient, most: 0, ..Policy::VITAL };
    supervisor.start("9p", policy, start).map_err(ServeError::Failed)?;
    Ok(stop)
}

/// One line on stdout, for whoever started us and waits.
fn say_ready(config: &Config) -> Result<(), ServeError> {
    let mut stdout = std::io::stdout();
    let line = format!("ready {}\n", config.mount.display());
    // Nobody listening is no fault: the line is lost, and the node serves.
    if let Err(error) = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!(%error, "nobody reads the standard output");
    }
    tracing::info!(mount = %config.mount.display(), data = %config.data.display(), "ready");
    Ok(())
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
            why = engine.failed() => Err(ServeError::Failed(why)),
            why = supervisor.escalated() => Err(ServeError::Failed(why)),
        }
    }
}
