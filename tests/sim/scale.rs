//! A large cluster, on a good day and on one bad one: how long it takes until everything runs, and what it costs.

use crate::reporters::Reporters;
use crate::run::Simulation;
use crate::world::{Plan, World};
use blixard::engine::Engine;
use blixard::engine::state::{
    Actual, By, Command, Conditions, ENTRY_FORMAT, Ha, NodeId, NodeRole, NodeVerb, Reply, Schedule, State, VmId,
    VmSpec, VmVerb,
};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Memory of each VM, in bytes.
const VM_BYTES: u64 = 64 << 20;
/// Commands in one entry of whoever makes the VMs.
const BATCH: usize = 250;
/// Entries of theirs on the way at once.
const AT_ONCE: usize = 8;
/// What a part may take, in milliseconds of the cluster's time.
const WITHIN_MS: u64 = 4 * 3_600_000;
/// How often it is looked whether everything runs.
const LOOK_EVERY_MS: u64 = 200;
/// Where the VMs' addresses are from: the usual pool is too small.
const POOL: (&str, &str) = ("large", "10.64.0.0/10");

type Failed = Box<dyn std::error::Error>;

/// `voters=5,workers=200,vms=100000`
#[derive(Debug, Clone, Copy)]
pub struct Size {
    voters: usize,
    workers: usize,
    vms: usize,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("'{text}' is no size: it is like voters=5,workers=200,vms=100000");
        let mut of = BTreeMap::new();
        for pair in text.split(',') {
            let (key, number) = pair.split_once('=').ok_or_else(wrong)?;
            of.insert(key, number.parse::<usize>().map_err(|_| wrong())?);
        }
        let mut take = |key| of.remove(key).filter(|number| *number > 0).ok_or_else(wrong);
        let size = Size { voters: take("voters")?, workers: take("workers")?, vms: take("vms")? };
        if of.is_empty() && size.voters <= 7 { Ok(size) } else { Err(wrong()) }
    }
}

struct Large {
    simulation: Simulation,
    workers: Reporters,
    began: Instant,
}

/// A line of /proc/self/status, in MiB.
fn memory_mib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1_024
}

/// Runs it, and prints what came of each part. False: something was wrong.
pub fn run(size: Size, folder: &Path) -> Result<bool, Failed> {
    let per_node = (size.vms / (size.voters + size.workers) + 1) as u64;
    let plan = Plan { memory_bytes: (2 * per_node + 8) * VM_BYTES, is_large: true };
    let world = World::with(1, [size.voters, 0, 0], false, plan);
    let mut simulation = Simulation::new(&world, folder)?;
    simulation.form()?;
    let mut large = Large { simulation, workers: Reporters::default(), began: Instant::now() };
    println!("{:<34} {:>9} {:>9} {:>9} {:>9}", "", "simulated", "entries", "wall", "RSS");
    large.part("workers have joined", |large| large.join(size.workers))?;
    let before = memory_mib("VmRSS");
    large.part("all VMs run", |large| large.create(size.vms))?;
    let replicas = size.voters + 1;
    let grown = memory_mib("VmRSS").saturating_sub(before) * 1_048_576;
    println!("memory a VM: {} bytes in each of {replicas} copies, logs included", grown as usize / size.vms / replicas);
    let lost = size.workers.div_ceil(10);
    large.part(&format!("{lost} workers and a voter died"), |large| large.lose(lost))?;
    large.part("a worker was drained", Large::drain)?;
    println!("peak RSS {} MiB", memory_mib("VmHWM"));
    large.check_ends();
    let violations = world.violations();
    violations.iter().for_each(|violation| println!("violation {violation}"));
    Ok(violations.is_empty())
}

impl Large {
    fn world(&self) -> &Arc<World> {
        &self.simulation.world
    }

    fn pass(&mut self) -> Result<(), Failed> {
        let dt_ms = self.world().random().between(5, 20);
        self.simulation.pass(dt_ms)?;
        let world = self.world().clone();
        self.workers.step(&world, &self.simulation.nodes);
        match world.violations().first() {
            Some(violation) => Err(violation.clone().into()),
            None => Ok(()),
        }
    }

