//! The replicated state machine: [`State::apply`] is the one place where a decision is taken.
//!
//! Pure: no clock, no I/O, no randomness, no floats, no iteration over hash maps. Time and ids come inside the entry.
//! Each node computes the same [`State`] from the same log. A state is a value: readers keep one as long as they like.
//!
//! - `apply.rs`: takes an entry: is it new, is it allowed; then hands each command to the entity that it is about
//! - `vm.rs`: the VM and its transitions, drawn there; `spec.rs`: what may be asked of one; `vms.rs`: what else a command
//!   about one touches: names, leases, promises of memory; `constraints.rs`, `placement.rs`: which node it goes to
//! - `moves.rs`: VMs that change their node: of lost and of drained nodes, and those that wait for room
//! - `membership.rs`: who belongs to the cluster, who votes, leases
//! - `node.rs`, `image.rs`, `user.rs`: the other entities (pools are in the room `ipam`); `access.rs`: what narrows a user
//! - `event.rs`, `history.rs`, `directory.rs`: what happened, to what, and when last; `keys.rs`: `id=KEY`
//! - `restored.rs`: a state out of a backup as the beginning of a new cluster
//! - `encoding.rs`: entries and states as bytes; `check.rs`: every invariant in one function

pub mod access;
mod apply;
mod check;
pub mod command;
mod command_text;
pub mod constraints;
pub mod directory;
mod encoding;
pub mod entry;
pub mod event;
pub mod history;
pub mod image;
mod keys;
pub mod membership;
mod moves;
pub mod node;
mod placement;
pub mod restored;
pub mod spec;
pub mod user;
pub mod vm;
mod vms;
mod words;

pub use access::{About, Access};
pub use command::{Command, Conditions, VmReport, VmVerb};
pub use constraints::{ConstraintChanges, Constraints, Place};
pub use directory::{Directory, Kind, Touched};
pub use encoding::{DecodeError, ENTRY_FORMAT, ENTRY_FORMAT_MIN, STATE_FORMAT};
pub use entry::{By, Entry, EntryId, Outcome, Reply};
pub use event::{Event, Subject, What};
pub use history::{HISTORY_MAX, History};
pub use image::Image;
pub use membership::{Claim, Invite, Lease, NodeRole, NodeVerb, RaftId};
pub use node::{Node, NodeChanges, Ratios, Schedule};
pub use placement::Promised;
pub use spec::{Ha, Restart, SpecChanges, VmSpec};
pub use user::{NOBODY, Operation, Role, User};
pub use vm::{Actual, Desired, Vm};

use crate::clock::HybridTime;
use crate::ipam::Ipam;
use imbl::{OrdMap, OrdSet};
use keys::Keys;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
id!(
    /// A VM's number: given by the cluster from 1 up, never used again.
    VmId
);
id!(
    /// A node's number: given by the cluster from 1 up, never used again; also its Raft id.
    NodeId
);
id!(
    /// An image's number.
    ImageId
);
id!(
    /// A user's number.
    UserId
);

/// The pool that a cluster begins with, and that a VM's address comes from unless it says otherwise.
pub const DEFAULT_POOL: &str = "default";
/// Its network.
pub const DEFAULT_NETWORK: &str = "10.42.0.0/16";

/// Everything that is replicated. A clone costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    seq: u64,
    cluster: Option<String>,
    now: HybridTime,
    vms: OrdMap<VmId, Arc<Vm>>,
    vm_names: OrdMap<Arc<str>, VmId>,
    nodes: OrdMap<NodeId, Node>,
    images: OrdMap<String, Image>,
    users: OrdMap<String, User>,
    user_ids: OrdMap<UserId, String>,
    user_uids: OrdMap<u32, String>,
    ipam: Ipam,
    /// The last applied (boot, n) of each node.
    submitters: OrdMap<NodeId, (u64, u64)>,
    /// The newest stamp of each node's entries. Not in the node, so that an entry costs no copy of one.
    stamps: OrdMap<NodeId, HybridTime>,
    keys: Keys,
    /// What is promised on each node.
    promised: OrdMap<NodeId, Promised>,
    last_vm: u64,
    last_image: u64,
    last_user: u64,
    directories: OrdMap<Kind, Directory>,
    access: OrdMap<String, Access>,
    invites: OrdMap<u64, Invite>,
    last_invite: u64,
    last_node: u64,
    last_raft: u64,
    /// The VMs of each node.
    placed: OrdSet<(NodeId, VmId)>,
    /// The VMs that wait, in their turn.
    waiting: OrdSet<(u8, VmId)>,
    /// How many of each group are on which node.
    groups: OrdMap<placement::Group, OrdMap<NodeId, u64>>,
    /// The nodes that are to become empty.
    draining: OrdSet<NodeId>,
    look: moves::Look,
}

