//! Whoever runs the cluster: machines join it and leave it, and some die for good and are forgotten. And Raft's members follow what the
//! state wants of them, one at a time, as the node that leads sees to.

use crate::run::{Simulation, Standing};
use crate::world::World;
use blixard::engine::state::{By, Command, Conditions, ENTRY_FORMAT, NodeId, NodeRole, NodeVerb};
use std::collections::BTreeMap;

/// The pause before what was not done is asked for again.
const AGAIN_AFTER_MS: u64 = 3_000;
/// The longest time after which a node that was removed hears of it.
const HEARS_WITHIN_MS: u64 = 3_000;

/// See the module.
#[derive(Default)]
pub struct Steward {
    /// When which machine joins, and as what.
    joins: Vec<(u64, usize, NodeRole)>,
    leaves_at: Option<u64>,
    dies_at: Option<u64>,
    /// Died for good, and is to be forgotten.
    dead: Option<usize>,
    asked_at: u64,
    gone_at: BTreeMap<usize, u64>,
    members_at: u64,
}

pub fn id_of(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

fn root() -> By {
    By::User("root".to_owned())
}

fn verb(node: usize, verb: NodeVerb) -> Command {
    Command::Node { node: id_of(node), verb, conditions: Conditions::default() }
}

impl Steward {
    pub fn new(world: &World, begins: u64, lasts: u64) -> Steward {
        let mut random = world.random();
        let mut at = begins;
        let mut joins = Vec::new();
        for index in world.formed..world.nodes {
            at += random.between(3_000, lasts / 2);
            let roles = [NodeRole::Voter, NodeRole::Learner, NodeRole::Worker];
            joins.push((at, index, random.pick(&roles).copied().unwrap_or_default()));
        }
        let some_time = |random: &mut crate::random::Random| begins + random.between(5_000, lasts);
        let leaves_at = random.percent(40).then(|| some_time(&mut random));
        let dies_at = random.percent(40).then(|| some_time(&mut random));
        Steward { joins, leaves_at, dies_at, ..Steward::default() }
    }

    /// Nobody joins or leaves any more; what is dead is still to be forgotten.
    pub fn finish(&mut self, world: &World) {
        let known = |index: usize| world.reference().state.node(id_of(index)).is_some();
        self.joins.retain(|(_, index, _)| known(*index));
        (self.leaves_at, self.dies_at) = (None, None);
    }

    /// Is everything done?
    pub fn is_done(&self) -> bool {
        self.joins.is_empty() && self.dead.is_none() && self.gone_at.is_empty()
    }

    pub fn step(&mut self, simulation: &mut Simulation) {
        let now = simulation.world.now();
        self.look_for_gone(simulation);
        if now >= self.members_at {
            self.members_at = now + 500;
            let world = simulation.world.clone();
            world.raft().follow_state(&world);
        }
        if self.leaves_at.is_some_and(|at| at <= now) {
            self.leaves_at = None;
            self.leave(simulation);
        }
        if self.dies_at.is_some_and(|at| at <= now) {
            self.dies_at = None;
            self.die(simulation);
        }
        if now < self.asked_at + AGAIN_AFTER_MS {
            return;
        }
        self.asked_at = now;
        if let Some(dead) = self.dead {
            simulation.ask_for(root(), vec![verb(dead, NodeVerb::Forget)]);
        }
        self.join(simulation);
    }

    /// Those that are no members any more end when they hear of it.
    fn look_for_gone(&mut self, simulation: &mut Simulation) {
        let world = simulation.world.clone();
        let now = world.now();
        for index in 0..world.nodes {
            if simulation.standing[index] != Standing::In || world.reference().state.node(id_of(index)).is_some() {
                continue;
            }
            let at = *self.gone_at.entry(index).or_insert_with(|| now + world.random().below(HEARS_WITHIN_MS));
            // Raft lets go of it when the others are a majority.
            if now < at || !world.raft().can_go(index) {
                continue;
            }
            self.gone_at.remove(&index);
            self.dead = self.dead.filter(|dead| *dead != index);
            world.note(format_args!("node {} is no member any more", index + 1));
            let stands_still = world.machines().stands_still(index);
            let left = world.machines().running().into_iter().find(|(host, ..)| *host == index && !stands_still);
            if let Some((_, vm, generation)) = left {
                world
                    .violation(format!("generation {generation} of vm {vm} runs on node {}, which is gone", index + 1));
            }
            simulation.retire(index);
        }
    }

    fn leave(&mut self, simulation: &mut Simulation) {
        let world = simulation.world.clone();
        let here: Vec<usize> = simulation.members();
        if here.len() < 3 {
            return;
        }
        let Some(leaves) = world.random().pick(&here).copied() else { return };
        world.fault(format_args!("node {} is to leave", leaves + 1));
        simulation.ask_for(root(), vec![verb(leaves, NodeVerb::Leave)]);
    }

    /// A host dies for good: of voters one that the others can do without, whoever else is away.
    fn die(&mut self, simulation: &mut Simulation) {
        let world = simulation.world.clone();
        let here: Vec<usize> = simulation.members();
        let Some(dies) = world.random().pick(&here).copied() else { return };
        let is_needed = {
            let raft = world.raft();
            raft.members[dies].votes && (raft.voters() < 4 || !raft.can_spare(dies))
        };
        if here.len() < 3 || is_needed {
            return;
        }
        world.fault(format_args!("the host of node {} dies for good", dies + 1));
        simulation.power_fails(dies, u64::MAX / 4);
        world.raft().members[dies].doomed = true;
        self.dead = Some(dies);
    }

    fn join(&mut self, simulation: &mut Simulation) {
        let world = simulation.world.clone();
        let Some((at, index, role)) = self.joins.first().copied() else { return };
        if world.reference().state.node(id_of(index)).is_some() {
            self.joins.remove(0);
            simulation.admit(index, role);
            return;
        }
        if world.now() < at {
            return;
        }
        let name = {
            // The machine that has left comes back with a fresh disk, or another one takes its place.
            let gone: Vec<usize> = (0..index).filter(|other| simulation.standing[*other] == Standing::Gone).collect();
            let names: Vec<String> = gone.into_iter().map(|other| world.name_of(other)).collect();
            let free = names.into_iter().find(|name| world.reference().state.node_named(name).is_none());
            free.unwrap_or_else(|| format!("n{}", index + 1))
        };
        world.set_name(index, &name);
        let secret_sha256 = [index as u8; 32];
        let expires_ms = world.reference().state.now().millis() + 600_000;
        let invite = Command::InviteNew { secret_sha256, role, expires_ms };
        let join = Command::NodeJoin {
            secret_sha256,
            address: format!("{name}!5640"),
            name,
            entry_format: ENTRY_FORMAT,
            release: "simulated".to_owned(),
        };
        world.note(format_args!("node {} is to join as a {role}", index + 1));
        simulation.ask_in_turn(vec![(root(), vec![invite]), (By::Agent, vec![join])]);
    }
}
