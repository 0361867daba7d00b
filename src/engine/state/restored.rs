//! A state out of a backup as the beginning of a new cluster: what belongs to the nodes that are no more goes, everything else stays.
//!
//! Numbers go on where they were, and the change itself has a sequence number of its own, so that what was seen of the old cluster (versions,
//! cursors, generations) never means something else in the new one.

use super::event::{What, bounded};
use super::vm::ERROR_BYTES_MAX;
use super::{Actual, Desired, Directory, ENTRY_FORMAT, Image, Kind, Node, NodeId, RaftId, State, Touched, Vm};
use crate::text::{Refusal, name};
use imbl::{OrdMap, OrdSet};
use std::sync::Arc;

/// The only node of the new cluster.
#[derive(Debug, Clone, Copy)]
pub struct FirstNode<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where others will reach it; empty: nobody does.
    pub address: &'a str,
    /// The version of its blixard.
    pub release: &'a str,
}

/// The identity in Raft of whoever begins a store.
const FIRST_RAFT: RaftId = RaftId(1);

impl State {
    /// As the first state of a new cluster with this node alone, under the next sequence number.
    ///
    /// VMs that were placed on a node can't be known to have ended there, and those that waited for room may have found it later: none is
    /// started by itself, and each says so. Invitations were the old authority's.
    ///
    /// # Errors
    /// EINVAL: the node's name can't be one.
    pub fn restored(&self, first: &FirstNode<'_>) -> Result<State, Refusal> {
        name::check(first.name)?;
        let mut state = self.clone();
        state.seq += 1;
        state.replace_nodes(first);
        let (seq, now) = (state.seq, state.now);
        for vm in self.vms.values().filter(|vm| vm.node.is_some() || vm.reserved.is_some() || is_to_run(vm)) {
            if vm.actual == Actual::Deleting {
                // Nothing of it is here.
                state.vms.remove(&vm.id);
                state.ipam.release_holder(vm.id.0, now, seq);
                continue;
            }
            let was = vm.node.and_then(|was| self.nodes.get(&was)).map(|node| node.name.as_str());
            let (mut vm, what) = left_behind(Vm::clone(vm), was);
            vm.version += 1;
            (vm.changed, vm.changed_seq) = (now, seq);
            vm.history.push(seq, now, &what);
            state.vms.insert(vm.id, Arc::new(vm));
        }
        let touched = Touched { seq, at: now };
        for kind in [Kind::Node, Kind::Vm, Kind::Image, Kind::Pool] {
            state.directories.insert(kind, Directory { members: touched, objects: touched });
        }
        Ok(state)
    }

    /// This node instead of all others, and nothing that was theirs.
    fn replace_nodes(&mut self, first: &FirstNode<'_>) {
        let (seq, now) = (self.seq, self.now);
        self.last_node += 1;
        self.last_raft = self.last_raft.max(FIRST_RAFT.0);
        let id = NodeId(self.last_node);
        let mut node = Node {
            raft: FIRST_RAFT,
            address: first.address.to_owned(),
            entry_format: ENTRY_FORMAT,
            release: first.release.to_owned(),
            ..Node::new(id, first.name, now, seq)
        };
        node.history.push(seq, now, &What::Created);
        self.nodes = std::iter::once((id, node)).collect();
        self.stamps = std::iter::once((id, now)).collect();
        self.submitters = std::iter::once((id, (0, 0))).collect();
        self.invites = OrdMap::new();
        (self.promised, self.groups) = (OrdMap::new(), OrdMap::new());
        (self.placed, self.waiting, self.draining) = (OrdSet::new(), OrdSet::new(), OrdSet::new());
        self.look = super::moves::Look::default();
        let nowhere_yet =
            |image: &Image| Image { nodes: OrdSet::new(), changed: now, changed_seq: seq, ..image.clone() };
        self.images = self.images.iter().map(|(name, image)| (name.clone(), nowhere_yet(image))).collect();
    }
}

/// Would it be started without anybody asking?
fn is_to_run(vm: &Vm) -> bool {
    matches!(vm.desired, Desired::Running | Desired::Paused)
        && (vm.actual != Actual::Failed || vm.retry_at_ms.is_some())
}

/// A VM whose node is no more, and what has happened to it: it is nowhere, and begins with nothing.
fn left_behind(mut vm: Vm, was: Option<&str>) -> (Vm, What) {
    let to_run = is_to_run(&vm);
    let place = was.map_or("it waited for room".to_owned(), |was| format!("it was on node '{was}'"));
    let disk = if was.is_some() && !vm.is_free() { ", as is its disk" } else { "" };
    let then = if to_run { ": make sure that it does not run there any more, then start it, or delete it" } else { "" };
    let sentence = format!("{place} when the backup was made, which is of another cluster{disk}{then}");
    (vm.node, vm.reserved, vm.pid, vm.started, vm.guest_ready) = (None, None, None, None, false);
    (vm.promised_bytes, vm.promised_cpus, vm.retry_at_ms, vm.unfenced_before) = (0, 0, None, false);
    (vm.error, vm.why) = (Some(bounded(&sentence, ERROR_BYTES_MAX)), None);
    if to_run {
        vm.actual = Actual::Failed;
        vm.failures = vm.failures.max(1);
        return (vm, What::failed(&sentence));
    }
    if vm.active() {
        // It was being stopped.
        vm.actual = Actual::Stopped;
    }
    (vm, What::trouble(&sentence))
}