    fn part(&mut self, what: &str, act: impl FnOnce(&mut Large) -> Result<(), Failed>) -> Result<(), Failed> {
        let seq = |large: &Large| large.world().reference().state.seq();
        let (now, before, began) = (self.world().now(), seq(self), self.began.elapsed());
        act(self)?;
        let (simulated, wall) =
            ((self.world().now() - now) as f64 / 1_000.0, (self.began.elapsed() - began).as_secs_f64());
        let (entries, rss) = (seq(self) - before, memory_mib("VmRSS"));
        println!("{what:<34} {simulated:>7.1} s {entries:>9} {wall:>7.1} s {rss:>5} MiB");
        Ok(())
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Large, &State) -> bool) -> Result<(), Failed> {
        let deadline = self.world().now() + WITHIN_MS;
        let mut look_at = 0;
        loop {
            if self.world().now() >= look_at {
                look_at = self.world().now() + LOOK_EVERY_MS;
                let state = self.world().reference().state.clone();
                if is_so(self, &state) {
                    return Ok(());
                }
            }
            if self.world().now() > deadline {
                return Err(format!("within {WITHIN_MS} ms: not {what}").into());
            }
            self.pass()?;
        }
    }

    /// Transactions are submitted by the first node, some at once; what each has given.
    fn submit(&mut self, entries: Vec<(By, Vec<Command>)>) -> Result<Vec<Vec<Reply>>, Failed> {
        type Told = Arc<Mutex<Option<Result<Vec<Reply>, String>>>>;
        let (mut rest, mut done) = (VecDeque::from(entries), Vec::new());
        let mut on_the_way: VecDeque<Told> = VecDeque::new();
        while !(rest.is_empty() && on_the_way.is_empty()) {
            while on_the_way.len() < AT_ONCE
                && let Some((by, commands)) = rest.pop_front()
            {
                let engine = self.engine()?;
                let told = Told::default();
                on_the_way.push_back(told.clone());
                self.simulation.nodes[0].spawn(async move {
                    let answer = engine.submit(by, commands).await.map_err(|refusal| refusal.to_string());
                    told.lock().unwrap_or_else(PoisonError::into_inner).replace(answer);
                });
            }
            self.pass()?;
            while let Some(told) = on_the_way.front() {
                let Some(answer) = told.lock().unwrap_or_else(PoisonError::into_inner).take() else { break };
                done.push(answer?);
                on_the_way.pop_front();
            }
        }
        Ok(done)
    }

    fn engine(&self) -> Result<Engine, Failed> {
        self.simulation.nodes[0].engine().ok_or_else(|| "the first node has no engine".into())
    }

    fn join(&mut self, workers: usize) -> Result<(), Failed> {
        let voters = self.simulation.nodes.len();
        for nth in 0..workers {
            let mut secret_sha256 = [0xff; 32];
            secret_sha256[..8].copy_from_slice(&(nth as u64).to_le_bytes());
            let expires_ms = self.world().reference().state.now().millis() + 600_000;
            let invite = Command::InviteNew { secret_sha256, role: NodeRole::Worker, expires_ms };
            let name = format!("w{}", nth + 1);
            let join = Command::NodeJoin {
                secret_sha256,
                address: format!("{name}!5640"),
                name,
                entry_format: ENTRY_FORMAT,
                release: "simulated".to_owned(),
            };
            self.submit(vec![(root(), vec![invite])])?;
            let joined = self.submit(vec![(By::Agent, vec![join])])?;
            let Some([Reply::Created(id)]) = joined.first().map(Vec::as_slice) else {
                return Err(format!("a worker has joined, and it says {joined:?}").into());
            };
            let image = self.world().reference().state.image_named("tiny").cloned().ok_or("there is no image")?;
            let (world, memory_bytes) = (self.world().clone(), self.world().plan.memory_bytes);
            self.workers.begin(&world, NodeId(*id), nth % voters, memory_bytes, &image);
        }
        let all = voters + workers;
        self.until("all nodes there", |_, state| {
            let images = state.image_named("tiny").map_or(0, |image| image.nodes.len());
            images == all && state.nodes().filter(|node| node.is_there() && node.lease.counter > 0).count() == all
        })
    }

    fn create(&mut self, vms: usize) -> Result<(), Failed> {
        let (called, network) = POOL;
        let (name, network) = (called.to_owned(), network.parse()?);
        self.submit(vec![(root(), vec![Command::PoolNew { name, network, gateway: None, reserved: Vec::new() }])])?;
        let spec =
            VmSpec { memory_bytes: VM_BYTES, ha: Ha::Restart, pool: Some(called.to_owned()), ..VmSpec::default() };
        let new = Command::VmNew { name: None, spec, key: None };
        let batches =
            (0..vms).step_by(BATCH).map(|first| (root(), vec![new.clone(); BATCH.min(vms - first)])).collect();
        let made = self.submit(batches)?;
        let start = |reply: &Reply| match reply {
            Reply::Created(id) => {
                Ok(Command::Vm { vm: VmId(*id), verb: VmVerb::Start, conditions: Conditions::default() })
            }
            other => Err(format!("a VM was made, and it says {other:?}")),
        };
        let starts: Result<Vec<_>, String> =
            made.iter().map(|batch| Ok((root(), batch.iter().map(start).collect::<Result<_, String>>()?))).collect();
        self.submit(starts?)?;
        self.until_running()
    }

    /// Everything that was started runs, on nodes that are there, and its processes are there.
    fn until_running(&mut self) -> Result<(), Failed> {
        self.until("all running", |large, state| {
            let is_there = |id: Option<NodeId>| id.and_then(|id| state.node(id)).is_some_and(|node| node.is_there());
            let mut started = state.vms().filter(|vm| vm.generation > 0);
            started.all(|vm| vm.actual == Actual::Running && is_there(vm.node)) && large.processes_are_as(state)
        })
    }

    /// Exactly those processes are there that should be.
    fn processes_are_as(&self, state: &State) -> bool {
        let voters = self.simulation.nodes.len() as u64;
        let running = self.world().machines().running();
        let of_voters = running.into_iter().map(|(host, vm, _)| (VmId(vm), NodeId(host as u64 + 1)));
        let there: BTreeMap<VmId, NodeId> =
            self.workers.processes().iter().map(|(vm, node)| (*vm, *node)).chain(of_voters).collect();
        let should = state.vms().filter(|vm| vm.active()).map(|vm| (vm.id, vm.node.unwrap_or(NodeId(0))));
        voters > 0 && there == should.collect()
    }

    /// Hosts die for good, all at once; a voter that leads nothing is among them.
    fn lose(&mut self, lost: usize) -> Result<(), Failed> {
        let ids = self.workers.ids();
        ids.iter().take(lost).for_each(|id| self.workers.die(*id));
        if self.simulation.nodes.len() > 2 {
            let last = self.simulation.nodes.len() - 1;
            self.simulation.power_fails(last, WITHIN_MS);
        }
        self.until("all known to be lost", |_, state| {
            ids.iter().take(lost).all(|id| state.node(*id).is_some_and(|n| !n.is_there()))
        })?;
        self.until_running()
    }

    fn drain(&mut self) -> Result<(), Failed> {
        let id = self.workers.ids().first().copied().ok_or("there is no worker")?;
        println!("    on it are {} VMs", self.world().reference().state.count_on(id));
        let drain = Command::Node { node: id, verb: NodeVerb::Drain, conditions: Conditions::default() };
        self.submit(vec![(root(), vec![drain])])?;
        self.until("drained", |_, state| state.node(id).is_some_and(|node| node.schedule == Schedule::Drained))?;
        self.until_running()
    }

    /// All voters that are up have come to the same.
    fn check_ends(&mut self) {
        let engines: Vec<Engine> = self.simulation.nodes.iter().filter_map(|node| node.engine()).collect();
        let hash = self.world().reference().state.hash();
        let seq = self.world().reference().state.seq();
        for engine in engines {
            let state = engine.state();
            if state.seq() == seq && state.hash() != hash {
                self.world().violation("a voter ends with another state than the log leads to".to_owned());
            }
        }
    }
}

fn root() -> By {
    By::User("root".to_owned())
}
