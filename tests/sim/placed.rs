//! Where a VM may be, in the plainest words: looked at whenever an entry places one, and by nothing that the code under test has counted.

use blixard::engine::state::{Actual, Command, Entry, Node, NodeId, Schedule, State, Vm, VmId, VmVerb};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
#[derive(Default)]
pub struct Placements {
    /// What each VM's generation was begun with: memory in bytes, virtual CPUs.
    begun_with: BTreeMap<VmId, (u64, u64)>,
    /// Generations that were begun somewhere.
    pub begun: u64,
    /// VMs that a drain has begun to move.
    pub moves: u64,
}

/// Is there a process of it, or may there be one again without anybody asking?
fn takes_room(vm: &Vm) -> bool {
    match vm.actual {
        Actual::Starting | Actual::Running | Actual::Paused | Actual::Stopping => true,
        Actual::Failed => vm.retry_at_ms.is_some(),
        _ => false,
    }
}

fn is_at(vm: &Vm, node: NodeId) -> bool {
    vm.reserved == Some(node) || (vm.node == Some(node) && takes_room(vm))
}

fn is_open(node: &Node) -> bool {
    node.up && !node.lease.expired && node.schedule == Schedule::Open
}

/// Why a VM should not be placed on this node, whatever room there is.
fn unfit(state: &State, vm: &Vm, node: &Node) -> Option<String> {
    let wants = &vm.spec.constraints;
    let others = || state.vms().filter(|other| other.id != vm.id);
    let is_member = |other: &Vm, group: &str| other.spec.constraints.affinity.as_deref() == Some(group);
    let is_rival = |other: &Vm, group: &str| other.spec.constraints.anti_affinity.as_deref() == Some(group);
    if !is_open(node) {
        return Some("it takes none".to_owned());
    }
    if wants.node.as_ref().is_some_and(|name| *name != node.name) {
        return Some(format!("it is not {:?}", wants.node));
    }
    if wants.arch.as_ref().is_some_and(|arch| *arch != node.arch) {
        return Some("it has another architecture".to_owned());
    }
    if let Some(label) = wants.labels.iter().find(|label| !node.labels.contains(label)) {
        return Some(format!("it has no label {label}"));
    }
    if !state.image_named(&vm.spec.image).is_some_and(|image| image.nodes.contains(&node.id)) {
        return Some("it does not have the image".to_owned());
    }
    if let Some(group) = &wants.anti_affinity
        && let Some(other) = others().find(|other| is_rival(other, group) && is_at(other, node.id))
    {
        return Some(format!("vm {} of anti-affinity {group} is there", other.id));
    }
    if let Some(group) = &wants.affinity {
        let with = |node: &Node| others().any(|other| is_member(other, group) && is_at(other, node.id));
        if !with(node) && state.nodes().any(|other| is_open(other) && with(other)) {
            return Some(format!("the others of affinity {group} are elsewhere"));
        }
    }
    None
}

impl Placements {
    /// What of this node is taken by others than this VM: memory and CPUs.
    fn taken(&self, state: &State, node: NodeId, but: Option<VmId>) -> (u64, u64) {
        let mut sum = (0, 0);
        for vm in state.vms().filter(|vm| Some(vm.id) != but) {
            if vm.node == Some(node) && takes_room(vm) {
                let (memory, cpus) = self.begun_with.get(&vm.id).copied().unwrap_or_default();
                sum = (sum.0 + memory, sum.1 + cpus);
            }
            if vm.reserved == Some(node) {
                sum = (sum.0 + vm.spec.memory_bytes, sum.1 + u64::from(vm.spec.cpus));
            }
        }
        sum
    }

    /// An entry has led from one state to the next: what is wrong with whatever it has placed.
    pub fn look(&mut self, before: &State, after: &State, entry: &Entry) -> Vec<String> {
        let (mut wrong, mut nodes) = (Vec::new(), BTreeSet::new());
        for (old, new) in after.vms_changed_since(before) {
            let Some(vm) = new else {
                self.begun_with.extend(old.map(|old| (old.id, (0, 0))));
                continue;
            };
            if [vm.node, vm.reserved].into_iter().flatten().any(|id| after.node(id).is_none()) {
                wrong.push(format!("vm {} is at {:?}, and to be at {:?}, which is gone", vm.id, vm.node, vm.reserved));
            }
            if vm.generation > old.map_or(0, |old| old.generation) {
                self.begun += 1;
                self.begun_with.insert(vm.id, (vm.spec.memory_bytes, u64::from(vm.spec.cpus)));
                nodes.extend(vm.node);
                // A user who restarts it asks for it where it is.
                wrong.extend(vm.node.filter(|_| !is_restarted(entry, vm.id)).and_then(|id| misplaced(after, vm, id)));
            }
            if let Some(id) = vm.reserved.filter(|id| old.is_none_or(|old| old.reserved != Some(*id))) {
                self.moves += 1;
                nodes.insert(id);
                wrong.extend(misplaced(after, vm, id));
                let from = vm.node.and_then(|id| after.node(id));
                if !from.is_some_and(|node| matches!(node.schedule, Schedule::Draining | Schedule::Leaving)) {
                    wrong.push(format!("vm {} is moved off a node that is not drained", vm.id));
                }
            }
        }
        wrong.extend(nodes.into_iter().filter_map(|id| self.overfull(after, id)));
        wrong
    }

    /// A node on which something was placed has room for all that is there.
    fn overfull(&self, state: &State, id: NodeId) -> Option<String> {
        let node = state.node(id)?;
        let (memory, cpus) = self.taken(state, id, None);
        (memory > room(node).0 || cpus > room(node).1)
            .then(|| format!("{memory} bytes and {cpus} CPUs are taken of node {id}, which has {:?}", room(node)))
    }

    /// Is there a node that would do for a VM that waits?
    pub fn would_do<'s>(&self, state: &'s State, vm: &Vm) -> Option<&'s Node> {
        let tied = vm.node.filter(|_| vm.spec.disk_bytes.is_some());
        state.nodes().filter(|node| tied.is_none_or(|id| id == node.id)).find(|node| {
            let (memory, cpus) = self.taken(state, node.id, Some(vm.id));
            unfit(state, vm, node).is_none()
                && memory + vm.spec.memory_bytes <= room(node).0
                && cpus + u64::from(vm.spec.cpus) <= room(node).1
        })
    }
}

fn misplaced(state: &State, vm: &Arc<Vm>, id: NodeId) -> Option<String> {
    let why = match state.node(id) {
        Some(node) => unfit(state, vm, node)?,
        None => "it is gone".to_owned(),
    };
    Some(format!("vm {} is placed on node {id}: {why}", vm.id))
}

fn is_restarted(entry: &Entry, id: VmId) -> bool {
    let restarts = |command: &Command| matches!(command, Command::Vm { vm, verb: VmVerb::Restart, .. } if *vm == id);
    entry.commands.iter().any(restarts)
}

/// Memory and CPUs that guests may have.
fn room(node: &Node) -> (u64, u64) {
    let memory = u128::from(node.memory_bytes) * u128::from(node.ratios.memory_percent) / 100;
    (memory as u64, node.vcpus_max.map_or(u64::MAX, u64::from))
}
