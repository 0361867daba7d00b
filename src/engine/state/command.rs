//! Commands: what can be asked of the state machine, by users and by the agents.

use super::{Claim, NodeChanges, NodeId, NodeRole, NodeVerb, RaftId, VmId, VmSpec};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One command. The order of variants is part of the log's format: add at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a cluster: its name, its first node (number 1) and its first admin.
    Init {
        /// The cluster's name.
        cluster: String,
        /// The first node's name.
        node: String,
        /// The first admin's name.
        admin: String,
        /// The first admin's uid on the node.
        admin_uid: u32,
    },
    /// A node's process has started: what its host offers.
    NodeUp {
        /// The host's /proc/sys/kernel/random/boot_id: VMs of an earlier host boot are gone.
        host_boot: String,
        /// `qemu` or `simulated`.
        hypervisor: String,
        /// Memory that guests may have there, in bytes.
        memory_bytes: u64,
        /// CPUs of the host.
        cpus: u32,
        /// Virtual CPUs that all guests there may have together; None: no limit.
        vcpus_max: Option<u32>,
        /// The host's architecture, as `x86_64`.
        arch: String,
        /// Space for guests' disks, in bytes; 0: not known.
        disk_bytes: u64,
    },
    /// A node's process is about to end cleanly.
    NodeDown,
    /// Makes a VM.
    VmNew {
        /// Its name, unique among VMs.
        name: Option<String>,
        /// The rest of what was asked for.
        spec: VmSpec,
        /// `id=KEY`: a repeated one gives the first one's number.
        key: Option<String>,
    },
    /// A verb on a VM.
    Vm {
        /// Which.
        vm: VmId,
        /// What.
        verb: VmVerb,
        /// Under which conditions.
        conditions: Conditions,
    },
    /// What the agent of the VM's node saw.
    VmReport {
        /// Which VM.
        vm: VmId,
        /// The generation that it is about; an old one is refused.
        generation: u64,
        /// What.
        report: VmReport,
    },
    /// The submitting node has this image.
    ImageRegister {
        /// Unique among images.
        name: String,
        /// Its files' size in bytes.
        size_bytes: u64,
        /// SHA-256 over its files, in hexadecimal.
        sha256: String,
    },
    /// Forgets an image; refused while a VM uses it. Of a node's agent: that node has it no more.
    ImageForget {
        /// Its name.
        name: String,
    },
    /// Makes a pool of addresses.
    PoolNew {
        /// Unique among pools.
        name: String,
        /// The network, as `10.42.0.0/16` or `fd00::/64`.
        network: ipnetwork::IpNetwork,
        /// The router's address; never leased. None: the network's first.
        gateway: Option<IpAddr>,
        /// Ranges never leased, first and last address of each.
        reserved: Vec<(IpAddr, IpAddr)>,
    },
    /// Forgets a pool; refused while it has leases.
    PoolDelete {
        /// Its name.
        name: String,
    },
    /// Sets a user's role and uid; makes the user if there is none.
    UserSet {
        /// The user's name.
        name: String,
        /// The role.
        role: super::Role,
        /// The uid on the nodes, for unix sockets and FUSE.
        uid: Option<u32>,
    },
    /// Makes a user; refused if there is one of that name.
    UserNew {
        /// The user's name.
        name: String,
        /// The role.
        role: super::Role,
        /// The uid on the nodes, for unix sockets and FUSE.
        uid: Option<u32>,
    },
    /// As [`Command::UserNew`], for a user who is confined.
    UserNewWithin {
        /// The user's name.
        name: String,
        /// The role.
        role: super::Role,
        /// The uid on the nodes.
        uid: Option<u32>,
        /// The VMs that the user is confined to; none: not confined.
        within: Vec<VmId>,
    },
    /// As [`Command::UserSet`], and sets the confinement, which that leaves as it is.
    UserSetWithin {
        /// The user's name.
        name: String,
        /// The role.
        role: super::Role,
        /// The uid on the nodes.
        uid: Option<u32>,
        /// The VMs that the user is confined to; none: not confined.
        within: Vec<VmId>,
    },
    /// Forgets a user; refused of the last admin. Objects stay with the name.
    UserDelete {
        /// The user's name.
        name: String,
    },
    /// A certificate of a user is not taken any more.
    CertificateRevoke {
        /// The user's name.
        name: String,
        /// The certificate's serial number, in lower hexadecimal digits.
        serial: String,
    },
    /// A token is given out with which one machine may join.
    InviteNew {
        /// SHA-256 of the secret in the token. The secret itself is nowhere in the log.
        secret_sha256: [u8; 32],
        /// What the machine is to be.
        role: NodeRole,
        /// Until when, in milliseconds of the cluster's time.
        expires_ms: u64,
    },
    /// A machine joins; submitted by the member that it talks to.
    NodeJoin {
        /// SHA-256 of the secret in its token.
        secret_sha256: [u8; 32],
        /// Its name, unique among nodes.
        name: String,
        /// Where other nodes reach it, as `HOST!PORT`.
        address: String,
        /// The highest format of entries that it knows.
        entry_format: u8,
        /// The version of its blixard.
        release: String,
    },
    /// A node has lost its store, and must never vote again under the identity that it had.
    NodeRaftNew {
        /// Which node.
        node: NodeId,
        /// The identity that it had: if it has another by now, nothing changes.
        was: RaftId,
    },
    /// A node says where it is reached and what it knows.
    NodeReach {
        /// `HOST!PORT`; empty: nobody reaches it.
        address: String,
        /// The highest format of entries that it knows.
        entry_format: u8,
        /// The version of its blixard.
        release: String,
    },
    /// A verb on a node.
    Node {
        /// Which.
        node: NodeId,
        /// What.
        verb: NodeVerb,
        /// Under which conditions.
        conditions: Conditions,
    },
    /// A node says that it is there: its lease begins anew.
    LeaseRenew {
        /// One more than the last one's.
        counter: u64,
        /// How long the lease is, in milliseconds.
        length_ms: u64,
        /// What the node has.
        claim: Claim,
    },
    /// Somebody has waited for a node's renewal for longer than its lease can last.
    LeaseExpire {
        /// Which node.
        node: NodeId,
        /// The counter of the renewal since which it was waited: after a newer one nothing changes.
        counter: u64,
    },
    /// Changes what a node is called by, and how much of it is promised. Since format 5, as all that follow.
    NodeSet {
        /// Which.
        node: NodeId,
        /// What.
        changes: NodeChanges,
        /// Under which conditions.
        conditions: Conditions,
    },
}

