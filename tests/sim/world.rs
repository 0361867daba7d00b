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
    pub nodes: usize,
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
        World::with(seed, nodes, printed, Plan { memory_bytes: MEMORY_BYTES, is_large: false })
    }

    pub fn with(seed: u64, nodes: usize, printed: bool, plan: Plan) -> Arc<World> {
        let mut random = Random::new(seed);
        let raft = Raft::new(nodes, random.between(30, 400) as usize);
        let host = |_| Host { wall_ms: AtomicU64::new(BEGIN_MS), ..Host::default() };
        Arc::new(World {
            nodes,
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
        })
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
