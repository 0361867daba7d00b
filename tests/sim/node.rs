//! One node: a runtime of one thread with a clock of its own, in which the real engine, agent and tree live. Its end at any moment is the
//! end of the runtime: whatever waits in it is dropped where it stands.

use crate::clients::Worker;
use crate::hypervisor::HostMachines;
use crate::simlog::SimLog;
use crate::tree::Client;
use crate::upstream::Line;
use crate::world::World;
use blixard::clock::{DRIFT_MAX_MS, HybridClock};
use blixard::engine::agent::{Agent, Options, Supervisor, lease};
use blixard::engine::host::{BootClock, HostParts};
use blixard::engine::log::{FollowedLog, Log, committed};
use blixard::engine::state::{By, Command, ENTRY_FORMAT, NodeId};
use blixard::engine::{self, Engine, Failure};
use blixard::fs::Server;
use blixard::text::Refusal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// Why a life of a node ended by itself.
#[derive(Debug)]
pub enum End {
    /// The next one needs a fresh store.
    Stale(String),
    /// The next one may go on.
    Again(String),
}

/// What the world may know of a running node.
#[derive(Default)]
pub struct Slot {
    engine: Mutex<Option<Engine>>,
    end: Mutex<Option<End>>,
}

impl Slot {
    pub fn engine(&self) -> MutexGuard<'_, Option<Engine>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A runtime and where its clock is.
struct Life {
    runtime: Runtime,
    begun: Instant,
    /// What its clock shows, in milliseconds since it began.
    at_ms: u64,
    slot: Arc<Slot>,
    /// The newest entry that was seen of it.
    seen: u64,
    /// Its events were seen up to this entry, if any were.
    told: Option<u64>,
}

/// See the module.
pub struct Node {
    world: Arc<World>,
    index: usize,
    folder: PathBuf,
    lives: u64,
    life: Option<Life>,
    /// It is not let run until then.
    pub stopped_until: u64,
    /// It is no part of Raft.
    pub is_worker: bool,
    /// When the next life begins, if none runs.
    pub begins_at: Option<u64>,
    /// Time that it was not let run, in milliseconds of its own clock.
    missed_ms: u64,
}

impl Node {
    pub fn new(world: &Arc<World>, index: usize, folder: &Path) -> std::io::Result<Node> {
        let folder = folder.join(format!("node{}", index + 1));
        std::fs::create_dir_all(&folder)?;
        let world = world.clone();
        Ok(Node {
            world,
            index,
            folder,
            is_worker: false,
            lives: 0,
            life: None,
            stopped_until: 0,
            begins_at: None,
            missed_ms: 0,
        })
    }

    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Its engine, once it is open.
    pub fn engine(&self) -> Option<Engine> {
        self.life.as_ref().and_then(|life| life.slot.engine().clone())
    }