impl Command {
    /// The format of entries that this command came with.
    pub fn since(&self) -> u8 {
        match self {
            Command::Node { verb, .. } => verb.since(),
            Command::NodeSet { .. } | Command::VmReport { report: VmReport::Fenced, .. } => 5,
            _ => super::ENTRY_FORMAT_MIN,
        }
    }
}

/// `version=` and `id=`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// Only if the object's version is this.
    pub version: Option<u64>,
    /// Only once: a repeated one gets the first one's answer.
    pub key: Option<String>,
}

/// What can be done to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmVerb {
    /// Desired: running.
    Start,
    /// Desired: stopped, by power-down, then after `grace_ms` (None: the VM's own) by force.
    Stop {
        /// Milliseconds.
        grace_ms: Option<u64>,
    },
    /// Desired: stopped, at once.
    Kill,
    /// A new generation of a running VM.
    Restart,
    /// Desired: paused.
    Pause,
    /// Desired: running, of a paused one.
    Resume,
    /// No longer there; refused while it runs.
    Delete,
    /// Changes attributes; what needs a restart takes effect at the next start.
    Set {
        /// `name=`; an empty one removes the name.
        name: Option<String>,
        /// The spec's attributes that change.
        changes: super::SpecChanges,
    },
}

/// What an agent saw of a VM, always of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmReport {
    /// The process runs and the control socket answers.
    Started {
        /// The process, for people to look at.
        pid: u32,
    },
    /// The guest has answered.
    GuestReady,
    /// The CPUs are stopped.
    Paused,
    /// The CPUs run again.
    Resumed,
    /// It could not be started, or crashed. What was acquired has been given back, or is listed in the node's status.
    Failed {
        /// What happened and what to do.
        sentence: String,
        /// False: it can't work until somebody changes something.
        may_retry: bool,
    },
    /// The guest powered itself off.
    PoweredOff,
    /// It is gone because we ended it.
    Ended,
    /// `retry` is due: the agent's timer ran out.
    RetryDue,
    /// Everything of a VM in `deleting` is gone from the node.
    Removed,
    /// Something worth a line in `error` and `events` that changes no state.
    Trouble {
        /// What.
        sentence: String,
    },
    /// Its fence has ended it, since the node could not renew its lease. Since format 5.
    Fenced,
}
