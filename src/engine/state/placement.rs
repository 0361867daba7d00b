//! Which node a VM goes to.

use super::{Node, NodeId, State, Vm};
use crate::text::{Refusal, size};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// What of a node is promised to guests: to those that may have a process, or will again without anybody asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// Memory, in bytes.
    pub bytes: u64,
    /// Virtual CPUs.
    pub cpus: u64,
}

impl Promised {
    pub(super) fn with(self, vm: &Vm) -> Promised {
        Promised {
            bytes: self.bytes.saturating_add(vm.promised_bytes),
            cpus: self.cpus.saturating_add(u64::from(vm.promised_cpus)),
        }
    }

    pub(super) fn without(self, vm: &Vm) -> Promised {
        Promised {
            bytes: self.bytes.saturating_sub(vm.promised_bytes),
            cpus: self.cpus.saturating_sub(u64::from(vm.promised_cpus)),
        }
    }
}

/// What of a node nobody else was promised.
struct Free {
    bytes: u64,
    /// None: virtual CPUs are not limited there.
    cpus: Option<u64>,
}

impl Free {
    fn of(state: &State, node: &Node, vm: &Vm) -> Free {
        let promised = state.promised(node.id);
        let others = if vm.node == Some(node.id) { promised.without(vm) } else { promised };
        Free {
            bytes: node.memory_bytes.saturating_sub(others.bytes),
            cpus: node.vcpus_max.map(|most| u64::from(most).saturating_sub(others.cpus)),
        }
    }

    /// What there is too little of, with figures; None: it has room.
    fn lacks(&self, vm: &Vm, node: &str) -> Option<String> {
        let (bytes, cpus) = (vm.spec.memory_bytes, u64::from(vm.spec.cpus));
        match self.cpus {
            _ if self.bytes < bytes => {
                let (wanted, left) = (size::print(bytes), size::print(self.bytes));
                Some(format!("no capacity: it wants {wanted} of memory, and {node} has {left} left"))
            }
            Some(left) if left < cpus => {
                Some(format!("no capacity: it wants {cpus} virtual CPUs, and {node} has {left} left (limits.cpus)"))
            }
            _ => None,
        }
    }
}

/// The node for the next generation of a VM: the one where it has been before, because what it has written is there; else
/// of those that are up and have room the one with the most free memory, the lowest number among equals.
///
/// # Errors
/// ENOSPC with figures.
pub(super) fn place(state: &State, vm: &Vm) -> Result<NodeId, Refusal> {
    if let Some(node) = vm.node.and_then(|id| state.node(id)) {
        if !node.is_there() {
            return Err(Refusal::no_space(format!("no capacity: node {}, where its data is, is down", node.name)));
        }
        let called = format!("node {}, where its data is,", node.name);
        return Free::of(state, node, vm).lacks(vm, &called).map_or(Ok(node.id), |why| Err(Refusal::no_space(why)));
    }
    let most_room = |fitting: bool| {
        let up = state.nodes().filter(|node| node.is_there()).map(|node| (Free::of(state, node, vm), node.id));
        up.filter(|(free, _)| !fitting || free.lacks(vm, "").is_none())
            .max_by_key(|(free, id)| (free.bytes, Reverse(*id)))
    };
    match (most_room(true), most_room(false)) {
        (Some((_, id)), _) => Ok(id),
        (None, Some((free, _))) => {
            Err(Refusal::no_space(free.lacks(vm, "the node with the most room").unwrap_or_default()))
        }
        (None, None) => Err(Refusal::no_space("no capacity: no node is up")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{VmId, VmSpec};

    const GIB: u64 = 1 << 30;

    /// Nodes 1 and up, each (is it up, its memory, what of it is promised), in GiB.
    fn nodes(nodes: &[(bool, u64, u64)]) -> State {
        let mut state = State::new();
        for (id, (up, memory, promised)) in (1..).map(NodeId).zip(nodes) {
            let node = Node::new(id, &format!("n{id}"), HybridTime(0), 1);
            state.nodes.insert(id, Node { up: *up, memory_bytes: memory * GIB, ..node });
            state.promised.insert(id, Promised { bytes: promised * GIB, cpus: *promised });
        }
        state
    }

    fn with_vcpus(state: State, vcpus_max: Option<u32>) -> State {
        let nodes = state.nodes.iter().map(|(id, node)| (*id, Node { vcpus_max, ..node.clone() })).collect();
        State { nodes, ..state }
    }

    fn vm(gib: u64) -> Vm {
        let spec = VmSpec { memory_bytes: gib * GIB, ..VmSpec::default() };
        Vm::new(VmId(1), None, &spec, "ann", "10.42.0.2".parse().unwrap(), HybridTime(0))
    }

    #[test]
    fn the_node_with_the_most_room_the_lowest_number_among_equals() {
        let node = |state: &State, gib| place(state, &vm(gib)).map(|id| id.0).map_err(|refusal| refusal.sentence);
        assert_eq!(node(&nodes(&[(true, 4, 0), (true, 8, 2), (true, 8, 2)]), 1), Ok(2));
        assert_eq!(node(&nodes(&[(true, 4, 0), (false, 64, 0), (true, 8, 7)]), 4), Ok(1));
        let full = node(&nodes(&[(true, 4, 1), (true, 4, 9)]), 4).unwrap_err();
        assert_eq!(full, "no capacity: it wants 4G of memory, and the node with the most room has 3G left");
        assert_eq!(node(&nodes(&[(false, 4, 0)]), 1).unwrap_err(), "no capacity: no node is up");
    }

    #[test]
    fn a_limit_of_virtual_cpus_binds_and_none_does_not() {
        let limited = |most: Option<u32>| with_vcpus(nodes(&[(true, 64, 3)]), most);
        let wants = |cpus: u32| {
            let vm = vm(1);
            Vm { spec: VmSpec { cpus, ..vm.spec.clone() }, ..vm }
        };
        assert_eq!(place(&limited(None), &wants(500)), Ok(NodeId(1)));
        assert_eq!(place(&limited(Some(4)), &wants(1)), Ok(NodeId(1)));
        let full = place(&limited(Some(4)), &wants(2)).unwrap_err();
        let said = "no capacity: it wants 2 virtual CPUs, and the node with the most room has 1 left (limits.cpus)";
        assert_eq!((full.code, full.sentence.as_str()), (crate::text::Code::NoSpace, said));
        let own = Vm { node: Some(NodeId(1)), promised_cpus: 1, ..wants(2) };
        assert_eq!(place(&limited(Some(4)), &own), Ok(NodeId(1)), "its own are room for it");
        // One with less memory and a CPU to spare is better than one with none.
        let two = with_vcpus(nodes(&[(true, 64, 4), (true, 8, 0)]), Some(4));
        assert_eq!(place(&two, &wants(1)), Ok(NodeId(2)));
    }

    #[test]
    fn what_was_placed_stays_there() {
        let state = nodes(&[(true, 4, 3), (true, 64, 0), (false, 4, 0)]);
        let there = |node, gib, promised| Vm { node: Some(NodeId(node)), promised_bytes: promised * GIB, ..vm(gib) };
        assert_eq!(place(&state, &there(1, 1, 0)), Ok(NodeId(1)));
        assert_eq!(place(&state, &there(1, 4, 3)), Ok(NodeId(1)), "its own memory is room for it");
        let full = place(&state, &there(1, 2, 0)).unwrap_err().sentence;
        assert_eq!(full, "no capacity: it wants 2G of memory, and node n1, where its data is, has 1G left");
        assert!(place(&state, &there(3, 1, 0)).unwrap_err().sentence.ends_with("is down"));
    }
}