    /// Runs something in it that is not a part of it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(life) = &self.life {
            life.runtime.spawn(task);
        }
    }

    /// A process begins, if its store can be had.
    pub fn begin(&mut self) -> std::io::Result<()> {
        if !self.is_worker && !self.world.raft().is_provided(self.index) {
            self.begins_at = Some(self.world.now() + 500);
            return Ok(());
        }
        self.lives += 1;
        let (room, interval) = {
            let mut random = self.world.random();
            (if random.percent(30) { random.between(1, 8) as usize } else { 1_024 }, random.between(1, 61) as u32)
        };
        let (publisher, committed) = committed::channel(room);
        let line = Arc::new(Line::new(&self.world, self.index));
        let (log, tells, heard) = FollowedLog::open(line.clone());
        let follows = self.is_worker.then_some((line, tells));
        let mark_at_open = self.world.raft().begin(self.index, self.lives, publisher);
        let (log, committed): (Arc<dyn Log>, _) = if self.is_worker {
            (Arc::new(log), heard)
        } else {
            let (world, node, life) = (self.world.clone(), self.index, self.lives);
            (Arc::new(SimLog { world, node, life, mark_at_open }), committed)
        };
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).event_interval(interval).build()?;
        let slot = Arc::new(Slot::default());
        let living = live(
            self.world.clone(),
            self.index,
            self.lives,
            self.folder.clone(),
            (log, committed, follows),
            slot.clone(),
        );
        let begun = runtime.block_on(async {
            let ended = slot.clone();
            tokio::spawn(async move {
                let end = living.await;
                ended.end().replace(end);
            });
            Instant::now()
        });
        self.world.note(format_args!("node {} begins life {}", self.index + 1, self.lives));
        (self.missed_ms, self.begins_at) = (0, None);
        self.life = Some(Life { runtime, begun, at_ms: 0, slot, seen: 0, told: None });
        Ok(())
    }

    /// The process is gone, from one moment to the next.
    pub fn crash(&mut self) {
        self.world.raft().end(self.index);
        self.life = None;
        self.stopped_until = 0;
    }

    /// The host has begun anew: what was kept in its memory is gone.
    pub fn forget_deadline(&self) {
        // There may have been none.
        let _ = std::fs::remove_file(self.folder.join("deadline"));
    }

    /// Lets it run on for so many milliseconds of its own clock. `polls`: then stops it in the midst of whatever it does after so many steps.
    pub fn run(&mut self, own_ms: u64, polls: Option<u64>) {
        let Some(life) = &mut self.life else { return };
        if self.world.now() < self.stopped_until {
            self.missed_ms += own_ms;
            return;
        }
        self.world.raft().members[self.index].stopped = false;
        let missed = std::mem::take(&mut self.missed_ms);
        life.at_ms += missed + own_ms;
        let until = life.begun + Duration::from_millis(life.at_ms);
        life.runtime.block_on(async {
            if missed > 0 {
                tokio::time::advance(Duration::from_millis(missed)).await;
            }
            for _ in 0..polls.unwrap_or(0) {
                tokio::task::yield_now().await;
            }
            if polls.is_none() {
                tokio::time::sleep_until(until).await;
            }
        });
    }

    /// How its life ended, if it did.
    pub fn ended(&mut self) -> Option<End> {
        self.life.as_ref().and_then(|life| life.slot.end().take())
    }

    /// Looks at what it shows now.
    pub fn observe(&mut self) {
        let Some(life) = &mut self.life else { return };
        let Some(engine) = life.slot.engine().clone() else { return };
        let state = engine.state();
        if state.seq() == life.seen {
            return;
        }
        if state.seq() < life.seen {
            self.world.violation(format!("node {} goes back from {} to {}", self.index + 1, life.seen, state.seq()));
        }
        life.seen = state.seq();
        if self.world.plan.is_large {
            return;
        }
        life.told = self.world.reference().compare_events(&self.world, self.index, &engine, life.told);
        let digest = engine.digest_of(state.seq()).unwrap_or_default();
        let short = digest.get(..8).unwrap_or_default();
        self.world.note(format_args!("node {} shows {} {short}", self.index + 1, state.seq()));
        self.world.reference().compare(&self.world, self.index, &state);
    }
}

/// A node's log, what it hears of it, and a worker's line to the members.
type Way = (Arc<dyn Log>, committed::Committed, Option<(Arc<Line>, committed::Publisher)>);

/// What `blixard serve` does, without sockets, FUSE and a disk.
async fn live(
    world: Arc<World>,
    index: usize,
    life: u64,
    folder: PathBuf,
    (log, committed, follows): Way,
    slot: Arc<Slot>,
) -> End {
    let node = NodeId(index as u64 + 1);
    let host = world.clone();
    let wall = move || Ok(host.hosts[index].wall_ms.load(Ordering::Relaxed));
    let clock = Arc::new(HybridClock::new(wall, DRIFT_MAX_MS));
    let options = match world.plan.is_large {
        true => engine::Options::default(),
        false => {
            let snapshot_every_records = world.random().between(30, 300);
            engine::Options { snapshot_every_records, ..engine::Options::default() }
        }
    };
    let engine = match Engine::open_with(log, committed, clock, node, life, options).await {
        Ok(engine) => engine,
        Err(error) => return failed_to_open(&world, index, &error.to_string()),
    };
    slot.engine().replace(engine.clone());
    if let Some((line, tells)) = follows {
        tokio::spawn(line.follow(engine.state().seq(), tells));
    }
    let supervisor = Supervisor::new();
    let served = tokio::select! {
        served = serve(&world, index, &folder, &engine, &supervisor) => served,
        why = engine.failed() => return end_of(&world, index, &why),
    };
    let (agent, server) = match served {
        Ok(served) => served,
        // It takes a quorum to come up.
        Err(why) => return End::Again(why),
    };
    let workers = world.random().between(1, 3) + u64::from(world.nodes < 5);
    for _ in 0..if world.plan.is_large { 0 } else { workers } {
        let tree = Client::new(server.clone());
        let worker = Worker { world: world.clone(), node: index, tree, seen: BTreeMap::new() };
        tokio::spawn(worker.work());
    }
    let why = tokio::select! {
        why = engine.failed() => why,
        why = supervisor.escalated() => Failure::Other(why),
    };
    drop(agent);
    end_of(&world, index, &why)
}

