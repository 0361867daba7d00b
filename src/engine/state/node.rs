//! The node: a machine of the cluster, as the state machine knows it.

use super::NodeId;
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, unique among nodes.
    pub name: String,
    /// Is its process up, as far as it has said?
    pub up: bool,
    /// The host's boot_id, from its last `NodeUp`; empty before the first.
    pub host_boot: String,
    /// `qemu` or `simulated`.
    pub hypervisor: String,
    /// Memory that guests may have there, in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs of the host.
    pub cpus: u32,
    /// The newest stamp of an entry it submitted.
    pub newest_stamp: HybridTime,
    /// Counts the changes of this object.
    pub version: u64,
    /// When it last changed.
    pub changed: HybridTime,
    /// The entry that last changed it.
    pub changed_seq: u64,
}
