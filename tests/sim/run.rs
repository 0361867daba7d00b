//! One seed: a cluster is formed, works while things go wrong, and then, when nothing does any more, has to come to rest.

use crate::clocks::Clocks;
use crate::faults::Faults;
use crate::node::{End, Node};
use crate::steward::{Steward, id_of};
use crate::world::World;
use blixard::engine::state::{
    Actual, By, Command, Conditions, ENTRY_FORMAT, NodeRole, NodeVerb, Reply, Schedule, VmSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the formation of a cluster may take, in milliseconds of its time.
const FORMED_WITHIN_MS: u64 = 120_000;
/// How long a cluster may take to come to rest, once nothing goes wrong any more: the longest pause before a retry is a minute, and what the host
/// refused is tried again after half a minute.
const SETTLED_WITHIN_MS: u64 = 240_000;
/// Objects whose histories are looked at.
const REGISTERS: usize = 3;

/// What panicked, anywhere in this process.
pub static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How much there was of it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    pub commands: u64,
    pub reads: u64,
    pub faults: u64,
    pub expiries: u64,
    pub entries: u64,
    pub launches: u64,
    /// Generations that were placed, each of which was looked at.
    pub placed: u64,
    /// VMs that drains have begun to move.
    pub moves: u64,
    /// Machines that fences have ended.
    pub fenced: u64,
    /// Nodes that joined later.
    pub joined: u64,
    /// Nodes that left, or were forgotten.
    pub gone: u64,
    /// Times that a worker was told of a snapshot, or turned to another member.
    pub turned: u64,
    pub simulated_ms: u64,
}

impl Counts {
    pub fn add(&mut self, more: Counts) {
        self.commands += more.commands;
        self.reads += more.reads;
        self.faults += more.faults;
        self.expiries += more.expiries;
        self.entries += more.entries;
        self.launches += more.launches;
        self.placed += more.placed;
        self.moves += more.moves;
        self.fenced += more.fenced;
        self.joined += more.joined;
        self.gone += more.gone;
        self.turned += more.turned;
        self.simulated_ms += more.simulated_ms;
    }
}

/// What came of a seed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub hash: String,
    pub counts: Counts,
    pub violations: Vec<String>,
}

/// Is the node of a host a part of the cluster?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    NotYet,
    In,
    Gone,
}

/// See the module.
pub struct Simulation {
    pub world: Arc<World>,
    pub nodes: Vec<Node>,
    pub clocks: Vec<Clocks>,
    pub standing: Vec<Standing>,
    /// Nodes to be killed in the midst of their next time, after so many steps, and for how long.
    midway: Vec<(usize, u64, u64)>,
}

type Failed = Box<dyn std::error::Error>;

impl Simulation {
    pub fn new(world: &Arc<World>, folder: &Path) -> Result<Simulation, Failed> {
        let tiny = folder.join("images/tiny");
        std::fs::create_dir_all(&tiny)?;
        std::fs::write(tiny.join("image.toml"), "kernel = \"kernel\"\ninitrd = \"initrd\"\n")?;
        std::fs::write(tiny.join("kernel"), "k")?;
        std::fs::write(tiny.join("initrd"), "i")?;
        let nodes: Result<_, _> = (0..world.nodes).map(|index| Node::new(world, index, folder)).collect();
        let clocks = (0..world.nodes).map(|_| Clocks::new(&mut world.random())).collect();
        let standing = vec![Standing::NotYet; world.nodes];
        Ok(Simulation { world: world.clone(), nodes: nodes?, clocks, standing, midway: Vec::new() })
    }

    /// All go on by so many milliseconds of the world's time.
    pub fn pass(&mut self, dt_ms: u64) -> Result<(), Failed> {
        let now = self.world.now() + dt_ms;
        self.world.set_now(now);
        let world = self.world.clone();
        world.raft().step(&world);
        world.machines().step(&world);
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        world.random().shuffle(&mut order);
        for index in order {
            let own_ms = self.clocks[index].pass(now, dt_ms, &world.hosts[index]);
            let midway = self.midway.iter().position(|(node, ..)| *node == index).map(|at| self.midway.remove(at));
            let node = &mut self.nodes[index];
            node.run(own_ms, midway.map(|(_, polls, _)| polls));
            node.observe();
            if let Some((_, _, away_ms)) = midway {
                self.kill(index, away_ms);
            }
            self.look_after(index)?;
        }
        Ok(())
    }

