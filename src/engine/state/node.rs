//! The node: a machine of the cluster, as the state machine knows it.

use super::apply::Work;
use super::event::{Event, Subject, What};
use super::{ENTRY_FORMAT, History, Lease, NodeId, NodeRole, RaftId, Reply};
use crate::clock::HybridTime;
use crate::text::{Refusal, name};
use serde::{Deserialize, Serialize};

/// The longest boot_id, in bytes: a UUID in text is 36.
pub const HOST_BOOT_BYTES_MAX: usize = 64;

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
    /// CPUs of the host.
    pub cpus: u32,
    /// Virtual CPUs that all guests there may have together; None: as many as they like, they share the host's.
    pub vcpus_max: Option<u32>,
    /// What it is to be in Raft.
    pub role: NodeRole,
    /// Its identity there.
    pub raft: RaftId,
    /// The hash of the secret with which it joined, until it has been up: what it was told may have been lost on the way.
    pub joined_with: Option<[u8; 32]>,
    /// Where other nodes reach it, as `HOST!PORT`; empty: nobody does.
    pub address: String,
    /// The highest format of entries that it knows.
    pub entry_format: u8,
    /// The version of its blixard.
    pub release: String,
    /// By which it says that it is there.
    pub lease: Lease,
    /// The newest stamp of an entry it submitted.
    pub newest_stamp: HybridTime,
    /// Counts the changes of this object.
    pub version: u64,
    /// When it last changed.
    pub changed: HybridTime,
    /// The entry that last changed it.
    pub changed_seq: u64,
    /// Its last events.
    pub history: History,
}

impl Node {
    /// One that has never been up.
    pub(super) fn new(id: NodeId, name: &str, now: HybridTime, seq: u64) -> Node {
        Node {
            id,
            name: name.to_owned(),
            up: false,
            host_boot: String::new(),
            hypervisor: String::new(),
            memory_bytes: 0,
            cpus: 0,
            vcpus_max: None,
            role: NodeRole::Voter,
            raft: RaftId(id.0),
            joined_with: None,
            address: String::new(),
            entry_format: ENTRY_FORMAT,
            release: String::new(),
            lease: Lease::default(),
            newest_stamp: now,
            version: 1,
            changed: now,
            changed_seq: seq,
            history: History::default(),
        }
    }

    /// Is it there, as far as anybody knows?
    pub fn is_there(&self) -> bool {
        self.up && !self.lease.expired
    }

    /// Its last events, oldest first, at most [`super::HISTORY_MAX`].
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let subject = Subject::Node(self.id, self.name.as_str().into());
        self.history.iter().map(move |(seq, at, what)| Event { seq, at, subject: subject.clone(), what })
    }
}

/// What a node says when it comes up.
pub(super) struct NodeReport<'c> {
    pub(super) host_boot: &'c str,
    pub(super) hypervisor: &'c str,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) vcpus_max: Option<u32>,
}

impl Work<'_> {
    pub(super) fn node_up(&mut self, report: &NodeReport<'_>) -> Result<Reply, Refusal> {
        if report.host_boot.is_empty() || report.host_boot.len() > HOST_BOOT_BYTES_MAX {
            return Err(Refusal::invalid(format!("invalid boot_id: it has 1 to {HOST_BOOT_BYTES_MAX} bytes")));
        }
        name::check(report.hypervisor)?;
        let mut earlier_boot = String::new();
        let reply = self.change_node(What::Up, |node| {
            (node.up, node.joined_with) = (true, None);
            earlier_boot = std::mem::replace(&mut node.host_boot, report.host_boot.to_owned());
            report.hypervisor.clone_into(&mut node.hypervisor);
            (node.memory_bytes, node.cpus) = (report.memory_bytes, report.cpus);
            node.vcpus_max = report.vcpus_max;
        })?;
        if !earlier_boot.is_empty() && earlier_boot != report.host_boot {
            self.host_rebooted(self.node)?;
        }
        Ok(reply)
    }

    pub(super) fn node_down(&mut self) -> Result<Reply, Refusal> {
        self.change_node(What::Down, |node| node.up = false)
    }

    pub(super) fn change_node(&mut self, what: What, change: impl FnOnce(&mut Node)) -> Result<Reply, Refusal> {
        self.change_node_of(self.node, what, change)
    }
}
