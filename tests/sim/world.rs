//! What all nodes of a simulation share: time, chance, the log, the hosts, and what has been seen.

use crate::history::History;
use crate::machines::{MEMORY_BYTES, Machines};
use crate::raft::Raft;
use crate::random::Random;
use crate::reference::Reference;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When the world begins, in milliseconds since 1970.
pub const BEGIN_MS: u64 = 1_800_000_000_000;
/// Faults are counted by name; so many are the most that one says of a run.
const VIOLATIONS_MAX: usize = 20;

/// One machine as all see it: its clocks.
#[derive(Debug, Default)]
pub struct Host {
    /// What its wall clock shows, in milliseconds since 1970.
    pub wall_ms: AtomicU64,
    /// Its boot-time clock in microseconds; goes on over reboots, so that it can be compared.
    pub boot_us: AtomicU64,
    /// Counts its reboots.
    pub reboots: AtomicU64,
}

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Memory of a host, in bytes.
    pub memory_bytes: u64,
    /// So large that not every entry can be looked at: nobody works but whoever runs it, and nothing goes wrong by itself.
    pub is_large: bool,
}

/// See the module.
pub struct World {
    /// Hosts, those that may join later among them.
    pub nodes: usize,
    /// Hosts whose nodes are there from the beginning: members first, then workers.
    pub formed: usize,
    pub members: usize,
    names: Mutex<Vec<String>>,
    pub plan: Plan,
    now_ms: AtomicU64,
    random: Mutex<Random>,
    raft: Mutex<Raft>,
    machines: Mutex<Machines>,
    history: Mutex<History>,
    reference: Mutex<Reference>,
    pub hosts: Vec<Host>,
    trace: Mutex<Trace>,
    violations: Mutex<Vec<String>>,
    /// Clients are to work.
    pub busy: AtomicBool,
    pub faults: AtomicU64,
    /// Nodes that came later, and that are no members any more.
    pub joined: AtomicU64,
    pub gone: AtomicU64,
    /// Times that a worker was told of a snapshot, or turned to another member.
    pub turned: AtomicU64,
}

struct Trace {
    hash: Sha256,
    printed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(seed: u64, nodes: usize, printed: bool) -> Arc<World> {
        let mut random = Random::new(seed ^ 0x5eed);
        let workers = [0, 0, 1, 2][random.index(4)];
        let spares = [0, 0, 1, 2][random.index(4)];
        World::with(seed, [nodes, workers, spares], printed, Plan { memory_bytes: MEMORY_BYTES, is_large: false })
    }

    /// So many members, workers, and machines that may join later.
    pub fn with(seed: u64, [members, workers, spares]: [usize; 3], printed: bool, plan: Plan) -> Arc<World> {
        let (formed, nodes) = (members + workers, members + workers + spares);
        let mut random = Random::new(seed);
        let raft = Raft::new(nodes, random.between(30, 400) as usize);
        let host = |_| Host { wall_ms: AtomicU64::new(BEGIN_MS), ..Host::default() };
        Arc::new(World {
            nodes,
            formed,
            members,
            names: Mutex::new((1..=nodes).map(|nth| format!("n{nth}")).collect()),
            plan,
            now_ms: AtomicU64::new(0),
            random: Mutex::new(random),
            raft: Mutex::new(raft),
            machines: Mutex::default(),
            history: Mutex::default(),
            reference: Mutex::default(),
            hosts: (0..nodes).map(host).collect(),
            trace: Mutex::new(Trace { hash: Sha256::new(), printed }),
            violations: Mutex::default(),
            busy: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            joined: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            turned: AtomicU64::new(0),
        })
    }

    /// What the node of a host is called in the cluster.
    pub fn name_of(&self, index: usize) -> String {
        lock(&self.names)[index].clone()
    }

    pub fn set_name(&self, index: usize, name: &str) {
        name.clone_into(&mut lock(&self.names)[index]);
    }

    /// The world's own time: milliseconds since its beginning.
    pub fn now(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub fn set_now(&self, now: u64) {
        self.now_ms.store(now, Ordering::Relaxed);
    }

    pub fn random(&self) -> MutexGuard<'_, Random> {
        lock(&self.random)
    }

    pub fn raft(&self) -> MutexGuard<'_, Raft> {
        lock(&self.raft)
    }

    pub fn machines(&self) -> MutexGuard<'_, Machines> {
        lock(&self.machines)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    pub fn reference(&self) -> MutexGuard<'_, Reference> {
        lock(&self.reference)
    }

    /// A line of the trace: part of its hash, and printed if that was asked for.
    pub fn note(&self, line: std::fmt::Arguments<'_>) {
        let mut trace = lock(&self.trace);
        let line = format!("{:>7} {line}\n", self.now());
        trace.hash.update(line.as_bytes());
        if trace.printed {
            eprint!("{line}");
        }
    }

    /// Over all lines so far.
    pub fn trace_hash(&self) -> String {
        let hash = lock(&self.trace).hash.clone().finalize();
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A fault happens.
    pub fn fault(&self, what: std::fmt::Arguments<'_>) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.note(format_args!("FAULT {what}"));
    }

    /// Something that must never be.
    pub fn violation(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        let mut violations = lock(&self.violations);
        if violations.len() < VIOLATIONS_MAX {
            violations.push(what);
        }
    }

    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// Lets others go first, or not: what is ready at once is not always done in the same order.
    pub async fn shuffle(&self) {
        let yields = self.random().below(4);
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
    }
}
