//! What goes wrong, and when. Each seed has some kinds of faults and not others: what is rare in a mixture of all is common in some.

use crate::machines::Mood;
use crate::run::Simulation;
use std::collections::BTreeMap;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A process is killed and begins again.
    Crash,
    /// The same in the midst of what it does.
    CrashMidway,
    /// The host loses power.
    Reboot,
    /// A process is stopped, and goes on as if nothing had been.
    Stop,
    /// The same, and all that runs on its host with it.
    Hang,
    /// Some nodes do not hear the others.
    Split,
    /// One direction between two nodes is cut.
    OneWay,
    /// Whoever leads is alone.
    LoneLeader,
    /// Another one leads.
    NewLeader,
    /// One applies nothing for a while.
    Lag,
    /// One loses its store.
    LoseStore,
    /// Messages are lost.
    Loss,
    /// Messages are slow.
    Slow,
    WallJump,
    WallStops,
    Drift,
    /// A machine crashes or powers off by itself.
    Mishap,
    /// A host's hypervisor fails, hangs and lies.
    Mood,
}

const KINDS: &[Kind] = &[
    Kind::Crash,
    Kind::CrashMidway,
    Kind::Reboot,
    Kind::Stop,
    Kind::Hang,
    Kind::Split,
    Kind::OneWay,
    Kind::LoneLeader,
    Kind::NewLeader,
    Kind::Lag,
    Kind::LoseStore,
    Kind::Loss,
    Kind::Slow,
    Kind::WallJump,
    Kind::WallStops,
    Kind::Drift,
    Kind::Mishap,
    Kind::Mood,
];

/// The end of a fault that lasts.
#[derive(Debug)]
enum Relief {
    Network,
    Away(usize),
    Mood(usize),
}

/// See the module.
pub struct Faults {
    kinds: Vec<Kind>,
    next_at: u64,
    /// The longest pause between two faults, in milliseconds.
    pause_most_ms: u64,
    /// When some node is away for longer than a lease lasts.
    away_at: Vec<u64>,
    reliefs: BTreeMap<(u64, u64), Relief>,
    numbers: u64,
}

impl Faults {
    pub fn new(simulation: &Simulation, begins: u64, lasts: u64) -> Faults {
        let mut random = simulation.world.random();
        let mut kinds: Vec<Kind> = KINDS.iter().copied().filter(|_| random.percent(60)).collect();
        kinds.push(Kind::Crash);
        let away = random.between(1, 2);
        let away_at = (0..away).map(|_| begins + random.below(lasts.saturating_sub(26_000))).collect();
        let pause_most_ms = random.between(1_500, 6_000);
        Faults { kinds, next_at: begins + 1_000, pause_most_ms, away_at, reliefs: BTreeMap::new(), numbers: 0 }
    }