    /// Whoever has ended begins again, as the service's manager has it.
    fn look_after(&mut self, index: usize) -> Result<(), Failed> {
        let now = self.world.now();
        let node = &mut self.nodes[index];
        if let Some(end) = node.ended() {
            let (stale, why) = match &end {
                End::Stale(why) => (true, why),
                End::Again(why) => (false, why),
            };
            self.world.note(format_args!("node {} has ended, its store is stale: {stale}: {why}", index + 1));
            node.crash();
            if stale {
                self.world.raft().forget(index);
            }
            self.nodes[index].begins_at = Some(now + 1_000);
        }
        let node = &mut self.nodes[index];
        if node.begins_at.is_some_and(|at| at <= now) {
            node.begin()?;
        }
        Ok(())
    }

    pub fn kill(&mut self, index: usize, away_ms: u64) {
        if self.standing[index] != Standing::In {
            return;
        }
        let node = &mut self.nodes[index];
        node.crash();
        let again_at = self.world.now() + away_ms;
        node.begins_at = Some(node.begins_at.unwrap_or(0).max(again_at));
    }

    pub fn kill_midway(&mut self, index: usize, away_ms: u64) {
        let polls = self.world.random().below(60);
        self.midway.push((index, polls, away_ms));
    }

    pub fn power_fails(&mut self, index: usize, away_ms: u64) {
        self.kill(index, away_ms);
        self.nodes[index].forget_deadline();
        self.world.machines().power_fails(&self.world, index);
        self.world.hosts[index].reboots.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stop(&mut self, index: usize, lasts_ms: u64) {
        self.nodes[index].stopped_until = self.world.now() + lasts_ms;
        self.world.raft().members[index].stopped = self.nodes[index].is_up();
    }

    pub fn hang(&mut self, index: usize, lasts_ms: u64) {
        self.stop(index, lasts_ms);
        self.world.machines().hang(&self.world, index, lasts_ms);
    }

    pub fn lose_store(&mut self, index: usize, away_ms: u64) {
        // Whoever loses more of a cluster's stores than it can spare has lost the cluster.
        if !self.nodes[index].is_worker && self.world.raft().can_spare(index) {
            self.kill(index, away_ms);
            self.world.raft().forget(index);
        }
    }

    /// Those that are in the cluster.
    pub fn members(&self) -> Vec<usize> {
        (0..self.world.nodes).filter(|index| self.standing[*index] == Standing::In).collect()
    }

    /// A machine that has joined begins.
    pub fn admit(&mut self, index: usize, role: NodeRole) {
        self.standing[index] = Standing::In;
        self.nodes[index].is_worker = role == NodeRole::Worker;
        if role != NodeRole::Worker {
            self.world.raft().add(index, false);
        }
        self.nodes[index].begins_at = Some(self.world.now());
        self.world.joined.fetch_add(1, Ordering::Relaxed);
    }

    /// A node that is no member any more ends for good.
    pub fn retire(&mut self, index: usize) {
        self.kill(index, 0);
        self.standing[index] = Standing::Gone;
        self.nodes[index].begins_at = None;
        self.world.raft().remove(index);
        self.world.gone.fetch_add(1, Ordering::Relaxed);
    }

    /// Some node is asked for this, and nobody waits for its answer.
    pub fn ask_for(&self, by: By, commands: Vec<Command>) {
        self.ask_in_turn(vec![(by, commands)]);
    }

    /// One after the other.
    pub fn ask_in_turn(&self, entries: Vec<(By, Vec<Command>)>) {
        let up: Vec<&Node> = self.nodes.iter().filter(|node| node.engine().is_some()).collect();
        let Some(node) = self.world.random().pick(&up).copied() else { return };
        let Some(engine) = node.engine() else { return };
        node.spawn(async move {
            for (by, commands) in entries {
                if engine.submit(by, commands).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Runs until it is so.
    fn until(&mut self, what: &str, within_ms: u64, is_so: impl Fn(&Simulation) -> bool) -> Result<(), Failed> {
        let deadline = self.world.now() + within_ms;
        while !is_so(self) {
            if self.world.now() > deadline {
                return Err(format!("within {within_ms} ms: not {what}").into());
            }
            let dt_ms = self.world.random().between(2, 12);
            self.pass(dt_ms)?;
        }
        Ok(())
    }

    /// Commands are submitted by the first node, as often as it takes.
    fn submit(&mut self, by: &By, commands: Vec<Command>) -> Result<Vec<Reply>, Failed> {
        let there = |node: &&Node| node.engine().is_some();
        let node = self.nodes.iter().find(there).ok_or("no node has an engine")?;
        let engine = node.engine().ok_or("no node has an engine")?;
        let (done, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Ok(Vec::new()))));
        let (sets, tells, by) = (done.clone(), told.clone(), by.clone());
        node.spawn(async move {
            let answer = engine.submit(by, commands).await;
            *tells.lock().unwrap_or_else(PoisonError::into_inner) = answer;
            sets.store(true, Ordering::Relaxed);
        });
        self.until("answered", FORMED_WITHIN_MS, |_| done.load(Ordering::Relaxed))?;
        let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        told.map_err(|refusal| refusal.to_string().into())
    }

    /// One node after the other becomes a member and is up.
    pub fn form(&mut self) -> Result<(), Failed> {
        let root = By::User("root".to_owned());
        for index in 0..self.world.formed {
            let name = self.world.name_of(index);
            let role = if index < self.world.members { NodeRole::Voter } else { NodeRole::Worker };
            if index > 0 {
                let secret_sha256 = [index as u8; 32];
                let expires_ms = self.world.reference().state.now().millis() + 600_000;
                self.submit(&root, vec![Command::InviteNew { secret_sha256, role, expires_ms }])?;
                let address = format!("{name}!5640");
                let release = "simulated".to_owned();
                let join = Command::NodeJoin {
                    secret_sha256,
                    name: name.clone(),
                    address,
                    entry_format: ENTRY_FORMAT,
                    release,
                };
                self.submit(&By::Agent, vec![join])?;
            }
            self.standing[index] = Standing::In;
            self.nodes[index].is_worker = role == NodeRole::Worker;
            if role == NodeRole::Voter {
                self.world.raft().add(index, true);
            }
            self.nodes[index].begin()?;
            self.until("up", FORMED_WITHIN_MS, |all| {
                all.world.reference().state.node_named(&name).is_some_and(|node| node.up)
            })?;
        }
        self.until("an image", FORMED_WITHIN_MS, |all| all.world.reference().state.images().len() > 0)?;
        for _ in 0..REGISTERS {
            let spec = VmSpec { grace_ms: 3_600_000, ..VmSpec::default() };
            self.submit(&root, vec![Command::VmNew { name: None, spec, key: None }])?;
        }
        let reference = self.world.reference();
        for vm in reference.state.vms() {
            self.world.history().register(vm.id.0, vm.spec.grace_ms, vm.version);
        }
        Ok(())
    }

    /// Nothing is wrong any more, and nobody works.
    fn heal(&mut self) {
        self.world.busy.store(false, Ordering::Relaxed);
        for index in 0..self.world.nodes {
            self.world.raft().network.come_back(index);
        }
        self.world.raft().network.heal();
        self.world.machines().heal();
        let now = self.world.now();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.stopped_until = node.stopped_until.min(now);
            self.world.raft().members[index].lags_until = now;
            self.clocks[index].freeze(now);
            if !node.is_up()
                && self.standing[index] == Standing::In
                && node.begins_at.is_none_or(|at| at < now + 600_000)
            {
                node.begins_at = Some(now);
            }
        }
        self.world.note(format_args!("nothing goes wrong any more"));
    }

    /// What is not yet as it should be.
    fn unsettled(&self) -> Option<String> {
        let reference = self.world.reference();
        let state = &reference.state;
        for (index, node) in self.nodes.iter().enumerate() {
            if self.standing[index] != Standing::In {
                continue;
            }
            let Some(engine) = node.engine() else { return Some(format!("node {} is not up", index + 1)) };
            let shows = engine.state();
            if shows.seq() != state.seq() {
                return Some(format!("node {} shows {} of {}", index + 1, shows.seq(), state.seq()));
            }
            if !state.node(id_of(index)).is_some_and(|node| node.is_there()) {
                return Some(format!("node {} is not taken for there", index + 1));
            }
        }
        if let Some(vm) = state.vms().find(|vm| !vm.settled() && vm.actual != Actual::Waiting) {
            return Some(format!("vm {} is {} and is to be {}: {:?}", vm.id, vm.actual, vm.desired, vm.error));
        }
        for vm in state.vms().filter(|vm| vm.actual == Actual::Waiting) {
            if let Some(node) = reference.placements.would_do(state, vm) {
                return Some(format!("vm {} waits, and node {} would do: {:?}", vm.id, node.id, vm.why));
            }
        }
        let should = |actual: Actual| matches!(actual, Actual::Running | Actual::Paused);
        let wanted: BTreeSet<_> = state
            .vms()
            .filter(|vm| should(vm.actual))
            .map(|vm| (vm.node.map_or(usize::MAX, |node| node.0 as usize - 1), vm.id.0, vm.generation))
            .collect();
        let machines = self.world.machines();
        let running: BTreeSet<_> = machines.running().into_iter().collect();
        if wanted != running {
            return Some(format!("there should run {wanted:?}, and there run {running:?} (node, vm, generation)"));
        }
        (machines.lingering() > 0).then(|| "processes linger whose guests went off".to_owned())
    }

    /// All nodes are to take VMs again.
    fn open_nodes(&mut self) -> Result<(), Failed> {
        let closed = |node: &&blixard::engine::state::Node| node.schedule != Schedule::Open;
        let closed: Vec<_> = self.world.reference().state.nodes().filter(closed).map(|node| node.id).collect();
        for node in closed {
            let undrain = Command::Node { node, verb: NodeVerb::Undrain, conditions: Conditions::default() };
            self.submit(&By::User("root".to_owned()), vec![undrain])?;
        }
        Ok(())
    }

    fn settle(&mut self, steward: &mut Steward) -> Result<(), Failed> {
        let deadline = self.world.now() + SETTLED_WITHIN_MS;
        let (mut settled, mut opened) = (0, false);
        loop {
            steward.step(self);
            if !opened && self.members().iter().all(|index| self.nodes[*index].engine().is_some()) {
                opened = self.open_nodes().is_ok();
            }
            // Nodes renew their leases, so the log goes on: it is settled for moments, again and again.
            let unsettled =
                self.unsettled().or_else(|| (!steward.is_done()).then(|| "somebody joins or leaves".to_owned()));
            settled = if unsettled.is_none() { settled + 1 } else { settled };
            if settled > 20 {
                return Ok(());
            }
            if let Some(why) = unsettled.filter(|_| self.world.now() > deadline) {
                self.world.violation(format!("not settled {SETTLED_WITHIN_MS} ms after the last fault: {why}"));
                return Ok(());
            }
            self.pass(25)?;
        }
    }

    fn check_ends(&self) {
        let reference = self.world.reference();
        let wrong = self.world.history().check(&reference.effects);
        let hash = reference.state.hash();
        drop(reference);
        wrong.into_iter().for_each(|what| self.world.violation(what));
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(engine) = node.engine() else { continue };
            let state = engine.state();
            if state.seq() == self.world.reference().seq() && state.hash() != hash {
                self.world.violation(format!("node {} ends with another state than the log leads to", index + 1));
            }
        }
    }
}

/// Runs a seed to its end, in this process: it is deterministic only if nothing else was done in it before.
pub fn run(seed: u64, folder: &Path, printed: bool) -> Report {
    let nodes = [3, 3, 3, 5, 5, 7][(seed % 6) as usize];
    let world = World::new(seed, nodes, printed);
    // What panics outside the nodes has been noted by the hook.
    if let Ok(Err(failed)) = std::panic::catch_unwind(AssertUnwindSafe(|| work(&world, folder))) {
        world.violation(failed.to_string());
    }
    for panic in PANICS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        world.violation(panic);
    }
    let (history, reference, machines) = (world.history(), world.reference(), world.machines());
    Report {
        hash: world.trace_hash(),
        counts: Counts {
            commands: history.answered,
            reads: history.reads,
            faults: world.faults.load(Ordering::Relaxed),
            expiries: reference.expiries,
            entries: reference.seq(),
            launches: machines.launches,
            placed: reference.placements.begun,
            moves: reference.placements.moves,
            fenced: machines.fenced,
            joined: world.joined.load(Ordering::Relaxed),
            gone: world.gone.load(Ordering::Relaxed),
            turned: world.turned.load(Ordering::Relaxed),
            simulated_ms: world.now(),
        },
        violations: world.violations(),
    }
}

fn work(world: &Arc<World>, folder: &Path) -> Result<(), Failed> {
    let mut simulation = Simulation::new(world, folder)?;
    simulation.form()?;
    let lasts_ms = world.random().between(40_000, 70_000);
    let ends = world.now() + lasts_ms;
    let mut faults = Faults::new(&simulation, world.now(), lasts_ms);
    let mut steward = Steward::new(world, world.now(), lasts_ms);
    world.busy.store(true, Ordering::Relaxed);
    while world.now() < ends {
        faults.step(&mut simulation);
        steward.step(&mut simulation);
        let dt_ms = world.random().between(1, 10);
        simulation.pass(dt_ms)?;
        // What is broken stays broken: the first thing that is wrong says most.
        if !world.violations().is_empty() {
            return Ok(());
        }
    }
    simulation.heal();
    steward.finish(world);
    simulation.settle(&mut steward)?;
    simulation.check_ends();
    Ok(())
}