fn failed_to_open(world: &World, index: usize, why: &str) -> End {
    world.note(format_args!("node {} can't open its engine: {why}", index + 1));
    // A start that finds that its store has ended says so as of a damaged one, and is right.
    if world.raft().health(index).dead.is_some() {
        return End::Stale(why.to_owned());
    }
    if why.contains("damaged") {
        world.violation(format!("node {} takes its log for damaged: {why}", index + 1));
    }
    End::Again(why.to_owned())
}

fn end_of(world: &World, index: usize, why: &Failure) -> End {
    // The log loses and changes nothing, so whoever finds that it did, or can't go on with it, is wrong.
    match why {
        other if world.raft().health(index).dead.is_some() => End::Stale(other.to_string()),
        Failure::LogEnded(why) => End::Again(why.clone()),
        Failure::Diverged(why) => {
            world.violation(format!("node {} takes its store for a wrong one: {why}", index + 1));
            End::Stale(why.clone())
        }
        Failure::Other(why) => {
            world.violation(format!("node {} can't go on: {why}", index + 1));
            End::Again(why.clone())
        }
    }
}

/// Everything over the engine.
async fn serve(
    world: &Arc<World>,
    index: usize,
    folder: &Path,
    engine: &Engine,
    supervisor: &Supervisor,
) -> Result<(Agent, Server), String> {
    let node = NodeId(index as u64 + 1);
    let name = world.name_of(index);
    if engine.state().cluster().is_none() {
        let init = Command::Init { cluster: "sim".into(), node: name.clone(), admin: "root".into(), admin_uid: 0 };
        engine.submit(By::Agent, vec![init]).await.map_err(|refusal| refusal.to_string())?;
    }
    let reach = Command::NodeReach {
        address: format!("{name}!5640"),
        entry_format: ENTRY_FORMAT,
        release: "simulated".to_owned(),
    };
    engine.submit(By::Agent, vec![reach]).await.map_err(|refusal| refusal.to_string())?;
    let machines = HostMachines { world: world.clone(), host: index };
    let options = Options {
        node,
        data: folder.to_owned(),
        images: folder.parent().map(|above| above.join("images")).unwrap_or_default(),
        memory_bytes: None,
        cpus: Some(8).filter(|_| !world.plan.is_large),
        lease: lease::Options { length_ms: 10_000, drift_percent: 1, grace_ms: 2_000 },
        set_trace_level: Arc::new(|_| Ok(())),
        invite: Arc::new(|| Err(Refusal::fault("nobody joins here"))),
    };
    let clock = Arc::new(SimClock { world: world.clone(), host: index });
    let host = HostParts { clock, ..HostParts::none(Arc::new(machines.clone())) };
    let agent = Agent::start(engine.clone(), Arc::new(machines), host, supervisor.clone(), options)
        .await
        .map_err(|error| error.to_string())?;
    let server = Server::new(engine.clone(), Arc::new(agent.clone()), node, PathBuf::from("/nowhere"));
    Ok((agent, server))
}

/// The boot-time clock of a host.
struct SimClock {
    world: Arc<World>,
    host: usize,
}

impl BootClock for SimClock {
    fn now_ns(&self) -> u64 {
        self.world.hosts[self.host].boot_us.load(Ordering::Relaxed) * 1_000
    }
}