    /// What is due.
    pub fn step(&mut self, simulation: &mut Simulation) {
        let now = simulation.world.now();
        while let Some(entry) = self.reliefs.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Relief::Network => simulation.world.raft().network.heal(),
                Relief::Away(node) => simulation.world.raft().network.come_back(node),
                Relief::Mood(host) => simulation.world.machines().set_mood(host, Mood::default()),
            }
        }
        if let Some(at) = self.away_at.iter().position(|at| *at <= now) {
            self.away_at.remove(at);
            self.away(simulation);
        }
        if now < self.next_at {
            return;
        }
        let (kind, node, pause, lasts) = {
            let mut random = simulation.world.random();
            let kind = random.pick(&self.kinds).copied().unwrap_or(Kind::Crash);
            let node = random.index(simulation.world.nodes);
            (kind, node, random.between(200, self.pause_most_ms), random.between(300, 9_000))
        };
        self.next_at = now + pause;
        self.happen(simulation, kind, node, lasts);
    }

    fn relieve(&mut self, at: u64, relief: Relief) {
        self.numbers += 1;
        self.reliefs.insert((at, self.numbers), relief);
    }

    /// A node is away for so long that its lease ends.
    fn away(&mut self, simulation: &mut Simulation) {
        let world = simulation.world.clone();
        let (how, node, lasts) = {
            let mut random = world.random();
            (random.below(6), random.index(world.nodes), random.between(19_000, 26_000))
        };
        // Mostly one that others have something to begin of.
        let fullest = world.machines().most_fenced().filter(|_| world.random().percent(70));
        let node = fullest.unwrap_or(node);
        world.fault(format_args!("node {} is away for {lasts} ms, in way {how}", node + 1));
        match how {
            0 => simulation.kill(node, lasts),
            1 => simulation.stop(node, lasts),
            2..=4 => simulation.hang(node, lasts),
            _ => {
                world.raft().network.leave(node);
                self.relieve(world.now() + lasts, Relief::Away(node));
            }
        }
    }

    fn happen(&mut self, simulation: &mut Simulation, kind: Kind, node: usize, lasts: u64) {
        let world = simulation.world.clone();
        world.fault(format_args!("{kind:?} node {} {lasts}", node + 1));
        match kind {
            Kind::Crash => simulation.kill(node, lasts),
            Kind::CrashMidway => simulation.kill_midway(node, lasts),
            Kind::Reboot => simulation.power_fails(node, lasts),
            Kind::Stop => simulation.stop(node, lasts),
            Kind::Hang => simulation.hang(node, 2 * lasts),
            Kind::LoseStore => simulation.lose_store(node, lasts),
            Kind::NewLeader => world.raft().change_leader(&world),
            Kind::Lag => world.raft().members[node].lags_until = world.now() + lasts,
            Kind::Mishap => drop(world.machines().mishap(&world)),
            Kind::WallJump => {
                let by = {
                    let mut random = world.random();
                    let most = if random.percent(15) { 7_200_000 } else { 10_000 };
                    random.below(2 * most) as i64 - most as i64
                };
                simulation.clocks[node].jump(by);
            }
            Kind::WallStops => simulation.clocks[node].freeze(world.now() + lasts),
            Kind::Drift => simulation.clocks[node].drift(&mut world.random()),
            Kind::Mood => {
                let mood = {
                    let mut random = world.random();
                    let mut part = || if random.percent(50) { random.below(40) } else { 0 };
                    Mood { fails: part(), says_failed: part(), hangs: part() / 3, lies: part(), slow: part() }
                };
                world.machines().set_mood(node, mood);
                self.relieve(world.now() + lasts, Relief::Mood(node));
            }
            Kind::Split | Kind::OneWay | Kind::LoneLeader | Kind::Loss | Kind::Slow => {
                self.network(simulation, kind, node);
                self.relieve(world.now() + lasts, Relief::Network);
            }
        }
    }

    fn network(&mut self, simulation: &mut Simulation, kind: Kind, node: usize) {
        let world = simulation.world.clone();
        let others: Vec<usize> = (0..world.nodes).filter(|other| *other != node).collect();
        let mut random = world.random();
        let mut raft = world.raft();
        let leader = raft.leader().unwrap_or(node);
        match kind {
            Kind::Split => {
                let side: Vec<usize> = others.iter().copied().filter(|_| random.percent(40)).chain([node]).collect();
                for one in &side {
                    let far = (0..world.nodes).filter(|other| !side.contains(other));
                    far.for_each(|other| raft.network.cut_both(*one, other));
                }
            }
            Kind::OneWay => {
                let other = random.pick(&others).copied().unwrap_or(node);
                raft.network.cut(node, other);
            }
            Kind::LoneLeader => {
                let far = (0..world.nodes).filter(|other| *other != leader);
                far.for_each(|other| raft.network.cut_both(leader, other));
            }
            Kind::Loss => raft.network.loss = random.between(5, 40),
            _ => raft.network.delay_most_ms = random.between(50, 900),
        }
    }
}
