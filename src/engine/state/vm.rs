//! The VM: what is desired of it, what it actually does, and how one follows the other.

use super::{NodeId, VmId};
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The image's name.
    pub image: String,
    /// Virtual CPUs, 1 to 64.
    pub cpus: u32,
    /// Guest memory in bytes, 16 MiB to 1 TiB, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// A data disk of this many bytes.
    pub disk_bytes: Option<u64>,
    /// The pool that its address comes from; None: the pool `default`.
    pub pool: Option<String>,
    /// A static address in that pool.
    pub ip: Option<IpAddr>,
    /// What to do when it ends by itself.
    pub restart: Restart,
    /// How long a stop waits for the guest before it kills, in milliseconds.
    pub grace_ms: u64,
}

/// What `set` changes; None: as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecChanges {
    /// See [`VmSpec::cpus`].
    pub cpus: Option<u32>,
    /// See [`VmSpec::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// See [`VmSpec::restart`].
    pub restart: Option<Restart>,
    /// See [`VmSpec::grace_ms`].
    pub grace_ms: Option<u64>,
    /// See [`VmSpec::image`].
    pub image: Option<String>,
}

/// `restart=`: what happens when a VM that should run has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// It stays `failed` or `stopped`.
    Never,
    /// A crash starts it again, with a growing pause; its own power-off stops it.
    #[default]
    OnFailure,
    /// It is started again whatever ended it, unless a user stopped it.
    Always,
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Desired {
    /// Running.
    Running,
    /// There, CPUs stopped.
    Paused,
    /// Not running.
    Stopped,
    /// Gone.
    Deleted,
}

/// What is, as far as the agents have reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Actual {
    /// Never started.
    Defined,
    /// The agent is at work on it.
    Starting,
    /// It runs.
    Running,
    /// It is there, CPUs stopped.
    Paused,
    /// The agent is ending it.
    Stopping,
    /// It ran and doesn't any more.
    Stopped,
    /// It could not be started or crashed; `error` says why.
    Failed,
    /// The agent is clearing up what is left of it.
    Deleting,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its name, unique among VMs.
    pub name: Option<String>,
    /// What was asked for.
    pub spec: VmSpec,
    /// Who made it.
    pub owner: String,
    /// What the user wants.
    pub desired: Desired,
    /// What is.
    pub actual: Actual,
    /// Counts the starts; 0 before the first.
    pub generation: u64,
    /// Counts the changes of this object; `version=` compares it.
    pub version: u64,
    /// Where it is placed.
    pub node: Option<NodeId>,
    /// Its address, leased from the pool from `new` to the end of `delete`.
    pub ip: Option<IpAddr>,
    /// The process on its node, for people to look at.
    pub pid: Option<u32>,
    /// Since when it runs.
    pub started: Option<HybridTime>,
    /// Has the guest answered in this generation?
    pub guest_ready: bool,
    /// The last error, whole sentence.
    pub error: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// When the next try is due, in milliseconds of the cluster's time; the owning agent keeps the timer.
    pub retry_at_ms: Option<u64>,
    /// How long the current stop may take before it is by force, in milliseconds; 0: at once.
    pub stop_grace_ms: u64,
    /// When it was made.
    pub created: HybridTime,
    /// When it last changed.
    pub changed: HybridTime,
    /// The seq of the entry that last changed it.
    pub changed_seq: u64,
}