impl State {
    /// Before the first entry.
    pub fn new() -> State {
        State::default()
    }

    /// The last entry that was applied.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The cluster's time: the median of its nodes' newest stamps, never falling.
    pub fn now(&self) -> HybridTime {
        self.now
    }

    /// The cluster's name, once it has one.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// A VM.
    pub fn vm(&self, id: VmId) -> Option<&Arc<Vm>> {
        self.vms.get(&id)
    }

    /// Is, or was, there a VM of this number?
    pub fn was_there(&self, id: VmId) -> bool {
        (1..=self.last_vm).contains(&id.0)
    }

    /// A VM by name.
    pub fn vm_named(&self, name: &str) -> Option<&Arc<Vm>> {
        self.vms.get(self.vm_names.get(name)?)
    }

    /// All VMs, by number.
    pub fn vms(&self) -> impl ExactSizeIterator<Item = &Arc<Vm>> + DoubleEndedIterator {
        self.vms.values()
    }

    /// The VMs with a number greater than `after`, by number.
    pub fn vms_after(&self, after: VmId) -> impl Iterator<Item = &Arc<Vm>> {
        self.vms.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)).map(|(_, vm)| vm)
    }

    /// Those of them that have a name. It looks no further than at the last of these.
    pub fn named_vms_after(&self, after: VmId) -> impl Iterator<Item = &Arc<Vm>> {
        self.vms_after(after).filter(|vm| vm.name.is_some()).take(self.vm_names.len())
    }

    /// What is not the same VM in `older`: (before, now) of each, in no particular order. It costs as much as has changed.
    pub fn vms_changed_since<'a>(&'a self, older: &'a State) -> impl Iterator<Item = VmChange<'a>> {
        older.vms.diff(&self.vms).map(|item| match item {
            imbl::ordmap::DiffItem::Add(_, vm) => (None, Some(vm)),
            imbl::ordmap::DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            imbl::ordmap::DiffItem::Remove(_, vm) => (Some(vm), None),
        })
    }

    /// The owner of a VM, for the rights on it.
    fn owner_of(&self, id: VmId) -> Option<&str> {
        self.vms.get(&id).map(|vm| vm.owner.as_str())
    }

    /// What changed last among the objects of a kind.
    pub fn directory(&self, kind: Kind) -> Directory {
        self.directories.get(&kind).copied().unwrap_or_default()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// A node by name.
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|n| n.name == name)
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// The VMs that are placed on a node, by number.
    pub fn vms_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Vm>> {
        let placed = self.placed.range((node, VmId(0))..=(node, VmId(u64::MAX)));
        placed.filter_map(|(_, vm)| self.vms.get(vm))
    }

    /// How many they are.
    pub fn count_on(&self, node: NodeId) -> usize {
        self.placed.range((node, VmId(0))..=(node, VmId(u64::MAX))).count()
    }

    /// What is promised to guests on a node.
    pub fn promised(&self, node: NodeId) -> Promised {
        self.promised.get(&node).copied().unwrap_or_default()
    }

    /// An image by name.
    pub fn image_named(&self, name: &str) -> Option<&Image> {
        self.images.get(name)
    }

    /// All images, by name.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &Image> {
        self.images.values()
    }

    /// A user by name.
    pub fn user_named(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// A user.
    pub fn user(&self, id: UserId) -> Option<&User> {
        self.users.get(self.user_ids.get(&id)?)
    }

    /// The user with this uid on the nodes.
    pub fn user_with_uid(&self, uid: u32) -> Option<&User> {
        self.users.get(self.user_uids.get(&uid)?)
    }

    /// The numbers of the users, those greater than `after`, in order.
    pub fn users_after(&self, after: UserId) -> impl Iterator<Item = UserId> {
        self.user_ids.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)).map(|(id, _)| *id)
    }

    /// All users, by name.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &User> {
        self.users.values()
    }

    /// The pools.
    pub fn ipam(&self) -> &Ipam {
        &self.ipam
    }

    /// The newest stamp of an entry that this node has submitted; before its first, the time at which it became a member.
    pub fn newest_stamp(&self, node: NodeId) -> Option<HybridTime> {
        self.stamps.get(&node).copied()
    }

    /// The last applied (boot, n) of a node.
    pub fn last_of(&self, node: NodeId) -> Option<(u64, u64)> {
        self.submitters.get(&node).copied()
    }
}

/// A VM before and after; None: it was not there, or is no more.
pub type VmChange<'a> = (Option<&'a Arc<Vm>>, Option<&'a Arc<Vm>>);
