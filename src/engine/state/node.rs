//! The node: a machine of the cluster, as the state machine knows it.

use super::apply::Work;
use super::event::{Event, Subject, What};
use super::words::words;
use super::{ENTRY_FORMAT, History, Lease, NodeId, NodeRole, RaftId, Reply, Vm, VmId};
use crate::clock::HybridTime;
use crate::text::{Refusal, name};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The longest boot_id, in bytes: a UUID in text is 36.
pub const HOST_BOOT_BYTES_MAX: usize = 64;

/// The longest name of an architecture, in bytes.
pub const ARCH_BYTES_MAX: usize = 32;
/// Overcommitment, in hundredths of what there is.
pub const RATIO_PERCENT: RangeInclusive<u32> = 10..=10_000;

words!(
    /// Does a node take VMs?
    #[derive(Default)]
    Schedule: "schedule" {
        /// It does.
        #[default]
        Open = "open",
        /// It takes no more, and those that are there stay.
        Cordoned = "cordoned",
        /// It takes no more, and those that are there are moved away.
        Draining = "draining",
        /// It was drained, and is empty.
        Drained = "drained",
        /// It is drained, and then no member any more.
        Leaving = "leaving",
    }
);

/// Why a node takes no VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    Down,
    Lost,
    Schedule(Schedule),
}

/// How much of what a node has is promised to guests, in hundredths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ratios {
    /// Of memory, within [`RATIO_PERCENT`].
    pub memory_percent: u32,
    /// Virtual CPUs of a host's CPUs; None: as many as they like, or as the node's configuration says.
    pub cpus_percent: Option<u32>,
    /// Of the space for disks, which take what is written to them.
    pub disk_percent: u32,
}

impl Default for Ratios {
    fn default() -> Ratios {
        Ratios { memory_percent: 100, cpus_percent: None, disk_percent: 100 }
    }
}

/// What `set` changes of a node; None: as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChanges {
    /// Sorted, each once.
    pub labels: Option<Vec<String>>,
    /// See [`Ratios::memory_percent`].
    pub memory_percent: Option<u32>,
    /// See [`Ratios::cpus_percent`].
    pub cpus_percent: Option<u32>,
    /// See [`Ratios::disk_percent`].
    pub disk_percent: Option<u32>,
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, unique among nodes.
    pub name: String,
    /// Is its process up, as far as it has said?
    pub up: bool,
    /// Which of the node's starts was up last: the first part of its entries' numbers.
    pub up_start: u64,
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
    /// Its architecture, as `x86_64`.
    pub arch: String,
    /// Space for guests' disks, in bytes; 0: it has not said.
    pub disk_bytes: u64,
    /// What VMs may ask for in `labels=`: sorted, each once.
    pub labels: Vec<String>,
    /// How much of it is promised.
    pub ratios: Ratios,
    /// Does it take VMs?
    pub schedule: Schedule,
    /// The VM that a drain moves now.
    pub moving: Option<VmId>,
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
            up_start: 0,
            host_boot: String::new(),
            hypervisor: String::new(),
            memory_bytes: 0,
            cpus: 0,
            vcpus_max: None,
            arch: String::new(),
            disk_bytes: 0,
            labels: Vec::new(),
            ratios: Ratios::default(),
            schedule: Schedule::Open,
            moving: None,
            role: NodeRole::Voter,
            raft: RaftId(id.0),
            joined_with: None,
            address: String::new(),
            entry_format: ENTRY_FORMAT,
            release: String::new(),
            lease: Lease::default(),
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

    /// Does it take VMs, and if not, why?
    pub(super) fn is_open(&self) -> Result<(), Closed> {
        match self.schedule {
            _ if self.lease.expired => Err(Closed::Lost),
            _ if !self.up => Err(Closed::Down),
            Schedule::Open => Ok(()),
            schedule => Err(Closed::Schedule(schedule)),
        }
    }

    /// Memory that may be promised, in bytes.
    pub fn memory_for_guests(&self) -> u64 {
        percent(self.memory_bytes, self.ratios.memory_percent)
    }

    /// Virtual CPUs that may be promised; None: no limit.
    pub fn vcpus_for_guests(&self) -> Option<u64> {
        let by_ratio = self.ratios.cpus_percent.map(|ratio| percent(u64::from(self.cpus), ratio));
        by_ratio.into_iter().chain(self.vcpus_max.map(u64::from)).min()
    }

    /// Space for disks that may be promised, in bytes; None: it has not said what it has.
    pub fn disk_for_guests(&self) -> Option<u64> {
        Some(self.disk_bytes).filter(|bytes| *bytes > 0).map(|bytes| percent(bytes, self.ratios.disk_percent))
    }

    /// Its last events, oldest first, at most [`super::HISTORY_MAX`].
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let subject = Subject::Node(self.id, self.name.as_str().into());
        self.history.iter().map(move |(seq, at, what)| Event { seq, at, subject: subject.clone(), what })
    }
}

fn percent(of: u64, hundredths: u32) -> u64 {
    u64::try_from(u128::from(of) * u128::from(hundredths) / 100).unwrap_or(u64::MAX)
}

/// What a node says when it comes up.
pub(super) struct NodeReport<'c> {
    pub(super) host_boot: &'c str,
    pub(super) hypervisor: &'c str,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) vcpus_max: Option<u32>,
    pub(super) arch: &'c str,
    pub(super) disk_bytes: u64,
}

impl Work<'_> {
    pub(super) fn node_up(&mut self, report: &NodeReport<'_>) -> Result<Reply, Refusal> {
        if report.host_boot.is_empty() || report.host_boot.len() > HOST_BOOT_BYTES_MAX {
            return Err(Refusal::invalid(format!("invalid boot_id: it has 1 to {HOST_BOOT_BYTES_MAX} bytes")));
        }
        name::check(report.hypervisor)?;
        if report.arch.len() > ARCH_BYTES_MAX {
            return Err(Refusal::invalid(format!("invalid architecture: it has at most {ARCH_BYTES_MAX} bytes")));
        }
        let (mut earlier_boot, start) = (String::new(), self.boot);
        let reply = self.change_node(What::Up, |node| {
            (node.up, node.up_start, node.joined_with) = (true, start, None);
            earlier_boot = std::mem::replace(&mut node.host_boot, report.host_boot.to_owned());
            report.hypervisor.clone_into(&mut node.hypervisor);
            (node.memory_bytes, node.cpus) = (report.memory_bytes, report.cpus);
            (node.vcpus_max, node.disk_bytes) = (report.vcpus_max, report.disk_bytes);
            report.arch.clone_into(&mut node.arch);
        })?;
        if !earlier_boot.is_empty() && earlier_boot != report.host_boot {
            self.each_on(self.node, Vm::host_gone)?;
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
